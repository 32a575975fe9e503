"""Several training runs in one figure: what was learned, and what became of the gradient."""

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_jax.plots.style import CYCLE, GREY, ORDERED, dress, natural_log, new_figure
from rnn_jax.plots.training import running_median

LENGTHS = tuple(digit * 10**power for power in range(-1, 5) for digit in (1, 2, 5))
"""E-folding lengths that may be written beside the axis, in steps."""
CLOSEST = 0.12
"""Least distance of two ticks, as a share of half the axis, so that their names do not collide."""


class Trained(NamedTuple):
    """What a training run left behind.

    Attributes:
        loss: `[K]`; empty where nothing was trained.
        start, end: |dL/ds_t| at the start and at the end of training, `[T]`.
        iterations: at which the slope is known, `[C]`.
        slopes: nats that ln|dL/ds_t| gains with each step back, `[C]`; NaN where unknown.
        every: iterations from one loss to the next.
    """

    loss: np.ndarray
    start: np.ndarray
    end: np.ndarray
    iterations: np.ndarray
    slopes: np.ndarray
    every: int = 1


def trained_side_by_side(runs: Mapping[str, Trained], title: str) -> Figure:
    """Loss and e-folding length of the gradient over training, and its profile at start and end.

    Args:
        runs: label -> run; a colour each.
        title: the finding.

    The last panel shows slopes on an axis that names their e-folding lengths, 1/|slope|: one that
    is infinite lies in the middle, below it are gradients that fall on their way back.
    """
    rows = (len(runs) + 1) // 2
    figure = new_figure(13.0, 4.6 + 0.28 * rows)
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    losses, profiles, lengths = figure.subplots(1, 3)
    # Sequences of unequal lengths have their last step in common.
    equal = len({len(run.start) for run in runs.values()}) == 1
    colours = dict(zip(runs, _colours(len(runs)), strict=True))
    for label, run in runs.items():
        colour = colours[label]
        median, _ = running_median(run.loss)
        steps = run.every * (1 + np.arange(len(median)))
        losses.plot(steps, np.where(np.isfinite(median), median, np.nan), color=colour, lw=1.8)
        for norms, line in ((run.start, ":"), (run.end, "-")):
            logs = natural_log(norms)
            shown = np.where(np.isfinite(logs), logs, np.nan)
            steps = 1 + np.arange(len(logs)) - (0 if equal else len(logs))
            profiles.plot(steps, shown, line, color=colour, linewidth=1.8)
        lengths.plot(run.iterations, run.slopes, color=colour, linewidth=1.8)
    losses.set_yscale("log")
    dress(losses, "Loss (running median)", "training iteration", "loss")
    dress(
        profiles,
        "Gradient by time step",
        "time step t" if equal else "time step, counted from the last: t - T",
        r"$\ln\,|\partial L/\partial s_t|$  (nats)",
    )
    dress(lengths, "E-folding length", "training iteration", "e-folding length (steps)")
    _name_lengths(lengths, np.concatenate([run.slopes for run in runs.values()]))
    for axes in (losses, lengths):
        axes.locator_params(axis="x", nbins=5)
    moments = [Line2D([], [], color=GREY, linestyle=line, linewidth=1.8) for line in (":", "-")]
    profiles.legend(moments, ["start of training", "end"], fontsize=10, frameon=False)
    handles = [Line2D([], [], color=colour, linewidth=3) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside lower left", ncols=2, frameon=False)
    return figure


def _colours(count: int) -> list[str]:
    if count <= len(CYCLE):
        return list(CYCLE[:count])
    return [to_hex(rgba) for rgba in matplotlib.colormaps[ORDERED](np.linspace(0, 0.95, count))]


def _name_lengths(axes: Axes, slopes: np.ndarray) -> None:
    """Writes 1/|slope| at the ticks of an axis of slopes, and which half is which."""
    reach = 1.15 * max(np.max(np.abs(slopes[np.isfinite(slopes)]), initial=0.0), 0.001)
    axes.set_ylim(-reach, reach)
    axes.axhline(0, color=GREY, linewidth=0.8)
    marks, above = [], reach
    for mark in (1 / length for length in LENGTHS if 1 / length < reach):
        if above - mark > CLOSEST * reach and mark > CLOSEST * reach:
            marks += [mark, -mark]
            above = mark
    axes.set_yticks([0, *marks], ["∞", *(f"{abs(1 / mark):g}" for mark in marks)])
    for height, side, words in ((0.98, "top", "grows"), (0.02, "bottom", "falls")):
        axes.text(
            0.98,
            height,
            f"{words} e-fold in so many steps back",
            transform=axes.transAxes,
            ha="right",
            va=side,
            color=GREY,
            fontsize=10,
        )
