"""A trained sine network on its own: each prediction is the next input."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.tasks import sine
from rnn_jax.types import Array, Key, State

TEST_PHASES = 32
SHORT_RUN, LONG_RUN = 200, 1000
GIVEN = sine.NUM_POINTS - 1
"""True points before a warmed free run."""


class FreeRun(NamedTuple):
    """A free run to draw.

    Attributes:
        times: `[N]`, the sine's argument at each point.
        truth: `[N]`.
        predicted: the network's outputs for the last points.
        error: mean squared error of the predictions.
    """

    times: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    error: float


def carried(model: rnn_jax.Model, params: rnn_jax.ModelParams, carry: State, key: Key) -> FreeRun:
    """The tutorial's evaluation: start at 0, 1 or 2, one true point, then 49 steps on its own.

    Args:
        model: a `sequence_model` with one input and one output.
        params: its parameters.
        carry: the state that training ended with, leaves `[1, H]`.
        key: draws the start.
    """
    start, points, predicted = _run_carried(model, params, carry, key)
    return _free_run(float(start[0]), points, predicted)


def carried_error(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, carry: State, key: Key
) -> Array:
    """The mean squared error of `carried`, scalar; pure."""
    _, points, predicted = _run_carried(model, params, carry, key)
    return jnp.mean(jnp.square(predicted - points[1:]))


def _run_carried(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, carry: State, key: Key
) -> tuple[Array, Array, Array]:
    """Where the wave starts `[1]`, its points, and what the network makes of the first of them."""
    start = jax.random.randint(key, (1,), 0, 3).astype(jnp.float32)
    points = sine.wave(start, sine.NUM_POINTS)
    predicted, _ = _run(model, params, carry, points[0], sine.NUM_POINTS - 1)
    return start, points, predicted


def warmed(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, key: Key, num_steps: int = SHORT_RUN
) -> FreeRun:
    """From the zero state 49 true points at a random real phase, then `num_steps` on its own."""
    start = jax.random.uniform(key, (1,), maxval=2 * math.pi)
    return _free_run(float(start[0]), *_run_warmed(model, params, start, num_steps))


def warmed_errors(model: rnn_jax.Model, params: rnn_jax.ModelParams, key: Key) -> Array:
    """Mean squared error `[1000]` at each step of free runs after 49 true points; pure.

    Averaged over 32 waves at random real phases, none of which was trained on.
    """
    starts = jax.random.uniform(key, (TEST_PHASES,), maxval=2 * math.pi)
    points, outputs = _run_warmed(model, params, starts, LONG_RUN)
    return jnp.mean(jnp.square(outputs - points[GIVEN:]), axis=(1, 2))


def closed_loop_exponents(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, key: Key
) -> np.ndarray:
    """Lyapunov exponents `[H]` of the free-running network, in nats per step.

    A network that has become an oscillator has one exponent 0, along its cycle, and only negative
    ones across it: whatever disturbs it dies out, and it stays a sine.
    """
    start = jax.random.uniform(key, (1,), maxval=2 * math.pi)
    return np.asarray(_exponents(model, params, start))


def led(model: rnn_jax.Model) -> rnn_jax.Cell:
    """The network that is given true points first, and then reads its own outputs, as one cell.

        x_t = s_{t-1} V + c    where the input is not given,    s_t = step(theta, s_{t-1}, x_t)

    Its parameters are the model's, its inputs those of `led_inputs`; its gradients are those of
    `objectives.closed_loop_objective`.
    """

    def step(params: rnn_jax.ModelParams, state: State, x: Array) -> State:
        own = model.readout(params.readout, model.cell.emit(state))
        read = jnp.where(x[..., -1:] > 0, x[..., :-1], own)
        return model.cell.step(params.cell, state, read)

    return rnn_jax.closed_loop(model)._replace(step=step)


def led_inputs(xs: Array, given: int) -> Array:
    """Inputs `[T, B, D + 1]` of a `led` cell: the points, and 1 at the steps where they count."""
    counts = jnp.arange(len(xs))[:, None, None] < given
    marks = jnp.broadcast_to(counts, (*xs.shape[:-1], 1)).astype(xs.dtype)
    return jnp.concatenate([xs, marks], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _exponents(model: rnn_jax.Model, params: rnn_jax.ModelParams, start: Array) -> Array:
    state = model.cell.initial_state(params.cell, start.shape)
    _, states = rnn_jax.apply(model, params, state, sine.wave(start, GIVEN))
    last = jax.tree.map(lambda s: s[-1], states)
    steps = jnp.zeros((2 * LONG_RUN, 1, 0))
    loop = rnn_jax.closed_loop(model)
    return gradflow.lyapunov_spectrum(loop, params, last, steps, burn_in=LONG_RUN // 2)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, state: State, x: Array, num_steps: int
) -> tuple[Array, State]:
    return rnn_jax.free_run(model, params, state, x, num_steps)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run_warmed(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, starts: Array, num_steps: int
) -> tuple[Array, Array]:
    """The waves, and the outputs of the free run over their last `num_steps` points."""
    points = sine.wave(starts, GIVEN + num_steps)
    state = model.cell.initial_state(params.cell, starts.shape)
    _, states = rnn_jax.apply(model, params, state, points[: GIVEN - 1])
    last = jax.tree.map(lambda s: s[-1], states)
    outputs, _ = rnn_jax.free_run(model, params, last, points[GIVEN - 1], num_steps)
    return points, outputs


def _free_run(start: float, points: Array, predicted: Array) -> FreeRun:
    truth, outputs = np.asarray(points)[:, 0, 0], np.asarray(predicted)[:, 0, 0]
    times = start + sine.SPACING * np.arange(len(truth))
    error = np.mean(np.square(outputs - truth[-len(outputs) :]))
    return FreeRun(times, truth, outputs, float(error))
