"""How networks learn a task: a method of training and a task, made into an algorithm."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import rnn_jax
from experiments.analysis.gradient_flow import last_loss, measure_flow
from experiments.setup.method import (
    Method,
    floss_iterations,
    floss_size,
    lengthen_of,
    model_of,
    objective_of,
    optimizer_of,
    regularizer_of,
)
from experiments.setup.switches import Lengthen, lengthened
from experiments.training.algorithm import (
    Algorithm,
    Arrays,
    Hparams,
    bptt_algorithm,
    chunk_summary,
    streams,
)
from experiments.training.loop import Schedule
from rnn_jax import objectives
from rnn_jax.model import Model, ModelParams
from rnn_jax.tasks.task import Task
from rnn_jax.training import TrainState, regularizers
from rnn_jax.types import Array, Batch, Key, State

FLOSS_STREAM = 1
"""Folded into a network's key for the data of flossing."""


class Data(NamedTuple):
    """What is learned, and what is asked of those who have learned it.

    Attributes:
        task: to train on.
        examples: `key -> Batch` of sequences to test on.
        num_steps: training iterations of a network that is not done before.
        flow_size: sequences whose gradient is measured, the first of a batch of `task`.
        ends_training: whether a network that has solved the task on the examples trains no more;
            False where the examples evaluate only, and choose nothing.
    """

    task: Task
    examples: Callable[[Key], Batch]
    num_steps: int
    flow_size: int = 16
    ends_training: bool = True


def task_algorithm(method: Method, data: Data, length: int, batch_size: int) -> Algorithm:
    """How a network learns a task; hparams are learning_rate, and gain where it is an axis.

    Args:
        method: how to train.
        data: on what.
        length: T, for settings that depend on it.
        batch_size: B.
    """
    lengthen = lengthen_of(method, length)
    trained = lengthened(data.task, lengthen, by_chance=True)
    data = _evaluated(data, lengthen)
    task = data.task
    model = model_of(method, task, length)
    evaluated = objectives.task_objective(model, task)

    def optimizer(hparams: Hparams) -> optax.GradientTransformation:
        return optimizer_of(method, hparams["learning_rate"], data.num_steps)

    return bptt_algorithm(
        objective_of(method, model, trained),
        optimizer,
        trained.sample,
        input_size=task.input_size,
        batch_size=batch_size,
        # Only the start depends on the gain: all else is of one model.
        initial_model=lambda hparams: model_of(method, task, length, hparams.get("gain")),
        regularize=regularizer_of(method),
        summarize=chunk_summary,
        evaluate=lambda state, key: mean_loss_and_wrong(
            evaluated, task, state.params, data.examples(streams(key).test)
        ),
        measure=lambda state, key: flow_of_task(model, data, state.params, batch_size, key),
        intervene=_floss(method, model, task) if method.floss_at else None,
        intervene_at=tuple(floss_iterations(method)),
    )


def _evaluated(data: Data, lengthen: Lengthen | None) -> Data:
    """The data with the inputs that a network sees when it is evaluated."""
    if lengthen is None:
        return data

    def examples(key: Key) -> Batch:
        batch = data.examples(key)
        return batch._replace(inputs=lengthen(None, batch.inputs))

    return data._replace(task=lengthened(data.task, lengthen, by_chance=False), examples=examples)


def task_schedule(algorithm: Algorithm, data: Data, test_every: int) -> Schedule:
    """A test after every chunk; it may end the training of networks that have solved the task."""
    solved_wrong = data.task.solved_wrong

    def is_solved(results: Arrays) -> np.ndarray:
        return results["wrong"][:, -1] <= solved_wrong

    return Schedule(
        data.num_steps,
        test_every,
        intervene_at=algorithm.intervene_at,
        is_solved=is_solved if data.ends_training else None,
    )


def flow_of_task(
    model: Model, data: Data, params: ModelParams, batch_size: int, key: Key
) -> Arrays:
    """The gradient's flow on the first sequences of a batch of the task."""
    task = data.task
    batch = task.sample(jax.random.fold_in(key, 0))
    size = min(data.flow_size, batch_size)
    batch = Batch(batch.inputs[:, :size], _first(task, batch.targets, size))
    start = _fresh_carry(model, params, size)
    loss = last_loss(model, params, task, batch)
    return measure_flow(model.cell, params.cell, start, batch.inputs, loss)


def _first(task: Task, targets: Array, size: int) -> Array:
    """The targets of a batch's first examples."""
    return targets[:size] if task.last_only else targets[:, :size]


def _fresh_carry(model: Model, params: ModelParams, batch_size: int) -> State:
    return model.cell.initial_state(params.cell, (batch_size,))


def mean_loss_and_wrong(
    objective: objectives.Objective, task: Task, params: ModelParams, batch: Batch
) -> Arrays:
    """test_loss, and wrong, the share of wrong sequences, of a batch; scalars."""
    model = objective.model
    carry = _fresh_carry(model, params, batch.inputs.shape[1])
    zeros = rnn_jax.zero_perturbations(carry, batch.inputs.shape[0])
    run = objective.run(params, carry, batch, zeros)
    outputs = model.readout(params.readout, model.cell.emit(model.select(run.states)))
    return {
        "test_loss": objectives.mean_loss(run),
        "wrong": jnp.mean(task.wrong(outputs, batch.targets)),
    }


def _floss(method: Method, model: Model, task: Task) -> Callable[[TrainState, Key], TrainState]:
    """Flossing steps on the task's own inputs; the optimizer of training is left as it is."""
    optimizer = optax.adam(method.floss_rate)

    def floss(state: TrainState, key: Key) -> TrainState:
        key = jax.random.fold_in(jax.random.fold_in(key, FLOSS_STREAM), state.step)
        carry = _fresh_carry(model, state.params, method.floss_batch)

        def body(now: regularizers.FlossState, _: None) -> tuple[regularizers.FlossState, None]:
            batch = task.sample(jax.random.fold_in(key, now.step))
            xs = batch.inputs[: method.floss_length, : method.floss_batch]
            new, _metrics = regularizers.floss_step(
                model.cell, optimizer, now, carry, xs, floss_size(method), method.floss_burn_in
            )
            return new, None

        start = regularizers.floss_init(optimizer, state.params.cell)
        end, _ = lax.scan(body, start, length=method.floss_steps)
        params = state.params._replace(cell=end.params)
        return TrainState(state.step, params, state.opt_state, state.carry)

    return floss
