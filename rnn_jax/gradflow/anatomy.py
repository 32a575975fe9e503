"""Where each kind of cell keeps what its gradient depends on: the one place that knows cells.

Remedies are worked out from an `Anatomy` alone. A new cell gets remedies of its own by one function
here and one entry of `OURS` or `FLAX`; any other cell is examined leaf by leaf.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.cells import (
    ElmanParams,
    GRUParams,
    LayerNormElmanParams,
    LeakyParams,
    LSTMParams,
    MGUParams,
)
from rnn_jax.cells.slstm import SLSTMParams
from rnn_jax.types import Array, Params


class Part(NamedTuple):
    """A leaf of the parameters, or some of its columns.

    Attributes:
        path: from the parameters to the leaf, as `jax.tree_util.keystr` writes it.
        columns: first and past-the-last index on the leaf's last axis; None for all of it.
    """

    path: str
    columns: tuple[int, int] | None = None


class Anatomy(NamedTuple):
    """The parts of a cell.

    Attributes:
        gated_cell: where its user finds a cell with gates, with `{size}` and `{bias}` to fill in.
        orthogonal: how its user draws an orthogonal matrix.
        scales: name -> matrices (or vectors) whose common scale moves the growth rate.
        recurrent: the square W of a cell whose Jacobian is diag(phi') W^T, else None.
        inputs: U of the same cells.
        bias: b of the same cells.
        gate: name of the gate, sigmoid(b + ...), by which the old state is multiplied.
        gate_bias: the bias of that gate.
        leak: the share of the state that is renewed at each step.
    """

    gated_cell: str
    orthogonal: str
    scales: Mapping[str, tuple[Part, ...]]
    recurrent: Part | None = None
    inputs: Part | None = None
    bias: Part | None = None
    gate: str = ""
    gate_bias: Part | None = None
    leak: Part | None = None


OUR_LSTM = "take rnn_jax.lstm({size}, forget_bias={bias:.1f})"
FLAX_LSTM = "take OptimizedLSTMCell({size}) and start its params['hf']['bias'] at {bias:.1f}"
ANY_LSTM = f"{OUR_LSTM}, or in Flax {FLAX_LSTM.removeprefix('take ')}"
OUR_ORTHOGONAL = "recurrent_init=rnn_jax.initializers.orthogonal()"
FLAX_ORTHOGONAL = "recurrent_kernel_init=jax.nn.initializers.orthogonal()"
ANY_ORTHOGONAL = "jax.nn.initializers.orthogonal()"


def _our_elman(params: Any) -> Anatomy:
    W, U, b = Part(".W"), Part(".U"), Part(".b")
    return Anatomy(OUR_LSTM, OUR_ORTHOGONAL, {"W": (W,)}, W, U, b)


def _our_leaky(params: Any) -> Anatomy:
    return _our_elman(params)._replace(leak=Part(".leak"))


def _our_layer_norm(params: Any) -> Anatomy:
    # Its step is the same whatever the scale of U and W together: what counts is their ratio.
    return _our_elman(params)._replace(
        scales={"W": (Part(".W"),), "U": (Part(".U"),), "gain": (Part(".gain"),)}
    )


def _our_lstm(params: Any) -> Anatomy:
    size = params.W.shape[-2]
    bias = Part(".b", (size, 2 * size))
    return _gated({"W": (Part(".W"),)}, "forget", bias, OUR_LSTM, OUR_ORTHOGONAL)


def _our_slstm(params: Any) -> Anatomy:
    return _our_lstm(params)  # The same layout, its gates in the same order.


def _our_gru(params: Any) -> Anatomy:
    size = params.W.shape[-2]
    bias = Part(".b", (size, 2 * size))
    return _gated({"W": (Part(".W"),)}, "update", bias, OUR_LSTM, OUR_ORTHOGONAL)


def _our_mgu(params: Any) -> Anatomy:
    bias = Part(".b", (0, params.W.shape[-2]))
    return _gated({"W": (Part(".W"),)}, "forget", bias, OUR_LSTM, OUR_ORTHOGONAL)


OURS: dict[type, Callable[[Any], Anatomy | None]] = {
    ElmanParams: _our_elman,
    LeakyParams: _our_leaky,
    LayerNormElmanParams: _our_layer_norm,
    LSTMParams: _our_lstm,
    GRUParams: _our_gru,
    MGUParams: _our_mgu,
    SLSTMParams: _our_slstm,
}
"""Type of a cell's parameters -> what they are."""


def _is_dense(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "kernel" in entry and jnp.ndim(entry["kernel"]) == 2


def _flax(*names: str) -> Part:
    return Part("".join(f"['{name}']" for name in names))


def _flax_simple(params: Any, recurrent: str = "h", inputs: str = "i") -> Anatomy:
    W, U = _flax(recurrent, "kernel"), _flax(inputs, "kernel")
    return Anatomy(FLAX_LSTM, FLAX_ORTHOGONAL, {"W": (W,)}, W, U, _bias(params, inputs, recurrent))


def _flax_gated(
    gate: str, gates: tuple[str, ...], biases: tuple[str, str]
) -> Callable[[Any], Anatomy | None]:
    """A Flax cell with a matrix for each gate.

    Args:
        gate: name of the gate by which the old state is multiplied.
        gates: names of the recurrent matrices.
        biases: entries that may hold that gate's bias.
    """

    def anatomy(params: Any) -> Anatomy | None:
        W = tuple(_flax(name, "kernel") for name in gates)
        return _gated({"W": W}, gate, _bias(params, *biases), FLAX_LSTM, FLAX_ORTHOGONAL)

    return anatomy


def _flax_side_by_side(params: Any) -> Anatomy | None:
    """An nnx cell with its gates side by side; how many there are says which cell it is."""
    size, columns = jnp.shape(params["dense_h"]["kernel"])[-2:]
    if columns == size:
        return _flax_simple(params, "dense_h", "dense_i")
    gate = {3: "update", 4: "forget"}.get(columns // size)
    if gate is None or columns % size:
        return None
    bias = _bias(params, "dense_h", "dense_i")
    if bias is not None:
        bias = bias._replace(columns=(size, 2 * size))
    W = (_flax("dense_h", "kernel"),)
    return _gated({"W": W}, gate, bias, FLAX_LSTM, FLAX_ORTHOGONAL)


LSTM_GATES, GRU_GATES = ("hi", "hf", "hg", "ho"), ("hr", "hz", "hn")
FLAX: dict[frozenset[str], Callable[[Any], Anatomy | None]] = {
    frozenset({"i", "h"}): _flax_simple,
    frozenset({"ii", "if", "ig", "io", *LSTM_GATES}): _flax_gated(
        "forget", LSTM_GATES, ("hf", "if")
    ),
    frozenset({"ii", "if_", "ig", "io", *LSTM_GATES}): _flax_gated(
        "forget", LSTM_GATES, ("hf", "if_")
    ),
    frozenset({"ir", "iz", "in", *GRU_GATES}): _flax_gated("update", GRU_GATES, ("iz", "hz")),
    frozenset({"if", "in", "hf", "hn"}): _flax_gated("forget", ("hf", "hn"), ("if", "hf")),
    frozenset({"dense_i", "dense_h"}): _flax_side_by_side,
}
"""Entries of a Flax cell's parameters -> what they are."""


WEIGHTS = re.compile(r"weight_hh(_l\d+)?(_reverse)?")
"""Recurrent matrices in the layout of PyTorch and Equinox: `[G H, H]`, a block of rows a gate."""


def _rows(params: Any) -> list[Anatomy]:
    """Cells of PyTorch's layout, several layers side by side or one of Equinox's."""
    children = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: x is not params)[0]
    entries = {_entry(key[-1]): (jax.tree_util.keystr(key), leaf) for key, leaf in children if key}
    found = []
    for name, (path, W) in entries.items():
        if not WEIGHTS.fullmatch(name) or jnp.ndim(W) != 2:
            continue
        suffix = name.removeprefix("weight_hh")
        names = (f"bias{suffix}", f"bias_hh{suffix}", f"bias_ih{suffix}")
        biases = [entries[n][0] for n in names if n in entries and entries[n][1] is not None]
        rows, size = jnp.shape(W)
        gate = {3: "update", 4: "forget"}.get(rows // size)
        bias = Part(biases[0]) if biases else None
        scales: dict[str, tuple[Part, ...]] = {"W": (Part(path),)}
        if rows == size:
            U = entries.get(f"weight_ih{suffix}")
            inputs = None if U is None else Part(U[0])
            found.append(Anatomy(ANY_LSTM, ANY_ORTHOGONAL, scales, Part(path), inputs, bias))
        elif gate is not None and rows % size == 0:
            if bias is not None:
                bias = bias._replace(columns=(size, 2 * size))
            found.append(_gated(scales, gate, bias, ANY_LSTM, ANY_ORTHOGONAL))
    return found


def _entry(key: Any) -> str:
    """The name of a dict's or an object's entry."""
    return str(getattr(key, "key", getattr(key, "name", "")))


def anatomies(params: Params, path: str = "") -> list[Anatomy]:
    """Every known cell within the parameters: of a stack each layer, of a wrapped cell that one."""
    make = OURS.get(type(params))
    if make is None and isinstance(params, Mapping) and all(map(_is_dense, params.values())):
        make = FLAX.get(frozenset(map(str, params)))
    if make is not None and (found := make(params)) is not None:
        return [_within(found, path)]
    if rows := _rows(params):
        return [_within(found, path) for found in rows]
    children = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: x is not params)[0]
    return [
        anatomy
        for key, child in children
        if key  # A leaf is its own only child.
        for anatomy in anatomies(child, path + jax.tree_util.keystr(key))
    ]


def leaves_of(params: Params) -> dict[str, Array]:
    """Path -> leaf."""
    return {
        jax.tree_util.keystr(path): jnp.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def values_of(params: Params, part: Part) -> Array:
    """The numbers of a part."""
    leaf = leaves_of(params)[part.path]
    return leaf if part.columns is None else leaf[..., slice(*part.columns)]


def name_of(params: Params, part: Part) -> str:
    """A part as its user would write it, such as `params['hf']['bias']` or `params.b[16:32]`."""
    name = f"params{part.path}"
    if part.columns is None:
        return name
    rows = ":, " * (leaves_of(params)[part.path].ndim - 1)
    return f"{name}[{rows}{part.columns[0]}:{part.columns[1]}]"


def _gated(
    scales: dict[str, tuple[Part, ...]], gate: str, bias: Part | None, cell: str, orthogonal: str
) -> Anatomy:
    return Anatomy(cell, orthogonal, scales, gate=gate, gate_bias=bias)


def _bias(params: Any, *names: str) -> Part | None:
    """The first of these entries that has a bias."""
    return next((_flax(name, "bias") for name in names if "bias" in params[name]), None)


def _within(anatomy: Anatomy, path: str) -> Anatomy:
    """An anatomy whose paths start further up."""

    def moved(part: Part | None) -> Part | None:
        return None if part is None else part._replace(path=path + part.path)

    return anatomy._replace(
        scales={
            name: tuple(part._replace(path=path + part.path) for part in parts)
            for name, parts in anatomy.scales.items()
        },
        recurrent=moved(anatomy.recurrent),
        inputs=moved(anatomy.inputs),
        bias=moved(anatomy.bias),
        gate_bias=moved(anatomy.gate_bias),
        leak=moved(anatomy.leak),
    )
