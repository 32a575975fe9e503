"""Cells of Equinox. Its modules are pytrees, so nothing of Equinox itself is needed here."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax.bridge.flax_params import assemble
from rnn_jax.bridge.foreign import Foreign, as_cell, named_errors
from rnn_jax.bridge.known import Known, with_structure
from rnn_jax.cells import Cell, GRUParams, LSTMParams, LSTMState, gru, lstm
from rnn_jax.types import Array, Key, Params, State


def from_equinox(
    cell: Callable[..., Any],
    *,
    input_shape: tuple[int, ...] | None = None,
    hidden: Any = None,
    emit: Callable[[State], Array] | None = None,
) -> Cell:
    """A recurrent cell of Equinox, or a user's own in its style, as a `Cell`.

    Args:
        cell: `key -> cell`, or a cell itself, whose own weights `init` then returns whatever the
            key: an `equinox.nn.GRUCell`, `LSTMCell` or any function `(input, hidden) -> hidden`
            of one example.
        input_shape: the shape of one example's input at one step, where the cell has no
            `input_size` that says it.
        hidden: what one example starts from, a pytree of arrays `[H]`; zeros of the cell's
            `hidden_size` unless given.
        emit: `hidden -> [..., H]`; h of an LSTM and a hidden state of one leaf need none.

    Returns:
        A `Cell`. Its params are the cell with its floating arrays alone (`equinox.filter`), its
        state the hidden one. `GRUCell` and `LSTMCell` have `affine` parts.

    Raises:
        ValueError: as in `from_linen`; a cell of which nothing says what it starts from.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.bridge.from_equinox(
    ...     lambda x, h: jnp.tanh(x + 0.9 * h), hidden=jnp.zeros(3), input_shape=(3,)
    ... )
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state = cell.initial_state(params, batch_shape=(8,))
    >>> rnn_jax.unroll(cell, params, state, jnp.ones((50, 8, 3))).shape
    (50, 8, 3)
    """
    if not callable(cell):
        raise ValueError(
            "from_equinox wants a cell (input, hidden) -> hidden or a function key -> cell, but "
            f"was given {cell!r}; for example lambda key: equinox.nn.GRUCell(3, 16, key=key)"
        )
    make = cell if _takes_a_key_alone(cell) else lambda key: cell
    with named_errors("the factory", "to make a cell of a key", "let it take a key alone"):
        example = make(jax.random.key(0))
    name = type(example).__name__
    static = jax.tree.map(lambda leaf: None if is_weight(leaf) else leaf, example)
    start = hidden_of(example, hidden)
    shape = input_shape or (getattr(example, "input_size", 1),)

    def init(key: Key, shape: tuple[int, ...]) -> Params:
        del shape
        return weights_of(make(key))

    def carry(shape_of_inputs: tuple[int, ...]) -> Any:
        batch = shape_of_inputs[: len(shape_of_inputs) - len(shape)]
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch, *leaf.shape)), start)

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Any]:
        one: Any = functools.partial(_step, params, static)
        for _ in range(x.ndim - len(shape)):
            one = jax.vmap(one)
        new = one(x, state)
        return new, new[0] if is_of_equinox(example, "LSTMCell") else new

    bridged = as_cell(Foreign(name, init, carry, step), input_shape, shape, emit)
    return with_structure(bridged, known_equinox(example))


def known_equinox(cell: Any) -> Known | None:
    """The cell of ours that one of Equinox is; None for one that is not known."""
    if is_of_equinox(cell, "LSTMCell"):
        return Known(lstm(cell.hidden_size), _lstm_params, _lstm_state, _lstm_hidden)
    if is_of_equinox(cell, "GRUCell"):
        return Known(gru(cell.hidden_size), _gru_params, lambda h: h, lambda s: s)
    return None


def hidden_of(cell: Any, hidden: Any = None) -> Any:
    """What one example starts from: as given, or zeros of the cell's `hidden_size`."""
    if hidden is not None:
        return jax.tree.map(jnp.asarray, hidden)
    size = getattr(cell, "hidden_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"nothing says what {type(cell).__name__} starts from: give hidden=, one example's "
            "hidden state such as jnp.zeros(16), or the cell an attribute hidden_size"
        )
    types = [leaf.dtype for leaf in jax.tree.leaves(weights_of(cell))]
    zeros = jnp.zeros(size, jnp.result_type(*types) if types else None)
    return (zeros, zeros) if is_of_equinox(cell, "LSTMCell") else zeros


def is_weight(leaf: Any) -> bool:
    """Whether a leaf is a floating array, as `equinox.is_inexact_array` says."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def weights_of(cell: Any) -> Params:
    """The cell with its floating arrays alone, None in the place of the other leaves."""
    return jax.tree.map(lambda leaf: leaf if is_weight(leaf) else None, cell)


def is_of_equinox(cell: Any, name: str) -> bool:
    """Whether a cell is Equinox's own class of that name, no subclass of it."""
    kind = type(cell)
    return kind.__name__ == name and kind.__module__.split(".")[0] == "equinox"


def _step(params: Params, static: Any, x: Array, state: Any) -> Any:
    cell = jax.tree.map(
        lambda weight, other: other if weight is None else weight,
        params,
        static,
        is_leaf=lambda leaf: leaf is None,
    )
    return cell(x, state)


def _takes_a_key_alone(cell: Any) -> bool:
    try:
        parameters = inspect.signature(cell).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 1


def _lstm_params(cell: Any) -> Any:
    return assemble(LSTMParams, cell.weight_ih.T, cell.weight_hh.T, cell.bias, None)


def _gru_params(cell: Any) -> Any:
    U, W = cell.weight_ih.T, cell.weight_hh.T
    bias_n = cell.bias_n
    recurrent = None
    if bias_n is not None:
        recurrent = jnp.zeros_like(U[0]).at[-bias_n.size :].set(bias_n)
    return assemble(GRUParams, U, W, cell.bias, recurrent)


def _lstm_state(hidden: Any) -> LSTMState:
    h, c = hidden
    return LSTMState(c=c, h=h)


def _lstm_hidden(state: LSTMState) -> tuple[Array, Array]:
    return state.h, state.c
