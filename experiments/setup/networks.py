"""Cells by name, and networks fresh from an initializer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnn_jax
from rnn_jax import initializers
from rnn_jax.types import Array, Initializer, Params, State, StepLosses

CELLS = ("elman", "leaky", "layer_norm", "lstm", "gru")
WITH_ACTIVATION = ("elman", "leaky", "layer_norm")
"""Cells whose nonlinearity is to be chosen."""
RECURRENT_INITS: dict[str, Callable[[Any], Initializer]] = {
    "orthogonal": initializers.orthogonal,
    "gaussian": initializers.gaussian,
    "identity": initializers.identity,
    "torch": lambda gain: _scaled(gain, initializers.uniform_torch),
    "spectral": initializers.spectral_radius,
    "sparse": lambda gain: initializers.sparse(rho=gain),
}
"""name -> (gain -> initializer of W)."""


class Network(NamedTuple):
    """A network on data, ready to be measured.

    Attributes:
        cell: its recurrent part.
        params: the cell's parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`.
    """

    cell: rnn_jax.Cell
    params: Params
    state: State
    xs: Array
    step_losses: StepLosses


def _scaled(gain: float, init: Initializer) -> Initializer:
    return lambda *args: gain * init(*args)


def make_cell(
    name: str,
    hidden_size: int,
    activation: str,
    recurrent_init: str,
    gain: float | Array,
    *,
    leak: float | Array = 0.1,
    bias_std: float | Array = 0.0,
    forget_bias: float | Array = 1.0,
    kernel_init: Initializer | None = None,
) -> rnn_jax.Cell:
    """A cell by name; U is scaled so that unit inputs give unit pre-activations, unless given.

    Numbers may be traced: a sweep varies them within one program.
    """
    W = RECURRENT_INITS[recurrent_init](gain)
    bias = initializers.normal(bias_std)
    if name == "elman":
        return rnn_jax.elman(hidden_size, activation, kernel_init, W, bias)
    if name == "leaky":
        return rnn_jax.leaky(hidden_size, activation, leak, kernel_init, W, bias)
    if name == "layer_norm":
        return rnn_jax.layer_norm_elman(hidden_size, activation, kernel_init, W, bias)
    if name == "lstm":
        return rnn_jax.lstm(hidden_size, kernel_init, W, forget_bias=forget_bias)
    return rnn_jax.gru(hidden_size, kernel_init, W)


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


CELL_HPARAMS = {
    "elman": ("gain", "bias_std"),
    "leaky": ("gain", "bias_std", "leak"),
    "layer_norm": ("gain", "bias_std"),
    "lstm": ("gain", "forget_bias"),
    "gru": ("gain",),
}
"""Cell -> the hyperparameters that its initialization reads."""


def cell_at(settings: Mapping[str, Any], hparams: Mapping[str, Array]) -> rnn_jax.Cell:
    """The cell of settings that many networks share, at one network's hyperparameters."""
    name = settings["cell"]
    others: dict[str, Any] = {key: hparams[key] for key in CELL_HPARAMS[name] if key != "gain"}
    return make_cell(
        name,
        settings["hidden_size"],
        settings.get("activation", "tanh"),
        settings["recurrent_init"],
        hparams["gain"],
        **others,
    )
