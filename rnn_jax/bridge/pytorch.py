"""Weights of PyTorch's recurrent layers, given as NumPy arrays."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
from numpy.typing import ArrayLike

from rnn_jax.bridge.flax_params import CellParams, assemble, kind_of

ENTRY = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)")


def from_pytorch(state_dict: Mapping[str, ArrayLike]) -> tuple[CellParams, ...]:
    """Weights of `torch.nn.RNN`, `LSTM` or `GRU` as ours, one entry for each layer.

    Args:
        state_dict: `{name: tensor.numpy() for name, tensor in layer.state_dict().items()}`; its
            entries `weight_ih_l0` `[gates H, D]` and so on. Which of the three it is is told by
            the shapes.

    Returns:
        The params of `stack` of as many cells: elman (with `activation="relu"` for PyTorch's
        `nonlinearity="relu"`), lstm or gru. One layer's are `from_pytorch(...)[0]`.

    Raises:
        ValueError: entries of something else, all named.

    PyTorch's two biases add up, but for the GRU's candidate, whose recurrent one is our d. The
    order of the gates is ours: i, f, g, o and r, z, n.
    """
    entries = {name: ENTRY.fullmatch(name) for name in state_dict}
    unknown = sorted(name for name, match in entries.items() if match is None)
    if unknown or not entries:
        raise ValueError(
            f"the state_dict has entries {unknown or 'none'}, but those of one RNN, LSTM or GRU "
            "layer stack are wanted, weight_ih_l0 and so on: strip the prefix of a larger model; "
            "of a bidirectional one give each direction by itself, without the suffix _reverse; "
            "projections (weight_hr) are not supported"
        )
    num_layers = 1 + max(int(match[2]) for match in entries.values() if match)
    return tuple(_layer(state_dict, n) for n in range(num_layers))


def _layer(state_dict: Mapping[str, ArrayLike], n: int) -> CellParams:
    for name in (f"weight_ih_l{n}", f"weight_hh_l{n}"):
        if name not in state_dict:
            raise ValueError(f"the state_dict has no {name}; give every layer from 0 on")
    U, W = (jnp.asarray(state_dict[f"weight_{side}_l{n}"]).T for side in ("ih", "hh"))
    kind = kind_of(*W.shape)
    if kind is None or U.shape[1] != W.shape[1]:
        raise ValueError(
            f"weight_ih_l{n} has shape {U.shape[::-1]} and weight_hh_l{n} {W.shape[::-1]}, but "
            "[gates H, D] and [gates H, H] are wanted, with 1 gate (RNN), 3 (GRU) or 4 (LSTM)"
        )
    biases = [state_dict.get(f"bias_{side}_l{n}") for side in ("ih", "hh")]
    first, second = (None if bias is None else jnp.asarray(bias) for bias in biases)
    return assemble(kind, U, W, first, second)
