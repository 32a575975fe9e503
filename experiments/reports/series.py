"""Figures, table, forecast.csv and words of the series experiment."""

from pathlib import Path

import numpy as np

from experiments.analysis import forecasts
from experiments.analysis.forecasts import FREE_RUN, ONE_STEP, Forecasts, rmse, spread
from experiments.data.series_data import Series, actual, normalized
from experiments.reports.memory import Trained, best_cells
from experiments.reports.sine import heatmap_finding
from experiments.training.groups import Group
from experiments.training.parts import Row
from rnn_jax import plots
from rnn_jax.io import records

SPANS = (15, 3, 1)
"""The free run is judged over these parts of the held-out rows: 1, 5 and 15 of 15 years."""


def save(
    workdir: Path,
    series: Series,
    rows: list[Row],
    groups: list[Group],
    season: int,
    test_every: int,
) -> str:
    """Draws the figures, writes table and forecasts; returns the summary.

    Args:
        workdir: the experiment's folder.
        series: what was foretold.
        rows: the lines of all networks.
        groups: theirs.
        season: rows of a season; 0 for none.
        test_every: iterations between two points of a curve.
    """
    cells = best_cells(workdir, rows, groups, [validation_baseline(series)] * len(groups))
    losses = [validation_loss(cell) for cell in cells]
    best = int(np.argmin(losses))
    cell = cells[best]
    found = load_forecasts(workdir, series, best, season)
    traces = np.median(records.load_array(workdir, f"traces_{best:04d}"), axis=0)
    save_learning(workdir, cells, cell, traces, test_every)
    records.write_atomically(
        workdir / "forecast.csv",
        forecasts.as_csv(found, series.dates[series.held_out :], series.names),
    )
    save_forecasts(workdir, series, found)
    table = markdown(found, series.names)
    records.write_atomically(workdir / "table.md", table)
    words = [
        f"{c.kind}: loss on the validation rows {loss:.3g} (median of {len(c.rows)})"
        for c, loss in zip(cells, losses, strict=True)
    ]
    if len(cells) > 1:
        words.append(f"The forecasts are those of {cell.kind}, the lowest of these")
    words += [*verdicts(found, series.names), *gaps(found, series.names)]
    words.append(f"Forecasts, lines, arrays and figures: {workdir}/")
    return table + "\n".join(words) + "\n"


def validation_loss(cell: Trained) -> float:
    """Median of the networks; inf where all diverged."""
    losses = [row["test_loss"] for row in cell.rows if row["test_loss"] is not None]
    return float(np.median(losses)) if losses else np.inf


def validation_baseline(series: Series) -> float:
    """Loss on the validation rows of repeating the last value; mean over those measured."""
    known = normalized(series)[series.validation - 1 : series.held_out]
    measured = series.measured[series.validation : series.held_out]
    asked = measured.any(axis=1)
    errors = np.mean(np.square(np.diff(known, axis=0))[asked], axis=1, where=measured[asked])
    return float(np.mean(errors))


def load_forecasts(workdir: Path, series: Series, group: int, season: int) -> Forecasts:
    """What a group's networks foretold, in the units of the file."""
    one_step, free = (
        series.mean + series.scale * records.load_array(workdir, f"{name}_{group:04d}")
        for name in (ONE_STEP, FREE_RUN)
    )
    return Forecasts(
        actual(series),
        one_step,
        free,
        *forecasts.baselines(series.values, series.held_out, season),
    )


def save_learning(
    workdir: Path, cells: list[Trained], best: Trained, traces: np.ndarray, test_every: int
) -> None:
    """Curves on the validation rows, and the gradient of the networks that forecast."""
    panel = "the validation rows, one step ahead, normalized"
    records.save_figure(
        workdir,
        "learning_curves",
        plots.learning_curves(
            {panel: {cell.kind: cell.learned for cell in cells}},
            test_every,
            {panel: best.chance_loss},
            f"{best.kind} comes to {validation_loss(best):.3g}; the last value "
            f"{best.chance_loss:.3g}",
            ylabel="mean squared error",
            baseline=forecasts.LAST_VALUE,
        ),
    )
    records.save_figure(
        workdir,
        "gradient_profiles",
        plots.start_and_end(
            {cell.kind: cell.learned for cell in cells},
            "The gradient of a window's last loss, before training and after",
            ("after: beats the last value", "after: does not"),
        ),
    )
    records.save_figure(
        workdir,
        "gradient_heatmap",
        plots.gradient_heatmap(
            traces,
            f"{heatmap_finding(traces)} (median of the networks, {best.kind})",
            every=test_every,
        ),
    )


