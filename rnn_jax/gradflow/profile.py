"""A gradient's profile over the lag, in numbers: its slope, the error of it, and its reach."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rnn_jax.types import Array

SURVIVAL = 1e-3
"""Below this share of its recent value a gradient counts as lost, above the inverse as wild."""
FEWEST_STEPS = 5
"""Lags below which no slope is fitted."""
MAJORITY = 0.9
"""Share of the examples that must agree on a verdict."""


class SlopeFit(NamedTuple):
    """A straight line through ln|dL/ds_{T-lag}| over the lag.

    Attributes:
        slope: nats gained with each step back; negative where the gradient vanishes. NaN where
            there are too few finite values.
        error: its standard error; inf where there is no slope.
        first, last: the lags between which it was fitted.
    """

    slope: float
    error: float
    first: int
    last: int


def lag_profile(log_norms: ArrayLike, last_step: ArrayLike) -> np.ndarray:
    """ln|dL/ds_t| as a function of the lag from each example's last loss.

    Args:
        log_norms: `[T, B]`.
        last_step: `[B]`, index of the step of the last loss.

    Returns:
        `[N, B]`, N the lags of the example that has most: row l is ln|dL/ds_{last - l}|; NaN where
        that lies before the first step.
    """
    logs, last = np.asarray(log_norms, np.float64), np.asarray(last_step)
    steps = last[None] - np.arange(last.max() + 1)[:, None]
    taken = np.take_along_axis(logs, np.maximum(steps, 0), axis=0)
    return np.where(steps >= 0, taken, np.nan)


def relative_to_last(profile: np.ndarray) -> np.ndarray:
    """A lag profile minus its own row 0: ln of shares; -inf where the gradient is exactly zero."""
    return profile - np.where(np.isfinite(profile[:1]), profile[:1], 0)


def fit_slope(profile: np.ndarray) -> SlopeFit:
    """Least-squares slope of a lag profile `[N, B]`, and its standard error.

    The first tenth of the lags is left out: there the gradient turns from the loss's direction into
    the network's own. Three errors add up in squares: the scatter between examples; the line's own
    residuals, counted as independent only once for each time they change sign; and half the
    difference between the slopes of the two halves, which a bent profile has.
    """
    # Examples have losses of different sizes and different numbers of lags: only shares compare.
    profile = relative_to_last(profile)
    lags = np.arange(len(profile))
    used = lags >= len(profile) // 10
    finite = np.isfinite(profile)
    usable = used & (finite.sum(axis=1) > 0)
    if usable.sum() < FEWEST_STEPS:
        return SlopeFit(math.nan, math.inf, 0, max(0, len(profile) - 1))
    rows = lags[usable]
    middle = np.array([np.median(profile[row][finite[row]]) for row in rows])
    slope, residuals = _line(rows, middle)
    spread = np.sum((rows - rows.mean()) ** 2)
    changes = 1 + np.count_nonzero(np.diff(np.sign(residuals)))
    independent = max(1, min(changes, len(rows) - 2))
    own = np.sqrt(np.mean(residuals**2) * len(rows) / (spread * independent))
    half = len(rows) // 2
    bend = 0.0
    if half >= 2:
        early, late = _line(rows[:half], middle[:half])[0], _line(rows[half:], middle[half:])[0]
        bend = (late - early) / 2
    slopes = [
        _line(rows[ok], column[ok])[0]
        for column in profile[usable].T
        if (ok := np.isfinite(column)).sum() >= FEWEST_STEPS
    ]
    scatter = np.std(slopes, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else 0.0
    error = float(np.sqrt(own**2 + bend**2 + scatter**2))
    return SlopeFit(float(slope), error, int(rows[0]), int(rows[-1]))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    centred = x - x.mean()
    slope = np.sum(centred * (y - y.mean())) / np.sum(centred**2)
    return float(slope), y - y.mean() - slope * centred


def memory_horizon(profile: np.ndarray, fit: SlopeFit) -> float:
    """Steps until the gradient has fallen to 1/1000 of its recent value; inf if it does not.

    Read off the profile `[N, B]` where it falls that far within the sequence (median over the
    examples), else extrapolated along the fitted slope if that is surely negative.
    """
    fallen = relative_to_last(profile) <= math.log(SURVIVAL)
    reached = np.where(fallen.any(axis=0), np.argmax(fallen, axis=0).astype(float), math.inf)
    measured = float(np.median(reached))
    if math.isfinite(measured):
        return measured
    if fit.slope < -2 * fit.error:
        return math.log(SURVIVAL) / fit.slope
    return math.inf


def e_folding_length(slope: float) -> float:
    """Steps back over which a gradient of this slope falls to 1/e; inf where it does not fall."""
    return -1 / slope if slope < 0 else math.nan if math.isnan(slope) else math.inf


def saturation(slopes: Array, threshold: float = 0.05) -> Array:
    """Share of units and steps with phi' below the threshold; scalar."""
    return jnp.mean((slopes < threshold).astype(jnp.promote_types(slopes.dtype, jnp.float32)))


def verdict_of(profile: np.ndarray) -> str:
    """One word for a lag profile `[N, B]` in nats; the words are those of `Diagnosis.verdict`."""
    words = [_verdict_of_example(column[~np.isnan(column)]) for column in profile.T]
    names, counts = np.unique(words, return_counts=True)
    return str(names[np.argmax(counts)]) if np.max(counts) >= MAJORITY * len(words) else "mixed"


def _verdict_of_example(logs: np.ndarray) -> str:
    if len(logs) == 0 or np.isneginf(logs[-1]) or np.isneginf(logs[0]):
        return "dead"
    limit = -math.log(SURVIVAL)
    change, peak, trough = logs[-1] - logs[0], logs.max() - logs[0], logs.min() - logs[0]
    if change > limit:
        return "exploding"
    if peak > limit:
        return "mixed"
    if change < -limit:
        return "vanishing"
    return "mixed" if trough < -limit else "healthy"


def is_sure(verdict: str, slope: float, error: float, num_steps: int) -> bool:
    """Whether a verdict rests on enough steps and on a slope well clear of its error."""
    if verdict == "dead":
        return True
    if num_steps < FEWEST_STEPS or not math.isfinite(error):
        return False
    if verdict == "healthy":
        # The slope's whole error bar must stay within what still counts as healthy.
        return (abs(slope) + 2 * error) * num_steps < -2 * math.log(SURVIVAL)
    return verdict == "mixed" or abs(slope) > 2 * error
