"""Several ways of doing the same work, timed in turn: A B C A B C ..."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Side(NamedTuple):
    """One way of doing the work.

    Attributes:
        run: does it once and returns the seconds that it took.
        iterations: training iterations, or whatever is counted, in one run.
    """

    run: Callable[[], float]
    iterations: int = 1


class Times(NamedTuple):
    """What was measured of one side.

    Attributes:
        name: the side's.
        seconds: `[R]`, seconds per iteration of each of R runs.
        compilation: seconds by which a first run, not among those R, took longer than their
            median; 0 where it did not, or where there was none.
    """

    name: str
    seconds: np.ndarray
    compilation: float = 0.0


class Spread(NamedTuple):
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float


def spread(values: np.ndarray) -> Spread:
    """Median, smallest and largest of `[R]`."""
    return Spread(float(np.median(values)), float(np.min(values)), float(np.max(values)))


def stopwatch(
    prepare: Callable[[], Any],
    work: Callable[[Any], Any],
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """A function that prepares, then works on what was prepared, and returns the work's seconds.

    Args:
        prepare: makes what `work` takes; not timed.
        work: its result is waited for (`jax.block_until_ready`) before the clock is read.
        clock: seconds.
    """

    def run() -> float:
        prepared = jax.block_until_ready(prepare())
        start = clock()
        jax.block_until_ready(work(prepared))
        return clock() - start

    return run


ENOUGH_SECONDS, ENOUGH_CALLS = 0.1, 3
"""A pace is taken from one call that took so long, or from the quickest of so many."""


def pace(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the quickest of a few calls, and what the last one returned."""
    seconds: list[float] = []
    result = None
    while sum(seconds) < ENOUGH_SECONDS and len(seconds) < ENOUGH_CALLS:
        start = time.perf_counter()
        result = jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def interleaved(
    sides: Mapping[str, Side],
    repeats: int,
    warm_up: bool = True,
    budget: float = math.inf,
    least: int = 1,
) -> dict[str, Times]:
    """Runs every side once in each of `repeats` rounds, so that a slow minute slows all of them.

    Args:
        sides: name -> side; the order in which they run.
        repeats: R.
        warm_up: run each side once before the rounds, which compiles it. Without it a round's run
            holds whatever compilation it needs.
        budget: seconds of all rounds together, after which there is no further one.
        least: so many rounds there are whatever they take, if `repeats` are as many.

    Returns:
        name -> times; run r of one side and run r of another are a pair, taken side by side.
    """
    first = {name: side.run() if warm_up else 0.0 for name, side in sides.items()}
    rounds: list[dict[str, float]] = []
    spent = 0.0
    while len(rounds) < repeats and (spent < budget or len(rounds) < least):
        rounds.append({name: side.run() for name, side in sides.items()})
        spent += sum(rounds[-1].values())
    times = {}
    for name, side in sides.items():
        totals = np.array([seconds[name] for seconds in rounds])
        compilation = max(0.0, first[name] - float(np.median(totals)))
        times[name] = Times(name, totals / side.iterations, compilation)
    return times
