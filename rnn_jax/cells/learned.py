"""The initial state as a parameter."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.cells.cell import Cell, affine_within, prepare_within
from rnn_jax.types import Array, Key, Params, State


class LearnedStateParams(NamedTuple):
    """A cell's parameters, and the state s_0 of one example, leaves `[H]`."""

    cell: Params
    state: State


def learned_initial_state(cell: Cell) -> Cell:
    """The same cell with s_0 among its parameters, zero at first.

    Args:
        cell: any `Cell`. In a stack wrap each layer, which `unroll` then still runs by itself.

    Returns:
        A `Cell` with `LearnedStateParams`; `initial_state` repeats the learned state over the
        batch. s_0 learns wherever `initial_state(params, batch_shape)` is called inside the
        loss: its gradient is the sum of dL/ds_0 over the batch.

    Source: Forcada & Carrasco, "Learning the initial state of a second-order recurrent neural
    network during regular-language inference", Neural Computation 7 (1995).
    """

    def init(key: Key, input_size: int) -> LearnedStateParams:
        params = cell.init(key, input_size)
        return LearnedStateParams(params, cell.initial_state(params))

    def initial_state(params: LearnedStateParams, batch_shape: tuple[int, ...] = ()) -> State:
        return jax.tree.map(lambda s: jnp.broadcast_to(s, (*batch_shape, *s.shape)), params.state)

    def step(params: LearnedStateParams, state: State, x: Array) -> State:
        return cell.step(params.cell, state, x)

    affine, prepare = affine_within(cell.affine), prepare_within(cell)
    return Cell(init, initial_state, step, cell.emit, affine, prepare=prepare)
