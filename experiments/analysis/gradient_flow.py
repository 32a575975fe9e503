"""The gradient flow of one network as pure functions, for programs of many networks."""

from typing import Any

import jax

from experiments.setup.cells import cell_at
from rnn_jax import gradflow
from rnn_jax.cells import Cell
from rnn_jax.gradflow import LastStep
from rnn_jax.model import Model, ModelParams
from rnn_jax.sweep import Fit
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, Key, Params, State

START_STD = 0.1
"""Of the initial state of an untrained network."""


def measure_flow(
    cell: Cell, params: Params, state: State, xs: Array, loss: LastStep
) -> dict[str, Array]:
    """ln|dL/ds_t| `[T, B]` of the last step's loss, and the largest Lyapunov exponent."""
    return {
        "log_norms": gradflow.state_gradients(cell, params, state, xs, loss),
        "exponent": gradflow.lyapunov_spectrum(
            cell, params, state, xs, num_exponents=1, burn_in=xs.shape[0] // 5
        )[0],
    }


def untrained(settings: dict[str, Any], batch_size: int, input_size: int) -> Fit:
    """Gradient flow at initialization; arguments are those of `untrained_network`."""

    def fit(hparams: dict[str, Array], key: Key) -> dict[str, Array]:
        return measure_flow(*untrained_network(settings, batch_size, input_size, hparams, key))

    return fit


def untrained_network(
    settings: dict[str, Any],
    batch_size: int,
    input_size: int,
    hparams: dict[str, Array],
    key: Key,
) -> tuple[Cell, Params, State, Array, LastStep]:
    """A network at initialization, on white inputs, with the loss v . h_T, as `gradflow` takes it.

    Args:
        settings: cell, activation, recurrent_init, hidden_size, length.
        batch_size: B.
        input_size: D. The mean-field prediction wants an input of steady variance: many of them.
        hparams: numbers of the cell, and input_std.
        key: of all that is drawn.
    """
    cell = cell_at(settings, hparams)
    weights_key, state_key, inputs_key, loss_key = jax.random.split(key, 4)
    params = cell.init(weights_key, input_size)
    # Exactly at 0 and without input, tanh would stay on a fixed point that is unstable.
    state = jax.tree.map(
        lambda s: START_STD * jax.random.normal(state_key, s.shape),
        cell.initial_state(params, (batch_size,)),
    )
    shape = (settings["length"], batch_size, input_size)
    xs = hparams["input_std"] * jax.random.normal(inputs_key, shape)
    direction = jax.random.normal(loss_key, (cell.emit(state).shape[-1],))
    return cell, params, state, xs, LastStep(lambda last: cell.emit(last) @ direction)


def last_loss(model: Model, params: ModelParams, task: Task, batch: Batch) -> LastStep:
    """The loss of the last step as a function of the last state."""

    def loss(last: State) -> Array:
        outputs = model.readout(params.readout, model.cell.emit(last))
        if task.last_only:
            return task.loss(outputs, batch.targets)
        return task.loss(outputs[None], batch.targets[-1:])[0]

    return LastStep(loss)
