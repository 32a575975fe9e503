"""Figures of networks that learn a task: curves against chance, gradients, who succeeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rnn_jax.plots.style import BLUE, CYCLE, GREY, ORDERED, RED, dress, new_figure


class Learned(NamedTuple):
    """The networks of one kind on one task.

    Attributes:
        curves: test loss, or what else is shown over training, `[networks, C]`; NaN after a
            network diverged.
        solved: which of them solved it, `[networks]`.
        start, end: ln|dL/ds_t| before and after training, `[networks, T]`.
    """

    curves: np.ndarray
    solved: np.ndarray
    start: np.ndarray
    end: np.ndarray


def learning_curves(
    panels: Mapping[str, Mapping[str, Learned]],
    test_every: int,
    chance: Mapping[str, float],
    title: str,
    ordered: bool = False,
    ylabel: str = "test loss",
    baseline: str = "without memory",
) -> Figure:
    """Curves over training, a panel for each name, a colour for each kind; dashed, chance.

    Args:
        panels: title -> name -> networks. Each is a thin line, their median a thick one.
        test_every: iterations between two points.
        chance: title of a panel -> where the best answer without memory lies.
        title: the finding.
        ordered: whether the names are in an order, which their colours then show.
        ylabel: what the curves are.
        baseline: what the dashed line is.
    """
    figure, grid = _grid(len(panels), title)
    colours = _colours(list(dict.fromkeys(n for panel in panels.values() for n in panel)), ordered)
    for index, (axes, (name, panel)) in enumerate(zip(grid, panels.items(), strict=True)):
        for kind, learned in panel.items():
            steps = test_every * (1 + np.arange(learned.curves.shape[1]))
            axes.plot(steps, learned.curves.T, color=colours[kind], linewidth=0.8, alpha=0.35)
            middle = np.full(len(steps), np.nan)
            known = ~np.isnan(learned.curves).all(axis=0)
            middle[known] = np.nanmedian(learned.curves[:, known], axis=0)
            axes.plot(steps, middle, color=colours[kind], linewidth=2.2, label=kind)
        axes.axhline(chance[name], color="black", linestyle="--", linewidth=1.2)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if 10 * chance[name] > low:
            axes.set_ylim(low, min(high, 10 * chance[name]))
        dress(axes, name, "training iteration", "" if index % 4 else ylabel)
    handles = [Line2D([], [], color=colour, linewidth=2.2) for colour in colours.values()]
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.2))
    # Outside: curves may be anywhere within.
    figure.legend(handles, [*colours, baseline], loc="outside right upper", frameon=False)
    return figure


def start_and_end(
    panels: Mapping[str, Learned],
    title: str,
    words: tuple[str, str] = ("after: solved", "after: not solved"),
) -> Figure:
    """The gradient of the last loss over the time step, before training and after.

    Args:
        panels: title -> networks; each is drawn in grey as it started, in blue as it ended where
            it solved the task, in red where it did not.
        title: the finding.
        words: what the legend calls those two.
    """
    figure, grid = _grid(len(panels), title)
    for index, (axes, (name, learned)) in enumerate(zip(grid, panels.items(), strict=True)):
        for start, end, solved in zip(learned.start, learned.end, learned.solved, strict=True):
            for logs, colour, width in (
                (start, "#AAAAAA", 1.0),
                (end, BLUE if solved else RED, 1.5),
            ):
                shown = np.where(np.isfinite(logs), logs, np.nan)
                axes.plot(1 + np.arange(len(logs)), shown - shown[-1], color=colour, lw=width)
        ylabel = "" if index % 4 else r"$\ln\,|\partial L/\partial s_t|$ - that of $T$  (nats)"
        dress(axes, name, "time step t", ylabel)
    handles = [Line2D([], [], color=colour, lw=2) for colour in ("#AAAAAA", BLUE, RED)]
    figure.legend(
        handles,
        ["before training", *words],
        loc="outside right upper",
        frameon=False,
    )
    return figure


def success_table(
    rows: Sequence[str],
    columns: Sequence[str],
    success: np.ndarray,
    notes: Sequence[Sequence[str]],
    title: str,
) -> Figure:
    """Share of networks that solve a task, a row for each cure and a column for each length.

    Args:
        rows, columns: their names.
        success: `[rows, columns]`, 0..1; NaN where nothing was trained.
        notes: `[rows][columns]`, what is written in small under the share.
        title: the finding.
    """
    figure = new_figure(3.0 + 1.7 * len(columns), 1.3 + 0.52 * len(rows))
    axes = dress(figure.subplots(), title, "", "")
    axes.imshow(success, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), share in np.ndenumerate(success):
        if np.isnan(share):
            continue
        ink = "white" if share > 0.7 else "black"
        at = (column, row)
        axes.annotate(
            f"{share:.0%}", at, xytext=(0, 5), textcoords="offset points", ha="center",
            va="center", color=ink, fontsize=12,
        )  # fmt: skip
        axes.annotate(
            notes[row][column], at, xytext=(0, -8), textcoords="offset points", ha="center",
            va="center", color=ink, fontsize=8.5,
        )  # fmt: skip
    return figure


def foretold(
    predicted: np.ndarray, found: np.ndarray, names: Sequence[str], longest: int, title: str
) -> Figure:
    """The length that a family of networks learns, against the one foretold before training.

    Args:
        predicted: `[N]`, trainable lengths; inf where the gradient never vanishes.
        found: `[N]`, the longest length that was learned; 0 for none.
        names: `[N]`, of the initialization, which gives the colour.
        longest: the longest length tried.
        title: the finding.
    """
    figure = new_figure(7.2, 5.2)
    axes = figure.subplots()
    ends = np.array([5.0, 2.0 * longest])
    axes.plot(ends, ends, color=GREY, linewidth=1, label="as foretold")
    axes.axhline(longest, color=GREY, linewidth=0.8, linestyle=":", label="longest tried")
    shown = np.minimum(predicted, 20.0 * longest)
    for colour, name in zip(CYCLE, dict.fromkeys(names), strict=False):
        mine = np.asarray(names) == name
        axes.plot(
            shown[mine],
            np.maximum(found[mine], 5),
            "o-",
            color=colour,
            label=name,
            linewidth=0.8,
            alpha=0.8,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    dress(
        axes,
        title,
        "steps over which the gradient keeps 1/1000, measured before training",
        "longest T learned by half of the seeds",
    )
    axes.legend(frameon=False, fontsize=10)
    return figure


def _grid(count: int, title: str) -> tuple[Figure, list]:
    """Panels of one size, at most four in a row, and the figure's title above them."""
    columns = min(4, count)
    rows = -(-count // columns)
    figure = new_figure(3.2 + max(3.0 * columns, 5.0), 0.9 + (3.0 if count > 1 else 3.6) * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    for axes in list(grid.flat)[count:]:
        axes.remove()
    return figure, list(grid.flat)[:count]


def _colours(names: Sequence[str], ordered: bool) -> dict[str, str]:
    if ordered:
        shades = matplotlib.colormaps[ORDERED](np.linspace(0.0, 0.85, len(names)))
        return {
            name: matplotlib.colors.to_hex(shade) for name, shade in zip(names, shades, strict=True)
        }
    return {name: CYCLE[index % len(CYCLE)] for index, name in enumerate(names)}
