"""Figures of a sweep: where gradients vanish and explode, foretold and found, and who learns."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_jax.plots.style import BLUE, CYCLE, DIVERGING, GREY, dress, new_figure

SLOPE = "nats per step back"
LINEAR_SLOPE = 0.01
"""Slopes within this of 0 are drawn linearly; a hundred steps change the gradient by e at most."""


class Panel(NamedTuple):
    """A map over two axes.

    Attributes:
        name: of the structure that it shows.
        x, y: values of the axes, `[X]` and `[Y]`.
        slopes: `[Y, X]`, nats per step; NaN where nothing was measured.
        theory: x `[P]`, y `[Q]` and predicted slopes `[Q, P]`, or None where theory is silent.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    slopes: np.ndarray
    theory: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


class Curve(NamedTuple):
    """A number over an axis: its middle and, where there are several networks, its range.

    Attributes:
        name: in the legend.
        x: `[X]`.
        middle, low, high: `[X]`.
    """

    name: str
    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def phase_diagram(panels: Sequence[Panel], xlabel: str, ylabel: str, title: str) -> Figure:
    """One map for each structure: blue where the gradient vanishes, red where it explodes.

    The colour is linear near 0 and logarithmic beyond. The measured edge is drawn thin, the
    predicted one dashed.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(2.2 + 4.8 * columns, 0.9 + 3.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    finite = np.concatenate([panel.slopes[np.isfinite(panel.slopes)] for panel in panels])
    limit = max(2 * LINEAR_SLOPE, float(np.abs(finite).max(initial=0.0)))
    scale = SymLogNorm(LINEAR_SLOPE, vmin=-limit, vmax=limit)
    measured = predicted = False
    for axes, panel in zip(grid.flat, panels, strict=False):
        image = axes.pcolormesh(
            panel.x, panel.y, panel.slopes, norm=scale, cmap=DIVERGING, shading="nearest"
        )
        axes.set_facecolor("lightgrey")
        measured |= _edge(axes, panel.x, panel.y, panel.slopes, "-", 1.2)
        if panel.theory is not None:
            predicted |= _edge(axes, *panel.theory, "--", 2.2)
        dress(axes, panel.name if len(panels) > 1 else title, xlabel, ylabel)
    used = list(grid.flat)[: len(panels)]
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    if len(panels) > 1:
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    figure.colorbar(
        image, ax=used, label=rf"slope of $\ln\,|\partial L/\partial s_t|$, {SLOPE}", shrink=0.9
    )
    lines = []
    if measured:
        lines.append(Line2D([], [], color="black", linewidth=1.2, label="measured edge"))
    if predicted:
        lines.append(
            Line2D([], [], color="black", linestyle="--", linewidth=2.2, label="predicted edge")
        )
    if lines:
        used[0].legend(handles=lines, fontsize=10, loc="upper left", framealpha=0.9)
    return figure


def _edge(
    axes: Axes, x: np.ndarray, y: np.ndarray, slopes: np.ndarray, style: str, width: float
) -> bool:
    """Draws where slopes change sign, if they do."""
    known = slopes[np.isfinite(slopes)]
    there = min(slopes.shape) > 1 and known.size > 0 and known.min() < 0 < known.max()
    if there:
        axes.contour(x, y, slopes, [0], colors="black", linestyles=style, linewidths=width)
    return there


def slopes_along(
    measured: Sequence[Curve], predicted: Mapping[str, Curve], xlabel: str, title: str
) -> Figure:
    """Slopes over one axis, a colour for each structure; dashed, in the same colour, theory's."""
    figure = new_figure()
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.8)
    for colour, curve in zip(_colours(len(measured)), measured, strict=True):
        _draw_curve(axes, curve, colour)
        if curve.name in predicted:
            theory = predicted[curve.name]
            axes.plot(theory.x, theory.middle, color=colour, linestyle="--", linewidth=1.5)
    dress(axes, title, xlabel, f"slope, {SLOPE}")
    handles, labels = axes.get_legend_handles_labels()
    if predicted:
        handles.append(Line2D([], [], color=GREY, linestyle="--"))
        labels.append("theory")
    axes.legend(handles, labels, frameon=False, fontsize=10)
    return figure


def prediction(predicted: np.ndarray, measured: np.ndarray, groups: Sequence[str]) -> Figure:
    """Measured slope of each network `[N]` against its predicted one; groups `[N]` give colours."""
    figure = new_figure(6.4, 5.2)
    axes = figure.subplots()
    names = list(dict.fromkeys(groups))
    both = np.concatenate([predicted, measured])
    ends = np.array([both.min(), both.max()])
    axes.plot(ends, ends, color=GREY, linewidth=1, label="as predicted")
    for colour, name in zip(_colours(len(names)), names, strict=True):
        mine = np.asarray(groups) == name
        axes.scatter(
            predicted[mine], measured[mine], s=6, alpha=0.35, color=colour, linewidths=0, label=name
        )
    error = float(np.median(np.abs(measured - predicted)))
    dress(
        axes,
        f"Theory is off by {error:.2g} nats per step (median of {len(measured):,} networks)",
        f"predicted slope, {SLOPE}",
        f"measured slope, {SLOPE}",
    )
    legend = axes.legend(frameon=False, fontsize=10)
    for handle in legend.legend_handles[1:]:
        handle.set_alpha(1)  # type: ignore[union-attr]
    return figure


def success(curves: Sequence[Curve], xlabel: str, title: str) -> Figure:
    """Share of networks that solve their task, over one axis, a line for each choice."""
    figure = new_figure()
    axes = figure.subplots()
    for colour, curve in zip(_colours(len(curves)), curves, strict=True):
        _draw_curve(axes, curve, colour)
    axes.set_ylim(-0.03, 1.03)
    dress(axes, title, xlabel, "share of networks that solve it")
    axes.legend(frameon=False, fontsize=10)
    return figure


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    marker = "o" if len(curve.x) < 12 else None
    axes.plot(curve.x, curve.middle, color=colour, linewidth=2, marker=marker, label=curve.name)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)


def _colours(count: int) -> list[str]:
    return [CYCLE[index % len(CYCLE)] for index in range(count)] or [BLUE]
