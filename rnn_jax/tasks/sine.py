"""The sine wave of the tutorial: predict the next of evenly spaced points."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rnn_jax.losses import squared_error
from rnn_jax.tasks.task import Task, check_count
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


def task(batch_size: int, num_points: int = NUM_POINTS, tolerance: float = 1e-3) -> Task:
    """Next-point prediction of waves of any phase, as a `Task` with an answer at every step.

    Args:
        batch_size: B.
        num_points: points of each wave; the default spans more than a period and a half.
        tolerance: a wave is wrong where its mean squared error is above this; the tutorial ends
            near 1e-3.

    Without memory a point x tells the next but for the direction of the wave: the best answer is
    x cos(SPACING), and its mean squared error sin(SPACING)^2 / 2.
    """
    check_count("batch_size", batch_size, 1)
    check_count("num_points", num_points, 2)

    def wrong(outputs: Array, targets: Array) -> Array:
        errors = jnp.mean(squared_error(outputs, targets), axis=0)
        return (errors > tolerance).astype(outputs.dtype)

    return Task(
        name="sine",
        sample=sampler(batch_size, num_points, phases="real"),
        input_size=1,
        output_size=1,
        loss=squared_error,
        wrong=wrong,
        last_only=False,
        chance_loss=math.sin(SPACING) ** 2 / 2,
        # No wave of a period is near the guess throughout.
        chance_wrong=1.0,
    )
