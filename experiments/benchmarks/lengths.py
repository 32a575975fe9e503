"""Training steps on longer and longer sequences: is the time in proportion to the length?"""

from collections.abc import Iterator

import numpy as np

from experiments.benchmarks.contenders import (
    Shape,
    axes_of,
    ours,
    problem,
    side_of,
    steps_in_a_run,
)
from experiments.benchmarks.report import COST, Findings, Row, Wanted, duration
from experiments.benchmarks.timing import Times, interleaved, pace, spread
from rnn_jax import plots

CELLS = ("elman", "lstm")
HIDDEN_SIZE, BATCH_SIZE = 64, 1
NUM_STEPS = (100, 1_000, 10_000, 100_000)
WANTED = Wanted("<=", 1.5)
"""Of the time per time step: at the longest sequence over the next shorter one."""


def findings(repeats: int) -> Iterator[Findings]:
    """Seconds per time step of a training step, cell by cell; at the end the figure.

    Args:
        repeats: rounds.
    """
    measured = {}
    for cell in CELLS:
        times = per_time_step(cell, repeats)
        measured[cell] = times
        yield Findings(rows_of(cell, times), [])
    yield Findings([], [], figures={"lengths": figure(measured)})


def per_time_step(cell: str, repeats: int) -> list[Times]:
    """Seconds per time step at each length."""
    sides = {}
    for num_steps in NUM_STEPS:
        contender = ours(problem(Shape(cell, HIDDEN_SIZE, BATCH_SIZE, num_steps)))
        seconds, _ = pace(side_of(contender, 1).run)
        steps = steps_in_a_run(seconds)
        side = side_of(contender, steps)
        sides[f"T {num_steps:,}"] = side._replace(iterations=steps * num_steps)
    return list(interleaved(sides, repeats).values())


def rows_of(cell: str, times: list[Times]) -> list[Row]:
    """A row for each length, and one that compares the last two."""
    shapes = [Shape(cell, HIDDEN_SIZE, BATCH_SIZE, num_steps) for num_steps in NUM_STEPS]
    rows = [
        Row(f"a time step, {shape}", found, at=axes_of(shape))
        for shape, found in zip(shapes, times, strict=True)
    ]
    what = f"a time step, {cell}: {times[-1].name} / {times[-2].name}"
    return [*rows, Row(what, times[-1], times[-2], COST, WANTED, axes_of(shapes[-1]))]


def figure(measured: dict[str, list[Times]]) -> object:
    """Seconds of a training step over T, beside lines of slope 1."""
    lengths = np.array(NUM_STEPS)
    curves: list[plots.Curve] = []
    lines: list[plots.Curve] = []
    for cell, times in measured.items():
        found = np.array([spread(side.seconds) for side in times]).T
        curves.append(plots.Curve(cell, lengths, *(lengths * found)))
        name = "in proportion to T" if not lines else ""
        lines.append(plots.Curve(name, lengths, lengths * found[0, -1]))
    told = ", ".join(f"{_range(times)} ({cell})" for cell, times in measured.items())
    return plots.scaling(
        curves,
        lines,
        "number of time steps T",
        "seconds of a training step",
        f"From T = {NUM_STEPS[0]:,} to {NUM_STEPS[-1]:,} a time step costs {told}",
    )


def _range(times: list[Times]) -> str:
    medians = [spread(side.seconds).median for side in times]
    return f"{duration(min(medians))} to {duration(max(medians))}"
