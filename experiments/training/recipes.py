"""A method and a task, made into the few programs by which networks side by side learn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import rnn_jax
from experiments.analysis.sweep_fits import Numbers, measure_flow
from experiments.setup.method import (
    Method,
    floss_iterations,
    floss_size,
    model_of,
    objective_of,
    optimizer_of,
    regularizer_of,
)
from experiments.training.sweep_tasks import last_loss
from rnn_jax import objectives, training
from rnn_jax.model import Model, ModelParams
from rnn_jax.tasks.task import Task
from rnn_jax.training import regularizers
from rnn_jax.training.step import TrainState
from rnn_jax.types import Array, Batch, Key, State

FLOSS_STREAM = 1
"""Folded into a network's key for the data of flossing."""

Learner = tuple[Numbers, TrainState]
"""A network's numbers, and where its training stands."""


class Data(NamedTuple):
    """What is learned, and what is asked of those who have learned it.

    Attributes:
        task: to train on.
        examples: `key -> Batch` of sequences to test on.
        test_size: sequences in a batch of examples.
        flow_size: sequences whose gradient is measured, the first of a batch of `task`.
        ends_training: whether a network that has solved the task on the examples trains no more;
            False where the examples are to judge only, and choose nothing.
    """

    task: Task
    examples: Callable[[Key], Batch]
    test_size: int
    flow_size: int = 16
    ends_training: bool = True


class Recipe(NamedTuple):
    """The programs of one method on one task, each of one network, pure.

    Attributes:
        init: `(numbers, key) -> TrainState`.
        train: `((numbers, state), key) -> (TrainState, name -> array)`, `test_every` steps and
            what they told, then a test.
        flow: `((numbers, state), key) -> name -> array`, the gradient's flow as it is now.
        floss: `((numbers, state), key) -> TrainState`, flossing steps, or None.
        floss_at: iterations before which `floss` runs.
        num_steps: training iterations in all.
        test_every: iterations between two tests.
        solved_wrong: a network whose share of wrong sequences is at most this trains no more.
    """

    init: Callable[[Numbers, Key], TrainState]
    train: Callable[[Learner, Key], tuple[TrainState, dict[str, Array]]]
    flow: Callable[[Learner, Key], dict[str, Array]]
    floss: Callable[[Learner, Key], TrainState] | None
    floss_at: tuple[int, ...]
    num_steps: int
    test_every: int
    solved_wrong: float


def recipe(
    method: Method, data: Data, length: int, batch_size: int, num_steps: int, test_every: int
) -> Recipe:
    """The programs of a method; `numbers` has learning_rate, and gain where it is an axis.

    Args:
        method: how to train.
        data: on what.
        length: T, for settings that depend on it.
        batch_size: B.
        num_steps: training iterations, a multiple of `test_every`.
        test_every: iterations in one call of `train`.
    """
    task = data.task
    model = model_of(method, task, length)
    objective = objective_of(method, model, task)
    judged = objectives.task_objective(model, task)

    def optimizer(numbers: Numbers) -> optax.GradientTransformation:
        return optimizer_of(method, numbers["learning_rate"], num_steps)

    def init(numbers: Numbers, key: Key) -> TrainState:
        init_key, _, _ = jax.random.split(key, 3)
        # Only the start depends on the gain: all else is of one model.
        model = model_of(method, task, length, numbers.get("gain"))
        return training.fresh_state(
            model, optimizer(numbers), init_key, task.input_size, batch_size
        )

    def train_and_test(learner: Learner, key: Key) -> tuple[TrainState, dict[str, Array]]:
        numbers, state = learner
        _, data_key, test_key = jax.random.split(key, 3)
        state, metrics = training.scan_steps(
            objective,
            optimizer(numbers),
            task.sample,
            state,
            data_key,
            test_every,
            regularize=regularizer_of(method),
        )
        steps = 1 + jnp.arange(metrics.trace.shape[1])
        bad = ~jnp.isfinite(metrics.trace)
        test_loss, wrong = test(judged, task, data, state.params, test_key)
        return state, {
            "loss": metrics.loss,
            "gradient_norm": metrics.gradient_norm,
            "nonfinite_step": jnp.max(
                jnp.where(bad, jnp.broadcast_to(steps, bad.shape), 0), axis=1
            ),
            "traces": metrics.trace[-1],
            "test_loss": test_loss,
            "wrong": wrong,
        }

    def flow(learner: Learner, key: Key) -> dict[str, Array]:
        params = learner[1].params
        batch = task.sample(jax.random.fold_in(key, 0))
        size = min(data.flow_size, batch_size)
        batch = Batch(batch.inputs[:, :size], _first(task, batch.targets, size))
        start = _fresh_carry(model, params, size)
        loss = last_loss(model, params, task, batch)
        return measure_flow(model.cell, params.cell, start, batch.inputs, loss)

    return Recipe(
        init=init,
        train=train_and_test,
        flow=flow,
        floss=_floss(method, model, task) if method.floss_at else None,
        floss_at=tuple(floss_iterations(method)),
        num_steps=num_steps,
        test_every=test_every,
        solved_wrong=task.solved_wrong if data.ends_training else -1.0,
    )


def _first(task: Task, targets: Array, size: int) -> Array:
    """The targets of a batch's first examples."""
    return targets[:size] if task.last_only else targets[:, :size]


def _fresh_carry(model: Model, params: ModelParams, batch_size: int) -> State:
    return model.cell.initial_state(params.cell, (batch_size,))


def test(
    objective: objectives.Objective, task: Task, data: Data, params: ModelParams, key: Key
) -> tuple[Array, Array]:
    """Mean loss, and share of wrong sequences, on a batch of examples."""
    model = objective.model
    batch = data.examples(key)
    carry = _fresh_carry(model, params, data.test_size)
    zeros = rnn_jax.zero_perturbations(carry, batch.inputs.shape[0])
    run = objective.run(params, carry, batch, zeros)
    outputs = model.readout(params.readout, model.cell.emit(model.select(run.states)))
    return objectives.mean_loss(run), jnp.mean(task.wrong(outputs, batch.targets))


def _floss(method: Method, model: Model, task: Task) -> Callable[[Learner, Key], TrainState]:
    """Flossing steps on the task's own inputs; the optimizer of training is left as it is."""
    optimizer = optax.adam(method.floss_rate)

    def floss(learner: Learner, key: Key) -> TrainState:
        state = learner[1]
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
