"""Weights of our cells as weights of Flax's cells, and back.

Flax names a matrix for each gate, or keeps the gates side by side as we do; it gives the bias to
one side or the other of the sum. Where each number goes is read off the tree, never off a class.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import ElmanParams, GRUParams, LSTMParams, MGUParams
from rnn_jax.types import Array

CellParams = ElmanParams | LSTMParams | GRUParams | MGUParams
NUM_GATES = {ElmanParams: 1, GRUParams: 3, LSTMParams: 4}


class Layout(NamedTuple):
    """Names of the input and of the recurrent matrices, in our order of the gates."""

    kind: type
    inputs: tuple[str, ...]
    recurrent: tuple[str, ...]


LAYOUTS = (
    Layout(ElmanParams, ("i",), ("h",)),
    Layout(LSTMParams, ("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    Layout(LSTMParams, ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
    Layout(GRUParams, ("ir", "iz", "in"), ("hr", "hz", "hn")),
    Layout(MGUParams, ("if", "in"), ("hf", "hn")),
)
SIDE_BY_SIDE = (("dense_i",), ("dense_h",))


def from_flax(tree: Mapping[str, Any]) -> CellParams:
    """Weights of a Flax cell as ours.

    Args:
        tree: the collection "params" of a linen `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell`,
            `GRUCell` or `MGUCell`, or an nnx cell's as `nnx.to_pure_dict` gives them; also the
            params of a cell made by `from_linen` or `from_nnx`.

    Returns:
        `ElmanParams`, `LSTMParams`, `GRUParams` or `MGUParams`, for elman, lstm, gru or mgu.
        Activations are no parameters: the answer is the same where both are the default ones.

    Raises:
        ValueError: a tree of none of these cells.
    """
    layout = _layout(tree)
    U, W = (_columns(tree, names) for names in (layout.inputs, layout.recurrent))
    input_bias, recurrent_bias = (
        _biases(tree, names) for names in (layout.inputs, layout.recurrent)
    )
    return assemble(layout.kind, U, W, input_bias, recurrent_bias)


def to_flax(params: CellParams, like: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
    """Our weights as those of a Flax cell.

    Args:
        params: of elman, lstm, gru or mgu.
        like: a tree of the Flax cell's parameters (or of their shapes): its names and which parts
            have a bias are taken from it, its numbers are not used.

    Raises:
        ValueError: another kind of cell or other sizes, both named; a GRU with d for an nnx
            `GRUCell`, which has no such bias.
    """
    layout = _layout(like)
    if not isinstance(params, layout.kind):
        raise ValueError(
            f"params are {type(params).__name__}, but the Flax cell wants {layout.kind.__name__}; "
            "take the Flax cell of the same kind"
        )
    recurrent_bias = params.b
    if isinstance(params, GRUParams | MGUParams):
        recurrent_bias = jnp.zeros_like(params.b).at[-params.d.size :].set(params.d)
        if not any("bias" in like[name] for name in layout.recurrent) and np.any(params.d):
            raise ValueError(
                "params have a candidate bias d that is not zero, but this Flax cell has none; "
                "take linen's with its reset gate, or params._replace(d=jnp.zeros_like(params.d))"
            )
    tree = {}
    for names, kernel, bias in (
        (layout.inputs, params.U, params.b),
        (layout.recurrent, params.W, recurrent_bias),
    ):
        kernels, biases = (jnp.split(a, len(names), axis=-1) for a in (kernel, bias))
        for name, part, shift in zip(names, kernels, biases, strict=True):
            tree[name] = {"kernel": part} | ({"bias": shift} if "bias" in like[name] else {})
    shapes, wanted = (
        {name: {part: jnp.shape(t[name][part]) for part in t[name]} for name in tree}
        for t in (tree, like)
    )
    if shapes != wanted:
        raise ValueError(
            f"params have shapes {shapes}, but the Flax cell wants {wanted}; take the same input "
            "and hidden size"
        )
    return tree


def assemble(
    kind: type, U: Array, W: Array, input_bias: Array | None, recurrent_bias: Array | None
) -> CellParams:
    """Our parameters from matrices in our order and a bias on each side, None where there is none.

    Biases of a sum add up; the candidate of a GRU or MGU keeps its recurrent one, which
    the reset gate meets.
    """
    zeros = jnp.zeros_like(U[0])
    first = zeros if input_bias is None else input_bias
    second = zeros if recurrent_bias is None else recurrent_bias
    if kind in (GRUParams, MGUParams):
        kept = W.shape[1] - W.shape[0]
        return kind(U, W, b=first.at[:kept].add(second[:kept]), d=second[kept:])
    bias = second if input_bias is None else first if recurrent_bias is None else first + second
    return LSTMParams(U, W, bias) if kind is LSTMParams else ElmanParams(U, W, bias)


def kind_of(hidden_size: int, columns: int) -> type | None:
    """Whose recurrent matrix is `[hidden_size, columns]`; None for nobody's."""
    for kind, gates in NUM_GATES.items():
        if columns == gates * hidden_size:
            return kind
    return None


def _layout(tree: Mapping[str, Any]) -> Layout:
    names = set(tree)
    for layout in LAYOUTS:
        if names == {*layout.inputs, *layout.recurrent}:
            return layout
    inputs, recurrent = SIDE_BY_SIDE
    if names == {*inputs, *recurrent}:
        kind = kind_of(*jnp.shape(tree[recurrent[0]]["kernel"]))
        if kind is not None:
            return Layout(kind, inputs, recurrent)
    raise ValueError(
        f"the tree has the entries {sorted(map(str, names))}, those of no Flax SimpleCell, "
        "LSTMCell, OptimizedLSTMCell, GRUCell or MGUCell; give the collection 'params' of one "
        "cell, or bridge the cell itself with from_linen or from_nnx"
    )


def _columns(tree: Mapping[str, Any], names: tuple[str, ...]) -> Array:
    return jnp.concatenate([jnp.asarray(tree[name]["kernel"]) for name in names], axis=-1)


def _biases(tree: Mapping[str, Any], names: tuple[str, ...]) -> Array | None:
    """The biases side by side, zero for a gate without; None where no gate has one."""
    if not any("bias" in tree[name] for name in names):
        return None
    parts = [
        tree[name]["bias"] if "bias" in tree[name] else jnp.zeros_like(tree[name]["kernel"][0])
        for name in names
    ]
    return jnp.concatenate([jnp.asarray(part) for part in parts])
