"""The networks of a sweep that learn: their gradient flow before, half-way and after."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analysis.gradient_flow import last_loss, measure_flow
from experiments.analysis.sweep_theory import predicted_slope
from experiments.setup.cells import cell_at
from experiments.setup.tasks import OPTIMIZERS, model_for, task_named
from experiments.training.algorithm import (
    Algorithm,
    Arrays,
    Hparams,
    bptt_algorithm,
    losses_and_last_trace,
    streams,
)
from experiments.training.groups import Training
from experiments.training.loop import END, START, Schedule
from experiments.training.outcome import Row
from experiments.training.task_training import mean_loss_and_wrong
from rnn_jax import objectives, training
from rnn_jax.model import Model
from rnn_jax.tasks.task import Task
from rnn_jax.training import optim
from rnn_jax.types import Array, Key

HALF = "half"
STAGES = (START, HALF, END)
CHUNK = 50
"""Iterations in a chunk; after each one profile is kept."""
TEST_SEQUENCES = 400


def sweep_training(
    settings: Mapping[str, Any], task_name: str, optimizer: str, batch_size: int, num_steps: int
) -> Training:
    """How the networks of a sweep's group learn a task.

    Args:
        settings: cell, activation, recurrent_init, hidden_size, length.
        task_name: as --task has it.
        optimizer: of `OPTIMIZERS`.
        batch_size: B.
        num_steps: iterations of each.
    """
    task = task_named(task_name, settings["length"], batch_size)
    chunk = min(CHUNK, num_steps)
    half = chunk * math.ceil(num_steps / (2 * chunk))
    return Training(
        _algorithm(settings, task, optimizer, batch_size),
        Schedule(num_steps, chunk, stages={HALF: min(half, num_steps)}),
    )


def _algorithm(
    settings: Mapping[str, Any], task: Task, optimizer: str, batch_size: int
) -> Algorithm:
    def model_at(hparams: Mapping[str, Any]) -> Model:
        return model_for(task, cell_at(settings, hparams))

    # Hyperparameters of the cell act on its initial parameters alone.
    model = model_at({})
    objective = objectives.task_objective(model, task)

    def chain(hparams: Hparams) -> optax.GradientTransformation:
        bound = jnp.where(hparams["clip_norm"] > 0, hparams["clip_norm"], jnp.inf)
        return optim.recorded(OPTIMIZERS[optimizer](hparams["learning_rate"]), bound)

    def measure(state: training.TrainState, key: Key) -> Arrays:
        batch = task.sample(jax.random.fold_in(key, 0))
        params = state.params
        start = model.cell.initial_state(params.cell, (batch_size,))
        loss = last_loss(model, params, task, batch)
        flow = measure_flow(model.cell, params.cell, start, batch.inputs, loss)
        return flow | _test(objective, task, state, streams(key).test, batch_size)

    return bptt_algorithm(
        objective,
        chain,
        task.sample,
        input_size=task.input_size,
        batch_size=batch_size,
        initial_model=model_at,
        summarize=losses_and_last_trace,
        measure=measure,
    )


def _test(
    objective: objectives.Objective,
    task: Task,
    state: training.TrainState,
    key: Key,
    batch_size: int,
) -> dict[str, Array]:
    """test_loss and wrong on sequences that were not trained on."""

    def of_batch(index: Array) -> dict[str, Array]:
        batch = task.sample(jax.random.fold_in(key, index))
        return mean_loss_and_wrong(objective, task, state.params, batch)

    count = math.ceil(TEST_SEQUENCES / batch_size)
    return jax.tree.map(jnp.mean, jax.lax.map(of_batch, jnp.arange(count)))


@functools.lru_cache(maxsize=64)
def _input_std(task_name: str, length: int, batch_size: int) -> float:
    """Of x_t U over the units: the mean square input, U being normal with variance 1/D."""
    task = task_named(task_name, length, batch_size)
    inputs = np.asarray(task.sample(jax.random.key(0)).inputs)
    return float(np.sqrt(np.mean(np.square(inputs))))


def predict(task_name: str, batch_size: int, point: Row) -> Row:
    """What theory says of a fresh network on the task, for its line."""
    return {
        "predicted_slope": predicted_slope(
            point["cell"],
            point.get("activation", ""),
            point.get("recurrent_init", ""),
            point.get("gain", 1.0),
            _input_std(task_name, point["length"], batch_size),
            point.get("bias_std", 0.0),
        )
    }
