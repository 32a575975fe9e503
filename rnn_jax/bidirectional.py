"""Two cells over a sequence, one from each end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.cells import Cell
from rnn_jax.checks import check_fit
from rnn_jax.placement import align, on_its_mesh
from rnn_jax.types import Array, Key, State
from rnn_jax.unroll import unroll_in_order


class Directions(NamedTuple):
    """Something of the cell that reads forward, and the same of the one that reads backward."""

    forward: Any
    backward: Any


class Bidirectional(NamedTuple):
    """Two cells that read a sequence from its two ends.

    No `Cell`: what it emits at step t depends on inputs after t, so it can neither be stepped nor
    run freely. `bidirectional_unroll` runs it.

    Attributes:
        init: `(key, input_size) -> params`, a `Directions`.
        initial_state: `(params, batch_shape=()) -> state`, a `Directions`.
        emit: `states -> [..., 2H]`, what both cells emit, side by side.
        cells: the two cells.
    """

    init: Callable[[Key, int], Directions]
    initial_state: Callable[..., Directions]
    emit: Callable[[Directions], Array]
    cells: Directions


def bidirectional(forward: Cell, backward: Cell) -> Bidirectional:
    """A cell for each direction; they share nothing.

    Args:
        forward: reads x_1 to x_T.
        backward: reads x_T to x_1.

    Source: Schuster & Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on
    Signal Processing 45 (1997).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> both = rnn_jax.bidirectional(rnn_jax.gru(8), rnn_jax.gru(8))
    >>> params = both.init(jax.random.key(0), 3)
    >>> xs, lengths = jnp.ones((5, 2, 3)), jnp.array([5, 2])
    >>> state = both.initial_state(params, (2,))
    >>> states = rnn_jax.bidirectional_unroll(both, params, state, xs, lengths=lengths)
    >>> both.emit(states).shape
    (5, 2, 16)
    """
    cells = Directions(forward, backward)

    def init(key: Key, input_size: int) -> Directions:
        keys = jax.random.split(key)
        return Directions(*(c.init(k, input_size) for c, k in zip(cells, keys, strict=True)))

    def initial_state(params: Directions, batch_shape: tuple[int, ...] = ()) -> Directions:
        return Directions(
            *(c.initial_state(p, batch_shape) for c, p in zip(cells, params, strict=True))
        )

    def emit(states: Directions) -> Array:
        return jnp.concatenate([c.emit(s) for c, s in zip(cells, states, strict=True)], axis=-1)

    return Bidirectional(init, initial_state, emit, cells)


@on_its_mesh
def bidirectional_unroll(
    network: Bidirectional,
    params: Directions,
    state: Directions,
    xs: Array,
    *,
    perturbations: Directions | None = None,
    lengths: Array | None = None,
) -> Directions:
    """All states of both cells; index t of either is where it stands when it has read x_t.

    Args:
        network: made by `bidirectional`.
        params: its parameters.
        state: where the forward cell starts before x_1, and the backward one before x_T.
        xs: `[T, B, D]` (or `[T, D]`).
        perturbations: zeros like the result; their gradient is dL/ds_t of either cell.
        lengths: `[B]`; each example is read backward from its own last true step. Padding keeps
            the state that a cell ended with: of the backward cell, the one at the first step.

    Returns:
        States of both cells, leaves `[T, B, H]`.

    Raises:
        ValueError: as in `rnn_jax.unroll`.
    """
    cells = network.cells
    if lengths is not None:
        lengths = jnp.asarray(lengths)
    xs = check_fit(cells.forward, params.forward, state.forward, xs)
    params, xs, state, perturbations, lengths = align(
        params, xs.ndim - 2, (xs, 1), (state, 0), (perturbations, 1), (lengths, 0)
    )
    given = perturbations or Directions(None, None)
    forward = unroll_in_order(
        cells.forward,
        params.forward,
        state.forward,
        xs,
        given.forward,
        lengths,
        label="forward",
    )

    def reverse(tree: State) -> State:
        return reverse_sequences(tree, lengths, xs.ndim - 2)

    backward = unroll_in_order(
        cells.backward,
        params.backward,
        state.backward,
        reverse(xs),
        reverse(given.backward),
        lengths,
        arrange=reverse,
        label="backward",
    )
    return Directions(forward, reverse(backward))


def reverse_sequences(tree: State, lengths: Array | None, batch_ndim: int) -> State:
    """Each example's steps in reverse order, leaves `[T, *batch, ...]`; padding stays in place."""
    if lengths is None:
        return jax.tree.map(lambda leaf: leaf[::-1], tree)

    def reverse(leaf: Array) -> Array:
        steps = jnp.arange(leaf.shape[0]).reshape((-1,) + (1,) * batch_ndim)
        steps = jnp.broadcast_to(steps, leaf.shape[: 1 + batch_ndim])
        ends = jnp.broadcast_to(lengths, steps.shape)
        order = steps + jnp.where(steps < ends, ends - 1 - 2 * steps, 0)
        order = jnp.expand_dims(order, range(order.ndim, leaf.ndim))
        return jnp.take_along_axis(leaf, order, axis=0)

    return jax.tree.map(reverse, tree)
