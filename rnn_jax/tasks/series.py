"""A time series, learned from windows of it: what comes next?"""

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.losses import squared_error
from rnn_jax.tasks.task import Task, check_count
from rnn_jax.types import Array, Batch, Key


def fill_gaps(values: np.ndarray, learned: int) -> np.ndarray:
    """Numbers for cells that were not measured, each from what is known where it is read.

    Args:
        values: `[N, D]`, NaN where nothing was measured.
        learned: number of rows at the beginning that are learned from.

    Returns:
        `[N, D]`: among the rows learned from a straight line between the measured neighbours; after
        the last of these, and in all rows behind, the value measured last.

    Raises:
        ValueError: a column whose first value was not measured.

    >>> import numpy as np
    >>> from rnn_jax.tasks.series import fill_gaps
    >>> column = np.array([[0, np.nan, 2, np.nan, 4, np.nan, 6]]).T
    >>> fill_gaps(column, learned=4)[:, 0]
    array([0., 1., 2., 2., 4., 4., 6.])
    """
    filled, rows = np.array(values, np.float64), np.arange(len(values))
    for number, column in enumerate(filled.T):
        known = ~np.isnan(column)
        if not known[0]:
            raise ValueError(
                f"the first value of column {number} was not measured, and there is nothing before "
                "it to fill it from; drop the rows up to the first that was"
            )
        last = np.maximum.accumulate(np.where(known, rows, 0))
        within = known & (rows <= last[learned - 1])
        line = np.interp(rows, rows[within], column[within])
        column[~known] = np.where(rows < last[learned - 1], line, column[last])[~known]
    return filled


