"""The sine wave of the tutorial: predict the next of evenly spaced points."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rnn_jax.losses import squared_error
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, Key

NUM_POINTS = 50
SPAN = 10.0
SPACING = SPAN / (NUM_POINTS - 1)


def wave(start: Array, num_points: int) -> Array:
    """sin at `num_points` points SPACING apart from each start: `[B]` -> `[num_points, B, 1]`."""
    times = SPACING * jnp.arange(num_points)
    return jnp.sin(start[None, :, None] + times[:, None, None])


def sampler(
    batch_size: int, num_points: int = NUM_POINTS, phases: str = "integer"
) -> Callable[[Key], Batch]:
    """A function `key -> Batch` of sine waves; targets are the inputs one point later.

    Args:
        batch_size: B.
        num_points: points of each wave; inputs and targets are `[num_points - 1, B, 1]`.
        phases: "integer" starts each wave at a whole number in 0..9, as the tutorial does;
            "real" anywhere in [0, 2 pi).
    """
    if phases not in ("integer", "real"):
        raise ValueError(f"phases is {phases!r}; take 'integer' or 'real'")

    def sample(key: Key) -> Batch:
        if phases == "integer":
            start = jax.random.randint(key, (batch_size,), 0, 10).astype(jnp.float32)
        else:
            start = jax.random.uniform(key, (batch_size,), maxval=2 * math.pi)
        points = wave(start, num_points)
        return Batch(inputs=points[:-1], targets=points[1:])

    return sample


WRONG_ABOVE = 0.01
"""Mean squared error of a wave from which on it counts as not learned: 2 % of its variance."""


def task(length: int, batch_size: int) -> Task:
    """Predict the next of `length` + 1 points of a sine; a `Task` with an output at every step.

    Without memory the best answer is linear in the point just seen, y = cos(spacing) x, whose mean
    squared error is sin(spacing)^2 / 2.
    """
    if length < 1 or batch_size < 1:
        raise ValueError(f"length is {length} and batch_size {batch_size}; give at least 1 of each")

    def wrong(outputs: Array, targets: Array) -> Array:
        error = jnp.mean(squared_error(outputs, targets), axis=0)
        return (error > WRONG_ABOVE).astype(outputs.dtype)

    return Task(
        name="sine",
        sample=sampler(batch_size, length + 1, "real"),
        input_size=1,
        output_size=1,
        loss=squared_error,
        wrong=wrong,
        last_only=False,
        chance_loss=math.sin(SPACING) ** 2 / 2,
    )
