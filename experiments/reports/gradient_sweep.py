"""Figures and words of a sweep, from its lines."""

from collections import Counter
from pathlib import Path

import numpy as np

from experiments.analysis.sweep_theory import predicted_slope
from experiments.training.groups import Group
from experiments.training.parts import Row
from rnn_jax import plots
from rnn_jax.io import records

LABELS = {
    "gain": "gain of W",
    "input_std": "standard deviation of the input",
    "bias_std": "standard deviation of the bias",
    "leak": "leak",
    "forget_bias": "forget-gate bias",
    "learning_rate": "learning rate",
    "clip_norm": "bound on the gradient's norm",
    "length": "T, time steps",
    "hidden_size": "H, hidden units",
}
TRAINING_NUMBERS = ("learning_rate", "clip_norm")
THEORY_POINTS = 60


def label_of(axis: str) -> str:
    """What a figure calls an axis; one of the user's own goes by its name."""
    return LABELS.get(axis, axis)


def column(rows: list[Row], name: str) -> np.ndarray:
    """A number of all lines, `[N]`; NaN where a line has none."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], np.float64)


def slope_name(rows: list[Row]) -> str:
    """The slope of the network as it was initialized."""
    return "slope" if "slope" in rows[0] else "slope_start"


def group_names(groups: list[Group]) -> list[str]:
    """What each group is called: the settings in which groups differ."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    differing = [key for key in keys if len({str(g.settings.get(key)) for g in groups}) > 1]
    short = {"length": "T = {}", "hidden_size": "H = {}", "recurrent_init": "{} W"}
    names = []
    for group in groups:
        parts = [
            short.get(key, "{}").format(group.settings[key])
            for key in differing
            if key in group.settings
        ]
        names.append(", ".join(parts) or str(group.settings["cell"]))
    return names


def rows_by_group(rows: list[Row], groups: list[Group]) -> list[list[Row]]:
    """The lines of each group."""
    ends = np.cumsum([len(group.seeds) for group in groups])
    return [rows[end - len(group.seeds) : end] for group, end in zip(groups, ends, strict=True)]


def varied(groups: list[Group]) -> list[str]:
    """The axes with several values that a fresh network depends on, in the order of the flags."""
    names = dict.fromkeys(name for group in groups for name in group.hparams)
    names = {name: None for name in names if name not in TRAINING_NUMBERS}
    return [
        name
        for name in names
        if any(len(np.unique(g.hparams[name])) > 1 for g in groups if name in g.hparams)
    ]


def middle(values: np.ndarray) -> float:
    """Median of the numbers that exist; NaN where none does."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else np.nan


def curve_of(rows: list[Row], axis: str, name: str, label: str) -> plots.Curve:
    """Median and range of a number over an axis."""
    x, values = column(rows, axis), column(rows, name)
    points = np.unique(x[~np.isnan(x)])
    at = [values[(x == point) & ~np.isnan(values)] for point in points]
    low, high = ([pick(v) if v.size else np.nan for v in at] for pick in (np.min, np.max))
    return plots.Curve(
        label, points, np.array([middle(v) for v in at]), np.array(low), np.array(high)
    )


def panel_of(rows: list[Row], axes: tuple[str, str], name: str, label: str) -> plots.Panel:
    """The median slope at each pair of values, beside what theory says."""
    x, y, values = (column(rows, key) for key in (*axes, name))
    xs, ys = np.unique(x), np.unique(y)
    slopes = np.array([[middle(values[(x == a) & (y == b)]) for a in xs] for b in ys])
    return plots.Panel(label, xs, ys, slopes, theory_map(rows[0], axes, xs, ys))


def theory_map(
    row: Row, axes: tuple[str, str], xs: np.ndarray, ys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Predicted slopes on a fine grid over two axes; None where theory says nothing."""
    grid = [np.linspace(values.min(), values.max(), THEORY_POINTS) for values in (xs, ys)]
    slopes = []
    for b in grid[1]:
        for a in grid[0]:
            point = {**row, axes[0]: float(a), axes[1]: float(b)}
            if point.get("input_std") is None:
                return None
            slopes.append(theory_at(point))
    if any(slope is None for slope in slopes):
        return None
    return grid[0], grid[1], np.reshape(np.array(slopes, np.float64), (THEORY_POINTS,) * 2)


def theory_at(point: Row) -> float | None:
    """The predicted slope of a line's settings."""
    return predicted_slope(
        point["cell"],
        point.get("activation", ""),
        point.get("recurrent_init", ""),
        point.get("gain", 1.0),
        point["input_std"],
        point.get("bias_std") or 0.0,
    )


