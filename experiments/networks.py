"""Networks to look at: fresh from an initializer, or out of the folder of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnn_jax
from experiments import sine as sine_experiment
from experiments.options import UsageError
from rnn_jax import initializers, losses, records
from rnn_jax.types import Array, Initializer, Params, State, StepLosses

CELLS = ("elman", "leaky", "layer_norm", "lstm", "gru")
WITH_ACTIVATION = ("elman", "leaky", "layer_norm")
"""Cells whose nonlinearity is to be chosen."""
SPARSE_NONZEROS = 15
"""Entries in each row of a sparse W."""
RECURRENT_INITS: dict[str, Callable[[Any], Initializer]] = {
    "orthogonal": initializers.orthogonal,
    "gaussian": initializers.gaussian,
    "identity": initializers.identity,
    "torch": lambda gain: _scaled(gain, initializers.uniform_torch),
    "spectral": initializers.spectral_radius,
    "sparse": lambda gain: initializers.sparse(SPARSE_NONZEROS, rho=gain),
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


def check_cell(recurrent_init: str, hidden_size: int) -> None:
    """`UsageError` where a W of this size cannot be drawn in this way."""
    if recurrent_init == "sparse" and hidden_size < SPARSE_NONZEROS:
        raise UsageError(
            f"--hidden_size={hidden_size}: a sparse W has {SPARSE_NONZEROS} entries in each row; "
            "give at least as many units, or another --recurrent_init"
        )


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
    check_cell(recurrent_init, hidden_size)
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


def network_of_run(folder: str, moment: str) -> Network:
    """The network of a finished run of the sine experiment, on a batch of its own task.

    Args:
        folder: the run's folder.
        moment: "start" or "end" of training.

    Raises:
        ValueError: the folder holds no such run.
    """
    config = sine_experiment.config_of(records.load_config(folder))
    # A batch of it is made below, however large a file says that it is.
    sine_experiment.check_memory(dataclasses.replace(config, num_steps=1))
    parts = sine_experiment.setup(config)
    like: Any = jax.eval_shape(lambda: parts.model.init(jax.random.key(0), 1))
    if not records.tree_exists(folder, f"params_{moment}"):
        raise ValueError(
            f"--run={folder}: no parameters of the {moment} of training; let the run come to its "
            "end first"
        )
    params = records.load_tree(folder, f"params_{moment}", like)
    batch = parts.sample(jax.random.fold_in(jax.random.key(config.seed), 1))
    state = parts.model.cell.initial_state(params.cell, batch.inputs.shape[1:-1])

    def step_losses(states: State) -> Array:
        outputs = parts.model.readout(params.readout, parts.model.cell.emit(states))
        return losses.squared_error(outputs, batch.targets) / len(batch.targets)

    params_cell = jax.tree.map(jnp.asarray, params.cell)
    return Network(parts.model.cell, params_cell, state, batch.inputs, step_losses)
