"""Standard cells of Flax, recognised: which of our cells each is, and how to go to it and back."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from rnn_jax.bridge.flax_params import CellParams, from_flax
from rnn_jax.cells import Affine, Cell, Derivative, LSTMState, affine_cell, elman, gru, lstm, mgu
from rnn_jax.types import Array, Params, State


class Known(NamedTuple):
    """One of our cells, and what leads to it from a foreign one.

    Attributes:
        cell: ours.
        params: foreign parameters -> ours.
        state: foreign carry -> our state.
        carry: our state -> foreign carry.
        dtype: in which the foreign cell multiplies, whatever the type of its parameters; None for
            the type that those and the input have in common.
    """

    cell: Cell
    params: Callable[[Any], Params]
    state: Callable[[Any], State]
    carry: Callable[[State], Any]
    dtype: Any = None


SIGMOIDS = (jax.nn.sigmoid, linen.sigmoid)
TANHS = (jnp.tanh, jax.nn.tanh, linen.tanh)
ACTIVATIONS: tuple[tuple[tuple[Any, ...], str], ...] = (
    (TANHS, "tanh"),
    (SIGMOIDS, "sigmoid"),
    ((jax.nn.relu, linen.relu), "relu"),
    ((jax.nn.softplus, linen.softplus), "softplus"),
)
LAYERS: dict[Any, tuple[str, ...]] = {
    nnx.SimpleCell: ("dense_i", "dense_h"),
    nnx.LSTMCell: ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"),
    nnx.OptimizedLSTMCell: ("dense_i", "dense_h"),
    nnx.GRUCell: ("dense_i", "dense_h"),
}
"""The linear maps of each cell of nnx."""


def known_linen(module: linen.Module) -> Known | None:
    """The cell of ours that a linen module is; None for one that is not known.

    A subclass, a lifted cell and one with other gates than sigmoids are not: what they compute is
    their own affair.
    """
    makers = {
        linen.SimpleCell: _simple,
        linen.LSTMCell: _lstm,
        linen.OptimizedLSTMCell: _lstm,
        linen.GRUCell: _gru,
        linen.MGUCell: _mgu,
    }
    make = makers.get(type(module))
    return None if make is None else make(module, module.features)


def known_nnx(cell: Any) -> Known | None:
    """The cell of ours that one of nnx is; None for one that is not known, as in `known_linen`.

    Nor is one known whose linear maps were replaced (by those of LoRA, say) or multiply in another
    way. `nnx_weights` gives the parameters that `Known.params` wants.
    """
    names = LAYERS.get(type(cell))
    if names is None or not all(_is_plain(getattr(cell, name, None), cell) for name in names):
        return None
    makers: dict[Any, Any] = {nnx.SimpleCell: _simple, nnx.GRUCell: _gru}
    return makers.get(type(cell), _lstm)(cell, cell.hidden_features)


def with_structure(cell: Cell, known: Known | None) -> Cell:
    """A bridged cell that takes its steps as ours does; one that is not known stays as it is.

    Parameters and state remain the foreign ones. They become ours once a sequence and once a step,
    and the state keeps its type whatever that of the weights is.
    """
    if known is None:
        return cell
    ours, affine = known.cell, known.cell.affine
    assert affine is not None

    def prepare(params: Params) -> Params:
        return params if isinstance(params, CellParams) else known.params(params)

    def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> State:
        state = cell.initial_state(params, batch_shape)
        if affine.slope is None or known.dtype is None:
            return state
        return jax.tree.map(lambda leaf: leaf.astype(known.dtype), state)

    def carried(new: State, old: State) -> State:
        return jax.tree.map(lambda a, b: a.astype(b.dtype), known.carry(new), old)

    def step(params: Params, state: State, x: Array) -> State:
        return carried(ours.step(prepare(params), known.state(state), x), state)

    derivative = affine.derivative
    if derivative is not None:
        by_hand = derivative

        def keep(state: State, a: Array, r: Array) -> tuple[State, Any]:
            new, kept = by_hand.keep(known.state(state), a, r)
            return carried(new, state), kept

        def pull(state: State, new: State, kept: Any, adjoint: State) -> tuple[State, Any, Any]:
            states = (known.state(state), known.state(new), kept, known.state(adjoint))
            past, projected, recurred = by_hand.pull(*states)
            return carried(past, adjoint), projected, recurred

        derivative = Derivative(keep, pull)
    return cell._replace(
        initial_state=initial_state,
        step=step,
        prepare=prepare,
        affine=Affine(
            project=lambda params, x: affine.project(prepare(params), x),
            recur=lambda params, state: affine.recur(prepare(params), known.state(state)),
            activate=lambda params, state, a, r: carried(
                affine.activate(prepare(params), known.state(state), a, r), state
            ),
            slope=affine.slope,
            derivative=derivative,
        ),
    )


def nnx_weights(cell: Any) -> dict[str, dict[str, Array]]:
    """The weights of a cell that `known_nnx` knows, as `nnx.to_pure_dict` would name them."""
    tree = {}
    for name in LAYERS[type(cell)]:
        layer = getattr(cell, name)
        tree[name] = {"kernel": layer.kernel[...]}
        if layer.bias is not None:
            tree[name]["bias"] = layer.bias[...]
    return tree


def _is_plain(layer: Any, cell: Any) -> bool:
    """Whether a linear map is x W + b and nothing else."""
    return (
        type(layer) is nnx.Linear
        and layer.dtype == cell.dtype
        and layer.precision is None
        and layer.dot_general is jax.lax.dot_general
        and layer.promote_dtype is nnx.nn.dtypes.promote_dtype
        and getattr(layer, "preferred_element_type", None) is None
    )


def _has_usual_gates(cell: Any) -> bool:
    return cell.gate_fn in SIGMOIDS and cell.activation_fn in TANHS


def _simple(cell: Any, size: int) -> Known | None:
    names = (name for functions, name in ACTIVATIONS if cell.activation_fn in functions)
    activation = next(names, None)
    if activation is None:
        return None
    ours = elman(size, activation)
    if cell.residual:
        ours = _with_residual(ours)
    return Known(_multiplying_in(ours, cell.dtype), _params_in(cell.dtype), *_one_leaf, cell.dtype)


def _lstm(cell: Any, size: int) -> Known | None:
    if not _has_usual_gates(cell):
        return None
    ours = _multiplying_in(lstm(size), cell.dtype)
    return Known(ours, _params_in(cell.dtype), lambda carry: LSTMState(*carry), tuple, cell.dtype)


def _gru(cell: Any, size: int) -> Known | None:
    if not _has_usual_gates(cell):
        return None
    ours = _multiplying_in(gru(size), cell.dtype)
    return Known(ours, _params_in(cell.dtype), *_one_leaf, cell.dtype)


def _mgu(cell: Any, size: int) -> Known | None:
    if not _has_usual_gates(cell):
        return None
    ours = _multiplying_in(mgu(size, reset_gate=cell.reset_gate), cell.dtype)
    return Known(ours, _params_in(cell.dtype), *_one_leaf, cell.dtype)


def _itself(state: Any) -> Any:
    return state


_one_leaf = (_itself, _itself)


def _params_in(dtype: Any) -> Callable[[Mapping[str, Any]], Params]:
    def params(tree: Mapping[str, Any]) -> Params:
        ours = from_flax(tree)
        return ours if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), ours)

    return params


def _with_residual(cell: Cell) -> Cell:
    """s_t = phi(x_t U + s_{t-1} W + b + s_{t-1}) from an Elman cell."""
    affine = cell.affine
    assert affine is not None
    assert affine.slope is not None
    phi, slope = affine.activate, affine.slope

    def keep(state: Array, a: Array, r: Array) -> tuple[Array, None]:
        return phi(None, state, a, r + state), None

    def pull(state: Array, new: Array, kept: None, adjoint: Array) -> tuple[Array, Array, Array]:
        delta = adjoint * slope(new)
        return delta, delta, delta

    with_residual = affine._replace(
        activate=lambda params, *step: keep(*step)[0],
        slope=None,
        derivative=Derivative(keep, pull),
    )
    return affine_cell(cell.init, cell.initial_state, with_residual)


def _multiplying_in(cell: Cell, dtype: Any) -> Cell:
    """The cell with inputs and states rounded to a type where they meet the weights.

    The state keeps its own type: with products in bfloat16 an LSTM's c is still summed in float32.
    """
    if dtype is None:
        return cell
    affine = cell.affine
    assert affine is not None

    def rounded(tree: State) -> State:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    derivative = affine.derivative
    if derivative is not None:
        pull = derivative.pull

        def typed_pull(*step: Any) -> tuple[State, Any, Any]:
            past, projected, recurred = pull(*step)
            return past, rounded(projected), rounded(recurred)

        derivative = derivative._replace(pull=typed_pull)
    typed: Affine = affine._replace(
        project=lambda params, x: affine.project(params, rounded(x)),
        recur=lambda params, state: affine.recur(params, rounded(state)),
        derivative=derivative,
    )
    return affine_cell(cell.init, cell.initial_state, typed, cell.emit)