def save(workdir: Path, rows: list[Row], groups: list[Group]) -> str:
    """Draws what the axes allow; returns the summary in words."""
    names, split = group_names(groups), rows_by_group(rows, groups)
    axes, slope = varied(groups), slope_name(rows)
    first, second = [*axes, "", ""][:2]
    pair = (first, second)
    # A cell that lacks an axis has no map over it.
    panels = [
        panel_of(part, pair, slope, name)
        for part, name, group in zip(split, names, groups, strict=True)
        if set(pair) <= set(group.hparams)
    ]
    if panels:
        records.save_figure(
            workdir,
            "phase_diagram",
            plots.phase_diagram(
                panels,
                label_of(pair[0]),
                label_of(pair[1]),
                "Where a gradient vanishes (blue) and explodes (red)",
            ),
        )
    elif axes:
        measured = [
            curve_of(part, axes[0], slope, name) for part, name in zip(split, names, strict=True)
        ]
        predicted = {
            name: curve_of(part, axes[0], "predicted_slope", name)
            for part, name in zip(split, names, strict=True)
            if np.isfinite(column(part, "predicted_slope")).all()
        }
        records.save_figure(
            workdir,
            "slopes",
            plots.slopes_along(
                measured,
                predicted,
                label_of(axes[0]),
                "Where the gradient vanishes (below 0) and explodes (above)",
            ),
        )
    both = np.isfinite(column(rows, slope)) & np.isfinite(column(rows, "predicted_slope"))
    if both.any():
        labels = [name for name, part in zip(names, split, strict=True) for _ in part]
        records.save_figure(
            workdir,
            "prediction",
            plots.prediction(
                column(rows, "predicted_slope")[both],
                column(rows, slope)[both],
                [label for label, known in zip(labels, both, strict=True) if known],
            ),
        )
    if "solved" in rows[0]:
        draw_success(workdir, groups, split, axes)
    return summary(workdir, rows, groups)


def draw_success(
    workdir: Path, groups: list[Group], split: list[list[Row]], axes: list[str]
) -> None:
    """Share of networks that solve the task, over the length if it varies, else the first axis."""
    lengths = {group.settings["length"] for group in groups}
    axis = "length" if len(lengths) > 1 else (axes or ["gain"])[0]
    merged: dict[str, list[Row]] = {}
    for group, part in zip(groups, split, strict=True):
        rest = {key: value for key, value in group.settings.items() if key != "length"}
        label = ", ".join(str(value) for key, value in rest.items() if key != "hidden_size")
        merged.setdefault(
            label if axis == "length" else f"{label}, T = {group.settings['length']}", []
        ).extend(part)
    curves = []
    for name, part in merged.items():
        if part[0].get(axis) is None:
            continue
        x, solved = column(part, axis), column(part, "solved")
        points = np.unique(x)
        curves.append(
            plots.Curve(name, points, np.array([solved[x == point].mean() for point in points]))
        )
    records.save_figure(
        workdir,
        "success",
        plots.success(
            curves, label_of(axis), "Who learns the task: share of the seeds that solve it"
        ),
    )


def edges(rows: list[Row], axis: str, slope: str) -> list[float]:
    """Values of an axis at which the median slope changes its sign, interpolated."""
    curve = curve_of(rows, axis, slope, "")
    known = np.isfinite(curve.middle)
    x, y = curve.x[known], curve.middle[known]
    return [
        float(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]))
        for i in range(len(x) - 1)
        if y[i] * y[i + 1] < 0
    ]


def summary(workdir: Path, rows: list[Row], groups: list[Group]) -> str:
    """Where the edge is, which choices keep gradients alive longest, and how good theory was."""
    names, split = group_names(groups), rows_by_group(rows, groups)
    axes, slope = varied(groups), slope_name(rows)
    suffix = slope.removeprefix("slope")
    verdicts = Counter(row[f"verdict{suffix}"] for row in rows)
    counts = ", ".join(f"{count:,} {word}" for word, count in verdicts.most_common())
    lines = [f"{len(rows):,} networks before training: {counts}"]
    order = sorted(
        range(len(groups)), key=lambda g: -middle(horizons(split[g], f"horizon{suffix}"))
    )
    for g in order:
        reach = middle(horizons(split[g], f"horizon{suffix}"))
        words = f"half of them keep a gradient for {reach:.0f} steps or more"
        if np.isinf(reach):
            words = "in half of them or more the gradient never falls to 1/1000"
        lines.append(f"{names[g]}: {words}")
        for axis in axes[:1]:
            found = edges(split[g], axis, slope)
            where = ", ".join(f"{value:.3g}" for value in found) or "nowhere on this axis"
            lines.append(f"  the median slope changes sign at {label_of(axis)}: {where}")
        if "solved" in rows[0]:
            lines.append(f"  solved by {column(split[g], 'solved').mean():.0%}")
    both = np.isfinite(column(rows, slope)) & np.isfinite(column(rows, "predicted_slope"))
    if both.any():
        error = np.abs(column(rows, slope) - column(rows, "predicted_slope"))[both]
        lines.append(
            f"theory: off by {np.median(error):.2g} nats per step (median), "
            f"{np.quantile(error, 0.9):.2g} (9 of 10 are closer)"
        )
    if "diverged_step" in rows[0]:
        gone = sum(row["diverged_step"] is not None for row in rows)
        lines.append(f"{gone:,} of {len(rows):,} networks diverged in training")
    lines.append(f"Lines, arrays and figures: {workdir}/")
    return "\n".join(lines) + "\n"


def horizons(rows: list[Row], name: str) -> np.ndarray:
    """Horizons, inf where a living gradient never falls; NaN for networks without one."""
    verdict = name.replace("horizon", "verdict")
    return np.array(
        [
            np.nan if row[verdict] == "non-finite" else np.inf if row[name] is None else row[name]
            for row in rows
        ],
        np.float64,
    )
