"""Training steps at every point of a grid of cells and sizes, beside plain JAX, Flax and PyTorch.

At each point the gradients of all sides are compared, then their steps are timed in turn.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.contenders import (
    Agreement,
    Problem,
    Shape,
    agreement,
    axes_of,
    flax,
    ours,
    plain,
    problem,
    side_of,
    steps_in_a_run,
    torch_side,
)
from experiments.benchmarks.report import Findings, Number, Row, Wanted, ratios
from experiments.benchmarks.timing import interleaved
from experiments.setup import host_memory
from rnn_jax import plots

SIDE_SECONDS = 1.5
"""Of each side's time at a point, about; then there is no further round."""
FEWEST_ROUNDS = 3
FEWEST_LONG_ROUNDS = 2
VERY_LONG_STEP = 3.0
"""Seconds: where a step takes longer, `FEWEST_LONG_ROUNDS` are enough, without a first run."""
WANTED_MEAN = {"plain scan": 1.5, "Flax": 1.5, "PyTorch": 2.0}
"""Geometric mean of the ratios over all points."""


class Axes(NamedTuple):
    """The values along each axis of the grid."""

    cells: list[str]
    hidden_sizes: list[int]
    batch_sizes: list[int]
    num_steps: list[int]


def check_memory(axes: Axes) -> None:
    """`UsageError` where a point of the grid surely takes more memory than there is."""
    size, batch, steps = (max(values) for values in axes[1:])
    # Weights, their gradients and Adam's two moments; states, their inputs and their adjoints.
    needed = 4 * (4 * size**2 + 3 * steps * batch * size)
    host_memory.check_fits(needed, "--hidden_size, --batch_size or --num_steps")


def findings(torch: Any, axes: Axes, repeats: int) -> Iterator[Findings]:
    """Times of every side, point by point as they are measured; at the end means and the figure.

    Args:
        torch: `experiments.benchmarks.pytorch`, or None.
        axes: the grid's.
        repeats: rounds at each point, fewer where they take long.
    """
    rows: list[Row] = []
    for shape in itertools.starmap(Shape, itertools.product(*axes)):
        found = point(torch, problem(shape), repeats)
        rows += found
        yield Findings(found, [])
    yield Findings([], [], means(rows), {"grid": figure(rows, axes)})


def point(torch: Any, given: Problem, repeats: int) -> list[Row]:
    """A row for every other side at one point of the grid."""
    shape = given.shape
    contenders = {"ours": ours(given), "plain scan": plain(given), "Flax": flax(given)}
    found = agreement(contenders, given, torch)
    steps = steps_in_a_run(found["ours"].seconds)
    sides = {name: side_of(contender, steps) for name, contender in contenders.items()}
    if torch:
        sides["PyTorch"] = torch_side(torch, given, steps_in_a_run(found["PyTorch"].seconds))
    long = is_very_long(found)
    times = interleaved(
        sides,
        repeats,
        warm_up=not long,
        budget=SIDE_SECONDS * len(sides),
        least=FEWEST_LONG_ROUNDS if long else FEWEST_ROUNDS,
    )
    return [
        Row(
            f"{shape}: {name}",
            times["ours"],
            times[name],
            wanted=_wanted(name, shape),
            at=axes_of(shape),
        )
        for name in list(times)[1:]
    ]


def is_very_long(found: dict[str, Agreement]) -> bool:
    """Whether a gradient of some side takes longer than `VERY_LONG_STEP`."""
    return max(side.seconds for side in found.values()) > VERY_LONG_STEP


def _wanted(name: str, shape: Shape) -> Wanted:
    if name != "PyTorch":
        return Wanted(">=", 0.95)
    return Wanted(">=", 10.0 if shape.batch_size * shape.hidden_size <= 512 else 1.0)


def geometric_mean(rows: Sequence[Row]) -> float:
    """Of the median ratios."""
    medians = [float(np.median(values)) for row in rows if (values := ratios(row)) is not None]
    return math.exp(float(np.mean(np.log(medians))))


def means(rows: Sequence[Row]) -> list[Number]:
    """Geometric means against each other side: over the grid, and of each cell."""
    numbers = []
    for name in _others(rows):
        part = [row for row in rows if row.other is not None and row.other.name == name]
        what = f"grid, geometric mean: ours / {name}"
        wanted = Wanted(">=", WANTED_MEAN[name])
        numbers.append(Number(what, geometric_mean(part), wanted=wanted, at={"other": name}))
        for cell in dict.fromkeys(row.at["cell"] for row in part):
            of_cell = [row for row in part if row.at["cell"] == cell]
            at = {"other": name, "cell": cell}
            numbers.append(Number(f"{what}, {cell}", geometric_mean(of_cell), at=at))
    return numbers


def figure(rows: Sequence[Row], axes: Axes) -> Any:
    """The figure of the median ratios."""
    others = _others(rows)
    shape = (len(others), len(axes.cells), *map(len, (axes[2], axes[3], axes[1])))
    medians = np.full(shape, np.nan)
    for row in rows:
        values = ratios(row)
        if values is None or row.other is None:
            continue
        at = row.at
        place = (
            others.index(row.other.name),
            axes.cells.index(at["cell"]),
            axes.batch_sizes.index(at["B"]),
            axes.num_steps.index(at["T"]),
            axes.hidden_sizes.index(at["H"]),
        )
        medians[place] = np.median(values)
    faster = np.mean(medians[np.isfinite(medians)] >= 1)
    return plots.ratio_maps(
        medians,
        others,
        axes.cells,
        axes.batch_sizes,
        axes.num_steps,
        axes.hidden_sizes,
        f"A training step of ours is the faster one at {faster:.0%} of the points",
    )


def _others(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.other.name for row in rows if row.other is not None))
