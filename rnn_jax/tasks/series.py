"""A time series, learned from windows of it: what comes next?"""

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.losses import squared_error
from rnn_jax.tasks.task import Task, check_count
from rnn_jax.types import Array, Batch, Key


def series(values: np.ndarray, length: int, batch_size: int, *, warmup: int = 0) -> Task:
    """Windows of a series, drawn anywhere in it; at each step the next value is asked.

    Args:
        values: `[N, D]`, the part to learn from, normalized.
        length: T, steps of a window, which holds T + 1 values.
        batch_size: B.
        warmup: steps at the beginning of a window whose answers do not count: a network that has
            just begun to read knows too little.

    Returns:
        A `Task` answered at every step. Inputs and targets `[T, B, D]`.

    Raises:
        ValueError: values of another shape or not finite, fewer of them than a window holds, a
            warm-up that leaves no step, or an empty batch.

    A window is wrong where repeating the last value would have had a smaller squared error. Without
    memory the next value is foretold from the last alone; the best straight line does it with
    `chance_loss`, fitted and counted over all values.

    >>> import jax, numpy as np
    >>> from rnn_jax.tasks.series import series
    >>> task = series(np.sin(np.arange(200.0))[:, None], length=20, batch_size=8)
    >>> batch = task.sample(jax.random.key(0))
    >>> batch.inputs.shape, bool((batch.inputs[1:] == batch.targets[:-1]).all())
    ((20, 8, 1), True)
    """
    values = np.asarray(values)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"values have shape {values.shape}; give finite numbers [N, D]")
    check_count("length", length, 2)
    check_count("batch_size", batch_size, 1)
    check_count("warmup", warmup, 0)
    if warmup > length - 2:
        raise ValueError(f"warmup is {warmup} of {length} steps; leave 2 of them at least")
    if len(values) <= length:
        raise ValueError(
            f"there are {len(values)} values, but a window of {length} steps holds {length + 1}; "
            "give more, or shorten the window"
        )
    chance_loss, chance_wrong = _without_memory(np.asarray(values, np.float64), length, warmup)

    def sample(key: Key) -> Batch:
        starts = jax.random.randint(key, (batch_size,), 0, len(values) - length)
        return _windows(values, starts, length)

    def wrong(outputs: Array, targets: Array) -> Array:
        # Of the window's first target the last value is not among the targets.
        counted = slice(max(warmup, 1), None)
        repeated = jnp.concatenate([targets[:1], targets[:-1]])
        errors, given_up = (
            jnp.mean(squared_error(answer, targets)[counted], axis=0)
            for answer in (outputs, repeated)
        )
        return (errors > given_up).astype(outputs.dtype)

    return Task(
        name="series",
        sample=sample,
        input_size=values.shape[1],
        output_size=values.shape[1],
        loss=squared_error,
        wrong=wrong,
        last_only=False,
        chance_loss=chance_loss,
        chance_wrong=chance_wrong,
        first_loss_step=warmup,
    )


def windows_from(values: np.ndarray, first: int, length: int, warmup: int) -> Batch:
    """The windows whose answers that count are about the values from `first` on, side by side.

    Args:
        values: `[N, D]`; those before `first` are read in the warm-up, and never asked.
        first: index of the first value that is asked.
        length, warmup: as in `series`.

    Raises:
        ValueError: not one window fits.
    """
    starts = np.arange(first - warmup - 1, len(values) - length, length - warmup)
    if not len(starts) or starts[0] < 0:
        raise ValueError(
            f"no window of {length} steps, {warmup} of them warm-up, has its answers in the values "
            f"from {first} to {len(values) - 1}; shorten the window"
        )
    return _windows(np.asarray(values), jnp.asarray(starts), length)


def _windows(values: np.ndarray, starts: Array, length: int) -> Batch:
    rows = starts[None] + jnp.arange(length + 1)[:, None]
    found = jnp.asarray(values, jnp.float32)[rows]
    return Batch(found[:-1], found[1:])


def _without_memory(values: np.ndarray, length: int, warmup: int) -> tuple[float, float]:
    """Loss of the best straight line from a value to the next, and the share of wrong windows."""
    last = np.column_stack([values[:-1], np.ones(len(values) - 1)])
    line = np.linalg.lstsq(last, values[1:], rcond=None)[0]
    errors = np.mean(np.square(last @ line - values[1:]), axis=1)
    repeated = np.mean(np.square(np.diff(values, axis=0)), axis=1)
    counted = length - max(warmup, 1)
    better = np.convolve(errors - repeated, np.ones(counted), "valid")[max(warmup, 1) :]
    return float(np.mean(errors)), float(np.mean(better > 0))