def save_forecasts(workdir: Path, series: Series, found: Forecasts) -> None:
    """A figure for each column."""
    for column, name in enumerate(series.names):
        panels = {}
        for title, own, others in (
            ("One step ahead", found.one_step, found.one_step_baselines),
            ("Running free", found.free_run, found.free_run_baselines),
        ):
            errors = {word: rmse(values, found.actual)[column] for word, values in others.items()}
            beside = ", ".join(f"{word} {error:.3g}" for word, error in errors.items())
            error = rmse(own.mean(axis=0), found.actual)[column]
            panels[f"{title}: error (RMSE) {error:.3g}; {beside}"] = plots.Forecast(
                own.mean(axis=0)[:, column],
                spread(own)[:, column],
                {word: values[:, column] for word, values in others.items()},
            )
        suffix = f"_{column + 1}" if len(series.names) > 1 else ""
        dated = series.dates[0] != "1"
        records.save_figure(
            workdir,
            f"forecast{suffix}",
            plots.forecasts(
                series.times[series.held_out :],
                found.actual[:, column],
                panels,
                f"{name}: {len(found.actual)} held-out rows, foretold"
                + (f"; {lost} were not measured" if (lost := missing(found, column)) else ""),
                "year" if dated else "row",
                name,
            ),
        )


def missing(found: Forecasts, column: int) -> int:
    """Held-out rows of which nothing was measured."""
    return int(np.count_nonzero(np.isnan(found.actual[:, column])))


def gaps(found: Forecasts, names: list[str]) -> list[str]:
    """In words, for each column with gaps: what was not measured, and what came of it."""
    return [
        f"{name}: {lost} of {len(found.actual)} held-out rows were not measured; they are in no "
        "score, and a forecast one step ahead reads the value before in their place"
        for column, name in enumerate(names)
        if (lost := missing(found, column))
    ]


def spans(found: Forecasts) -> list[int]:
    """Lengths of free run that are judged, in rows."""
    return sorted({max(1, len(found.actual) // part) for part in SPANS})


def markdown(found: Forecasts, names: list[str]) -> str:
    """Root mean squared errors: one network's, mean and spread; that of their mean; baselines."""
    steps = spans(found)
    lines = [
        "| column | forecast | one step ahead | "
        + " | ".join(f"free run, first {count}" for count in steps)
        + " |",
        "|---" * (3 + len(steps)) + "|",
    ]
    for column, name in enumerate(names):

        def line(word: str, cells: list[str], name: str = name) -> str:
            return f"| {name} | {word} | " + " | ".join(cells) + " |"

        def of(values: np.ndarray, count: int | None = None, column: int = column) -> np.ndarray:
            return rmse(values, found.actual, count)[..., column]

        own = [of(found.one_step), *(of(found.free_run, count) for count in steps)]
        lines.append(line("a network", [shown_error(e.mean(), spread(e)) for e in own]))
        joint = [of(found.one_step.mean(axis=0))]
        joint += [of(found.free_run.mean(axis=0), count) for count in steps]
        lines.append(line("mean of the networks", [shown_error(error) for error in joint]))
        for word, values in found.one_step_baselines.items():
            theirs = [of(values)]
            theirs += [of(found.free_run_baselines[word], count) for count in steps]
            lines.append(line(word, [shown_error(error) for error in theirs]))
    return "\n".join(lines) + "\n"


def shown_error(error: np.ndarray, around: np.ndarray | None = None) -> str:
    """An error as the table shows it; a dash where nothing was measured to compare with."""
    if np.isnan(error):
        return "–"
    return f"{error:.3g}" + ("" if around is None else f" ± {around:.2g}")


def verdicts(found: Forecasts, names: list[str]) -> list[str]:
    """In words, for each column: which baselines the mean of the networks beats, and which not."""
    lines = []
    for column, name in enumerate(names):
        lines.append(_verdict(f"{name}, one step ahead", found, column, None))
        lines += [
            _verdict(f"{name}, free run of {count} rows", found, column, count)
            for count in spans(found)
        ]
    return lines


def _verdict(what: str, found: Forecasts, column: int, steps: int | None) -> str:
    alone = steps is not None
    own = found.free_run if alone else found.one_step
    others = found.free_run_baselines if alone else found.one_step_baselines
    error = rmse(own.mean(axis=0), found.actual, steps)[column]
    if np.isnan(error):
        return f"{what}: nothing was measured in these rows"
    theirs = {word: rmse(values, found.actual, steps)[column] for word, values in others.items()}
    words = [
        f"{'beats' if error < other else 'DOES NOT BEAT'} {word} ({other:.3g})"
        for word, other in theirs.items()
    ]
    return f"{what}: error {error:.3g} " + " and ".join(words)
