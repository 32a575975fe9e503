"""Figures of a forecast: what came, what was foretold, and by how much the networks differ."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.plots.style import BLUE, GREEN, ORANGE, dress, new_figure


class Forecast(NamedTuple):
    """Forecasts of the same rows.

    Attributes:
        mean, spread: of the networks, `[H]`.
        baselines: name -> `[H]`.
    """

    mean: np.ndarray
    spread: np.ndarray
    baselines: Mapping[str, np.ndarray]


def _mark_gaps(axes: Axes, times: np.ndarray, actual: np.ndarray) -> None:
    """Shades the times of which nothing was measured; a value between two gaps becomes a dot."""
    lost = np.concatenate([[False], np.isnan(actual), [False]])
    starts, stops = np.flatnonzero(~lost[:-1] & lost[1:]), np.flatnonzero(lost[:-1] & ~lost[1:])
    half = (times[1] - times[0]) / 2 if len(times) > 1 else 0.5
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        axes.axvspan(
            float(times[start] - half),
            float(times[stop - 1] + half),
            color="black",
            alpha=0.1,
            linewidth=0,
            label="" if number else "not measured",
        )
    alone = ~lost[1:-1] & lost[:-2] & lost[2:]
    axes.plot(times[alone], actual[alone], ".", color="black", markersize=3)


def forecasts(
    times: np.ndarray,
    actual: np.ndarray,
    panels: Mapping[str, Forecast],
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """The held-out rows and their forecasts, a panel each.

    Args:
        times: `[H]`.
        actual: `[H]`; NaN, shaded, where nothing was measured.
        panels: title, which is the finding -> forecast.
        title: of the figure.
        xlabel, ylabel: what times and values are.
    """
    figure = new_figure(10.0, 0.8 + 3.4 * len(panels))
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, (name, found) in zip(grid, panels.items(), strict=True):
        axes.plot(times, actual, color="black", linewidth=1.1, label="actual")
        _mark_gaps(axes, times, actual)
        for (word, values), colour in zip(
            found.baselines.items(), (ORANGE, GREEN, "#CC79A7"), strict=False
        ):
            axes.plot(times, values, "--", color=colour, linewidth=1.0, alpha=0.7, label=word)
        axes.fill_between(
            times,
            found.mean - 2 * found.spread,
            found.mean + 2 * found.spread,
            color=BLUE,
            alpha=0.25,
            linewidth=0,
            label="± 2 standard deviations",
        )
        axes.plot(times, found.mean, color=BLUE, linewidth=1.8, label="mean of the networks")
        dress(axes, name, xlabel if axes is grid[-1] else "", ylabel)
        axes.margins(x=0.01)
    # Outside: curves may be anywhere within.
    handles, words = grid[-1].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=len(words), frameon=False)
    return figure