def series(
    values: np.ndarray,
    length: int,
    batch_size: int,
    *,
    warmup: int = 0,
    measured: np.ndarray | None = None,
) -> Task:
    """Windows of a series, drawn anywhere in it; at each step the next value is asked.

    Args:
        values: `[N, D]`, the part to learn from, normalized.
        length: T, steps of a window, which holds T + 1 values.
        batch_size: B.
        warmup: steps at the beginning of a window whose answers do not count: a network that has
            just begun to read knows too little.
        measured: `[N, D]`, False where a value is a stand-in for one that was not measured (see
            `fill_gaps`): it is read, and never asked. None where all were.

    Returns:
        A `Task` answered at every step. Inputs and targets `[T, B, D]`; with `measured` targets
        are `[T, B, 2D]`, the values and then 1 for each that was measured, and windows end at a
        row of which something was.

    Raises:
        ValueError: values of another shape or not finite, fewer of them than a window holds, a
            warm-up that leaves no step, an empty batch, or no window that ends at a measured row.

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
    measured = _checked(measured, values)
    chance_loss, chance_wrong = _without_memory(
        np.asarray(values, np.float64), length, warmup, measured
    )
    usable = np.arange(len(values) - length)
    if measured is not None:
        # The gradient that is followed is that of a window's last loss.
        usable = usable[measured[length:].any(axis=1)]
        if not len(usable):
            raise ValueError(
                f"nothing was measured from row {length} on, where the first window of {length} "
                "steps ends; shorten the window"
            )
    loss = squared_error if measured is None else _measured_error

    def sample(key: Key) -> Batch:
        starts = jax.random.randint(key, (batch_size,), 0, len(usable))
        if measured is not None:
            starts = jnp.asarray(usable)[starts]
        return _windows(values, starts, length, measured)

    def wrong(outputs: Array, targets: Array) -> Array:
        # Of the window's first target the last value is not among the targets.
        counted = slice(max(warmup, 1), None)
        known = targets[..., : outputs.shape[-1]]
        repeated = jnp.concatenate([known[:1], known[:-1]])
        errors, given_up = (
            jnp.mean(loss(answer, targets)[counted], axis=0) for answer in (outputs, repeated)
        )
        return (errors > given_up).astype(outputs.dtype)

    return Task(
        name="series",
        sample=sample,
        input_size=values.shape[1],
        output_size=values.shape[1],
        loss=loss,
        wrong=wrong,
        last_only=False,
        chance_loss=chance_loss,
        chance_wrong=chance_wrong,
        first_loss_step=warmup,
        asked=None if measured is None else _any_measured,
    )


def windows_from(
    values: np.ndarray,
    first: int,
    length: int,
    warmup: int,
    measured: np.ndarray | None = None,
) -> Batch:
    """The windows whose answers that count are about the values from `first` on, side by side.

    Args:
        values: `[N, D]`; those before `first` are read in the warm-up, and never asked.
        first: index of the first value that is asked.
        length, warmup, measured: as in `series`. A window of whose answers none was measured is
            left out.

    Raises:
        ValueError: not one window fits.
    """
    measured = _checked(measured, values)
    starts = np.arange(first - warmup - 1, len(values) - length, length - warmup)
    if not len(starts) or starts[0] < 0:
        raise ValueError(
            f"no window of {length} steps, {warmup} of them warm-up, has its answers in the values "
            f"from {first} to {len(values) - 1}; shorten the window"
        )
    if measured is not None:
        answers = starts[:, None] + np.arange(1 + warmup, 1 + length)
        starts = starts[measured[answers].any(axis=(1, 2))]
        if not len(starts):
            raise ValueError(
                f"not one of the values from {first} to {len(values) - 1} that are asked was "
                "measured; give more of them"
            )
    return _windows(np.asarray(values), jnp.asarray(starts), length, measured)


def _checked(measured: np.ndarray | None, values: np.ndarray) -> np.ndarray | None:
    """`measured` as truth values; None where all values were: nothing is computed for it then."""
    if measured is None:
        return None
    if np.shape(measured) != np.shape(values):
        raise ValueError(
            f"measured has shape {np.shape(measured)}, but values {np.shape(values)}; give a truth "
            "value for each"
        )
    measured = np.asarray(measured, bool)
    return None if measured.all() else measured


def _windows(
    values: np.ndarray, starts: Array, length: int, measured: np.ndarray | None = None
) -> Batch:
    rows = starts[None] + jnp.arange(length + 1)[:, None]
    found = jnp.asarray(values, jnp.float32)[rows]
    inputs, targets = found[:-1], found[1:]
    if measured is not None:
        counts = jnp.asarray(measured, jnp.float32)[rows[1:]]
        targets = jnp.concatenate([targets, counts], axis=-1)
    return Batch(inputs, targets)


def _measured_error(outputs: Array, targets: Array) -> Array:
    """`squared_error` averaged over the values that were measured: targets `[..., 2D]`."""
    values, counts = jnp.split(targets, 2, axis=-1)
    total = jnp.sum(counts * jnp.square(outputs - values), axis=-1)
    return total / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def _any_measured(targets: Array) -> Array:
    """Where any value of a step was measured: `[T, B, 2D]` -> `[T, B]`."""
    return jnp.any(jnp.split(targets, 2, axis=-1)[1] > 0, axis=-1)


def _without_memory(
    values: np.ndarray, length: int, warmup: int, measured: np.ndarray | None = None
) -> tuple[float, float]:
    """Loss of the best straight line from a value to the next, and the share of wrong windows."""
    asked = np.ones(values.shape, bool)[1:] if measured is None else measured[1:]
    last = np.column_stack([values[:-1], np.ones(len(values) - 1)])
    answers = np.empty_like(values[1:])
    for column, rows in enumerate(asked.T):
        line = np.linalg.lstsq(last[rows], values[1:, column][rows], rcond=None)[0]
        answers[:, column] = last @ line
    any_asked = asked.any(axis=1)
    errors, repeated = (
        np.sum(np.square(answer - values[1:]), axis=1, where=asked) / np.maximum(asked.sum(1), 1)
        for answer in (answers, values[:-1])
    )
    counted = length - max(warmup, 1)
    better = np.convolve(errors - repeated, np.ones(counted), "valid")[max(warmup, 1) :]
    return float(np.mean(errors[any_asked])), float(np.mean(better > 0))
