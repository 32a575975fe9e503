"""One network of a sweep that learns: its training, and its gradient before, half-way and after."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import rnn_jax
from experiments.analysis.sweep_fits import Numbers, cell_of, measure_flow
from experiments.analysis.sweep_theory import predicted_slope, told_at
from rnn_jax import objectives, training
from rnn_jax.gradflow import LastStep
from rnn_jax.model import Model, ModelParams
from rnn_jax.sweep import Fit
from rnn_jax.tasks import sine
from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.copy_memory import copy_memory
from rnn_jax.tasks.delayed_xor import delayed_xor
from rnn_jax.tasks.task import Task
from rnn_jax.tasks.temporal_order import temporal_order
from rnn_jax.training import optim
from rnn_jax.types import Array, Batch, Key, State

TASKS: dict[str, Callable[[int, int], Task]] = {
    "adding": adding,
    "copy_memory": copy_memory,
    "delayed_xor": lambda delay, batch_size: delayed_xor(delay, 6 * delay, batch_size),
    "sine": lambda length, batch_size: sine.task(batch_size, length + 1),
    "temporal_order": temporal_order,
    "temporal_order_3": lambda length, size: temporal_order(length, size, symbols=3),
}
"""name -> `(length, batch size) -> Task`; copy_memory and delayed_xor take it as the delay."""
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": optax.sgd,
}
MOMENTS = ("start", "half", "end")
CHUNK = 50
"""Steps whose batches are drawn together; after each chunk one profile is kept."""
TEST_SEQUENCES = 400


class Trained(NamedTuple):
    """A fit that trains, and what is told of its results; both as `sweeping.Group` wants them."""

    fit: Fit
    describe: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]


def model_of(task: Task, cell: rnn_jax.Cell) -> Model:
    """The readout that a task wants."""
    make = rnn_jax.last_only if task.last_only else rnn_jax.sequence_model
    return make(cell, task.output_size)


def last_loss(model: Model, params: ModelParams, task: Task, batch: Batch) -> LastStep:
    """The loss of the last step as a function of the last state."""

    def loss(last: State) -> Array:
        outputs = model.readout(params.readout, model.cell.emit(last))
        if task.last_only:
            return task.loss(outputs, batch.targets)
        return task.loss(outputs[None], batch.targets[-1:])[0]

    return LastStep(loss)


def trained(
    settings: dict[str, Any], task_name: str, optimizer: str, batch_size: int, num_steps: int
) -> Trained:
    """Training on a task, with the gradient's flow at its start, half-way and at its end."""
    task = TASKS[task_name](settings["length"], batch_size)

    def fit(numbers: Numbers, key: Key) -> dict[str, Array]:
        cell = cell_of(settings, numbers)
        model = model_of(task, cell)
        bound = jnp.where(numbers["clip_norm"] > 0, numbers["clip_norm"], jnp.inf)
        chain = optim.recorded(OPTIMIZERS[optimizer](numbers["learning_rate"]), bound)
        init_key, data_key, test_key, flow_key = jax.random.split(key, 4)
        state = training.fresh_state(model, chain, init_key, task.input_size, batch_size)
        objective = objectives.task_objective(model, task)
        batch = task.sample(flow_key)

        def flow(params: ModelParams) -> dict[str, Array]:
            loss = last_loss(model, params, task, batch)
            return measure_flow(cell, params.cell, state.carry, batch.inputs, loss)

        end, half, learned = learn(objective, chain, task, state, data_key, num_steps)
        moments = jax.tree.map(lambda *p: jnp.stack(p), state.params, half, end.params)
        # One after the other: a single measurement is compiled for all three.
        flows = lax.map(flow, moments)
        results = {
            f"{name}_{moment}": values[index]
            for name, values in flows.items()
            for index, moment in enumerate(MOMENTS)
        }
        test_loss, wrong = test(objective, task, end, test_key, batch_size)
        return {**results, **learned, "test_loss": test_loss, "wrong": wrong}

    @functools.cache
    def input_std() -> float:
        """Of x_t U over the units: the mean square input, U being normal with variance 1/D."""
        inputs = np.asarray(task.sample(jax.random.key(0)).inputs)
        return float(np.sqrt(np.mean(np.square(inputs))))

    def describe(
        point: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found, profiles = told_at(MOMENTS, results)
        kept = {name: results[name] for name in ("loss", "gradient_norm", "traces")} | profiles
        found["predicted_slope"] = predicted_slope(
            point["cell"],
            point.get("activation", ""),
            point["recurrent_init"],
            point["gain"],
            input_std(),
            point.get("bias_std", 0.0),
        )
        return found | outcome(results, task.solved_wrong), kept

    return Trained(fit, describe)


def learn(
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    task: Task,
    state: training.TrainState,
    key: Key,
    num_steps: int,
) -> tuple[training.TrainState, ModelParams, dict[str, Array]]:
    """Trains in chunks within one program.

    Returns:
        The final state; the parameters half-way, to the nearest chunk; loss and gradient_norm
        `[K]`; nonfinite_step `[K]`, the time step (from 1) at which |dL/ds_t| leaves the finite
        range, going back, 0 where it does not; traces `[C, T]`, |dL/ds_t| at the last step of each
        chunk.
    """
    size = min(CHUNK, num_steps)
    whole, rest = divmod(num_steps, size)

    def chunk(
        state: training.TrainState, size: int
    ) -> tuple[training.TrainState, dict[str, Array]]:
        state, metrics = training.scan_steps(objective, optimizer, task.sample, state, key, size)
        steps = 1 + jnp.arange(metrics.trace.shape[1])
        bad = ~jnp.isfinite(metrics.trace)
        last_bad = jnp.max(jnp.where(bad, jnp.broadcast_to(steps, bad.shape), 0), axis=1)
        return state, {
            "loss": metrics.loss,
            "gradient_norm": metrics.gradient_norm,
            "nonfinite_step": last_bad,
            "traces": metrics.trace[-1:],
        }

    def body(
        carry: tuple[training.TrainState, ModelParams], index: Array
    ) -> tuple[tuple[training.TrainState, ModelParams], dict[str, Array]]:
        state, half = carry
        state, found = chunk(state, size)
        is_half = index == (whole - 1) // 2
        half = jax.tree.map(lambda new, old: jnp.where(is_half, new, old), state.params, half)
        return (state, half), found

    (state, half), found = lax.scan(body, (state, state.params), jnp.arange(whole))
    found = {name: leaf.reshape(-1, *leaf.shape[2:]) for name, leaf in found.items()}
    if rest:
        state, last = chunk(state, rest)
        found = jax.tree.map(lambda *parts: jnp.concatenate(parts), found, last)
    return state, half, found


def test(
    objective: objectives.Objective,
    task: Task,
    state: training.TrainState,
    key: Key,
    batch_size: int,
) -> tuple[Array, Array]:
    """Mean loss, and share of wrong sequences, on sequences that were not trained on."""
    model = objective.model

    def of_batch(index: Array) -> tuple[Array, Array]:
        batch = task.sample(jax.random.fold_in(key, index))
        zeros = rnn_jax.zero_perturbations(state.carry, batch.inputs.shape[0])
        run = objective.run(state.params, state.carry, batch, zeros)
        outputs = model.readout(state.params.readout, model.cell.emit(model.select(run.states)))
        return objectives.mean_loss(run), jnp.mean(task.wrong(outputs, batch.targets))

    count = math.ceil(TEST_SEQUENCES / batch_size)
    losses, wrong = lax.map(of_batch, jnp.arange(count))
    return jnp.mean(losses), jnp.mean(wrong)


def outcome(results: dict[str, Any], solved_wrong: float) -> dict[str, Any]:
    """How training ended: final_loss (mean of the last tenth), test_loss, wrong, solved, and where
    it diverged: diverged_step (iteration, from 1) and diverged_time_step; None where it did not.
    """
    loss, norm = results["loss"], results["gradient_norm"]
    bad = ~(np.isfinite(loss) & np.isfinite(norm))
    step = int(np.argmax(bad)) if bad.any() else None
    time_step = None if step is None else int(results["nonfinite_step"][step]) or None
    wrong = float(results["wrong"])
    return {
        "final_loss": float(np.mean(loss[-max(1, len(loss) // 10) :])),
        "test_loss": float(results["test_loss"]),
        "wrong": None if bad.any() else wrong,
        "solved": bool(not bad.any() and wrong <= solved_wrong),
        "diverged_step": None if step is None else step + 1,
        "diverged_time_step": time_step,
    }
