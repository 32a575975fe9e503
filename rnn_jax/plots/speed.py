"""Figures of a benchmark."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rnn_jax.plots.style import BLUE, GREY, RED, dress, new_figure


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
