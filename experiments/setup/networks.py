"""A network on data, and one that is fresh from an initializer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import rnn_jax
from rnn_jax.gradflow.losses import Losses
from rnn_jax.types import Array, Params, State


class Network(NamedTuple):
    """A network on data, ready to be measured.

    Attributes:
        cell: its recurrent part.
        params: the cell's parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`, or a `LastStep`.
    """

    cell: rnn_jax.Cell
    params: Params
    state: State
    xs: Array
    step_losses: Losses


def fresh_network(
    cell: rnn_jax.Cell, seed: int, num_steps: int, batch_size: int, input_std: float, loss: str
) -> Network:
    """A network at initialization, on independent normal inputs, with the loss v . h_t.

    Args:
        cell: any `Cell`.
        seed: of weights, inputs and v, a random unit vector.
        num_steps: T.
        batch_size: B.
        input_std: standard deviation of the inputs, one a step.
        loss: "last" counts the last step alone, "every" each of them.
    """
    weights_key, inputs_key, loss_key = jax.random.split(jax.random.key(seed), 3)
    params = cell.init(weights_key, 1)
    state = cell.initial_state(params, (batch_size,))
    xs = input_std * jax.random.normal(inputs_key, (num_steps, batch_size, 1))
    direction = jax.random.normal(loss_key, (cell.emit(state).shape[-1],))
    direction = direction / jnp.linalg.norm(direction)
    counts = jnp.ones(num_steps) if loss == "every" else jnp.zeros(num_steps).at[-1].set(1)

    def step_losses(states: State) -> Array:
        values = cell.emit(states) @ direction
        return values * jnp.broadcast_to(counts[:, None], values.shape)

    return Network(cell, params, state, xs, step_losses)
