"""The task that settings name, the readout that it wants, and update rules by name."""

from collections.abc import Callable
from typing import Any

import optax

import rnn_jax
from experiments.cli.options import UsageError
from experiments.setup.named import named
from rnn_jax.model import Model
from rnn_jax.tasks.registry import TASKS
from rnn_jax.tasks.task import Task
from rnn_jax.training.auxiliary import auxiliary_model

TASK_HELP = f"{', '.join(TASKS)}, or my_module:my_task, `(length, batch size) -> Task`, of your own"
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": optax.sgd,
}


def model_for(task: Task, cell: rnn_jax.Cell) -> Model:
    """The cell with the readout that a task wants."""
    make = rnn_jax.last_only if task.last_only else rnn_jax.sequence_model
    return make(cell, task.output_size)


def auxiliary_model_for(task: Task, cell: rnn_jax.Cell) -> Model:
    """The same, with a readout of past inputs beside it."""
    make = rnn_jax.last_only if task.last_only else rnn_jax.sequence_model
    return auxiliary_model(make, cell, task.output_size, task.input_size)


def task_named(name: str, length: int, batch_size: int) -> Task:
    """The task of --task; `UsageError` where there is none, or it cannot have that length."""
    make = named("task", name, TASKS, "task")
    try:
        task = make(length, batch_size)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--task={name} --length={length}: {error}") from error
    if not isinstance(task, Task):
        raise UsageError(
            f"--task={name}: it returned {type(task).__name__}, but a Task of rnn_jax.tasks.task "
            "is wanted"
        )
    return task
