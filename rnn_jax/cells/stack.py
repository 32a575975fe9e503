"""Depth: cells on top of each other."""

from collections.abc import Sequence

import jax

from rnn_jax.cells.cell import Cell, emit_size
from rnn_jax.types import Array, Key, Params, State


def stack(cells: Sequence[Cell]) -> Cell:
    """Cells on top of each other: layer l + 1 reads what layer l emits at the same step.

        s^1_t = step_1(theta^1, s^1_{t-1}, x_t)
        s^l_t = step_l(theta^l, s^l_{t-1}, emit_{l-1}(s^{l-1}_t))

    Args:
        cells: the layers, bottom first; any cells, stacks included.

    Returns:
        A `Cell` whose params and state are tuples with an entry for each layer; `emit` is the top
        layer's. `unroll` runs its layers one after the other, each with its own adjoint;
        what steps a cell by itself (`plain_unroll`, a free run, `gradflow`) takes whole steps.
        For dropout between layers see `variational_dropout`.
        dL/ds_t is by the state that a step hands on: a lower layer's own effect on the layers above
        within step t is part of the step, so where only the top is read its dL/ds_T is 0.

    Raises:
        ValueError: no cell, or one of something else.

    Source: El Hihi & Bengio, "Hierarchical recurrent neural networks for long-term dependencies",
    NIPS (1995).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> deep = rnn_jax.stack([rnn_jax.lstm(8), rnn_jax.gru(4)])
    >>> params = deep.init(jax.random.key(0), input_size=3)
    >>> states = rnn_jax.unroll(deep, params, deep.initial_state(params), jnp.ones((5, 3)))
    >>> deep.emit(states).shape
    (5, 4)
    """
    layers = tuple(cells)
    wrong = [type(layer).__name__ for layer in layers if not isinstance(layer, Cell)]
    if not layers or wrong:
        raise ValueError(
            f"stack wants a sequence of at least one Cell, but was given {wrong or 'none'}; "
            "for example stack([rnn_jax.lstm(64), rnn_jax.lstm(64)])"
        )

    def init(key: Key, input_size: int) -> tuple[Params, ...]:
        params = []
        for layer, layer_key in zip(layers, jax.random.split(key, len(layers)), strict=True):
            params.append(layer.init(layer_key, input_size))
            input_size = emit_size(layer, params[-1])
        return tuple(params)

    def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> tuple[State, ...]:
        return tuple(
            layer.initial_state(own, batch_shape) for layer, own in zip(layers, params, strict=True)
        )

    def step(params: Params, state: State, x: Array) -> tuple[State, ...]:
        new = []
        for layer, own, old in zip(layers, params, state, strict=True):
            new.append(layer.step(own, old, x))
            x = layer.emit(new[-1])
        return tuple(new)

    return Cell(init, initial_state, step, lambda state: layers[-1].emit(state[-1]), None, layers)
