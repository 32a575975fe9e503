"""Figures of a benchmark."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from rnn_jax.plots.style import BLUE, CYCLE, DIVERGING, GREY, RED, dress, new_figure
from rnn_jax.plots.sweep import Curve

DEEPEST = 10.0
"""The ratio of the deepest colour."""
DARK = 4.0
"""Beyond this ratio, and below its inverse, numbers are written in white."""


def speed_ratios(
    labels: Sequence[str],
    medians: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    wanted: Sequence[float],
    title: str,
) -> Figure:
    """How many times faster, a bar a comparison on a logarithmic axis, with what was wanted marked.

    Args:
        labels: one text a comparison.
        medians, lows, highs: ratio of times, other / ours: median and range over the pairs.
        wanted: the ratio aimed at, for each; NaN for none.
        title: the finding.
    """
    figure = new_figure(8.0, 1.6 + 0.45 * len(labels))
    axes = dress(
        figure.subplots(), title, "times faster than the other (median of paired runs)", ""
    )
    rows = np.arange(len(labels))[::-1]
    spread = np.abs(np.array([lows, highs]) - np.array(medians))
    axes.barh(rows, medians, xerr=spread, color=BLUE, ecolor=GREY, height=0.6, capsize=3)
    axes.plot(wanted, rows, "|", color=RED, markersize=18, markeredgewidth=2.5, label="wanted")
    axes.axvline(1.0, color=GREY, linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(rows, labels)
    if np.isfinite(np.asarray(wanted, float)).any():
        axes.legend(fontsize=11, frameon=False)
    return figure


def ratio_maps(
    ratios: np.ndarray,
    others: Sequence[str],
    cells: Sequence[str],
    batch_sizes: Sequence[int],
    num_steps: Sequence[int],
    hidden_sizes: Sequence[int],
    title: str,
) -> Figure:
    """How many times faster, at every point of a grid: a map for each other side and each cell.

    Args:
        ratios: `[O, C, B, T, H]`, time of the other / ours; NaN where nothing was measured.
        others: `[O]`, the other sides, a row of maps each.
        cells: `[C]`, a column of maps each.
        batch_sizes, num_steps: `[B]` and `[T]`, together the rows of a map.
        hidden_sizes: `[H]`, the columns of a map.
        title: the finding.
    """
    points = (len(batch_sizes) * len(num_steps), len(hidden_sizes))
    # Room for the titles, however few points a map has.
    width, height = max(3.5, 0.9 + 0.62 * points[1]), max(2.5, 1.1 + 0.3 * points[0])
    figure = new_figure(2.6 + width * len(cells), 1.0 + height * len(others))
    grid = figure.subplots(len(others), len(cells), squeeze=False, sharex=True, sharey=True)
    scale = LogNorm(1 / DEEPEST, DEEPEST)
    for side, row in enumerate(grid):
        for cell, axes in enumerate(row):
            values = ratios[side, cell].reshape(points)
            image = axes.imshow(
                values, norm=scale, cmap=colormaps[DIVERGING].reversed(), aspect="auto"
            )
            axes.set_facecolor("lightgrey")
            _write_ratios(axes, values)
            name = f"{cells[cell]} / {others[side]}: {_mean(values)}"
            dress(
                axes,
                name,
                "hidden size H" if side == len(others) - 1 else "",
                "batch size B, steps T" if cell == 0 else "",
            )
            axes.set_xticks(range(points[1]), [str(size) for size in hidden_sizes])
            names = [f"B {size}, T {steps}" for size in batch_sizes for steps in num_steps]
            axes.set_yticks(range(points[0]), names, fontsize=10)
            for edge in range(len(num_steps), points[0], len(num_steps)):
                axes.axhline(edge - 0.5, color="white", linewidth=3)
    figure.suptitle(title, fontsize=15, x=0.01, ha="left")
    bar = figure.colorbar(image, ax=grid, extend="both", aspect=40)
    bar.set_label("times faster than the other (means are geometric)", fontsize=12)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    return figure


def _write_ratios(axes: Axes, values: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(np.log(value)) > np.log(DARK) else "black"
            axes.text(
                column, row, _short(value), ha="center", va="center", fontsize=11, color=colour
            )


def _mean(values: np.ndarray) -> str:
    """The geometric mean, in words."""
    known = values[np.isfinite(values)]
    return f"mean {_short(np.exp(np.log(known).mean()))}" if known.size else "not measured"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"


def scaling(
    measured: Sequence[Curve], references: Sequence[Curve], xlabel: str, ylabel: str, title: str
) -> Figure:
    """What grows with what, both axes logarithmic; dashed, what it is to be compared with.

    Args:
        measured: with their ranges, where there are any.
        references: a line without a name is not in the legend.
        xlabel, ylabel, title: texts.
    """
    figure = new_figure()
    axes = figure.subplots()
    for line in references:
        label = line.name or "_nameless"
        axes.plot(line.x, line.middle, "--", color=GREY, linewidth=1.5, label=label)
    for index, curve in enumerate(measured):
        spread = None
        if curve.low is not None and curve.high is not None:
            spread = np.abs(np.array([curve.low, curve.high]) - curve.middle)
        axes.errorbar(
            curve.x,
            curve.middle,
            yerr=spread,
            color=CYCLE[index % len(CYCLE)],
            marker="o",
            linewidth=2,
            capsize=4,
            label=curve.name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    dress(axes, title, xlabel, ylabel)
    axes.legend(frameon=False, fontsize=11)
    return figure
