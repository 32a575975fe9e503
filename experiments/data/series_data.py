"""A series out of a CSV file, and its parts: learned from, chosen by, held out."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.cli.options import UsageError
from experiments.data import calendar_dates
from rnn_jax.io.reading import shown
from rnn_jax.io.tables import Table, numbers, place, read_table
from rnn_jax.tasks.series import fill_gaps

SUNSPOTS = Path(__file__).parent / "sunspots_monthly.csv"
MOST_SPREADS = 1e15
"""Of the rows learned from, from their mean: the square of what is farther off leaves float32."""


class Series(NamedTuple):
    """A series and where it is cut; the rows are in order, and so are the parts.

    Attributes:
        names: of the columns.
        dates: what the file calls each row: its date, or its number from 1.
        times: the same as numbers, `[N]`.
        values: `[N, D]`, as they are in the file, float64; where there is none, what stands in for
            it (`rnn_jax.tasks.series.fill_gaps`).
        measured: `[N, D]`, True where the file has a number.
        mean, scale: of what was measured in the rows learned from, `[D]`; nothing else is known
            before the end.
        validation: the first row of the validation part; all before it are learned from.
        held_out: the first row of the held-out part.
    """

    names: list[str]
    dates: list[str]
    times: np.ndarray
    values: np.ndarray
    measured: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    validation: int
    held_out: int


def normalized(series: Series) -> np.ndarray:
    """Its values, of mean 0 and variance 1 over the rows learned from, `[N, D]`."""
    return (series.values - series.mean) / series.scale


def fingerprint(series: Series) -> str:
    """A few letters that tell a series from another: a run goes on only with its own."""
    gaps = b"" if series.measured.all() else np.packbits(series.measured).tobytes()
    return hashlib.sha256(series.values.tobytes() + gaps).hexdigest()[:16]


def actual(series: Series) -> np.ndarray:
    """The held-out rows as they were measured, `[H, D]`; NaN where nothing was."""
    held_out = slice(series.held_out, None)
    return np.where(series.measured[held_out], series.values[held_out], np.nan)


def read_series(
    csv: str | Path,
    columns: str,
    date_column: str,
    missing: str,
    *,
    held_out: int,
    validation: int,
    least: int,
) -> Series:
    """Reads columns of a CSV file and cuts them.

    Args:
        csv: the file, with a line of names, gzip or not.
        columns: names, with commas between them.
        date_column: its name; empty where there is none.
        missing: "error", or "interpolate": among the rows learned from a straight line stands in
            for what is missing, behind them the number before it. Neither is ever asked.
        held_out: rows at the end that are foretold.
        validation: rows before them, that settings may be chosen by.
        least: rows that learning wants.

    Raises:
        ValueError: what is wrong in the file, with its line and column.
        UsageError: too few rows for these parts.
    """
    table = read_table(csv)
    names = [name.strip() for name in columns.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        there = ", ".join(shown(name) for name in table.names[:20])
        raise UsageError(
            f"--column={columns}: name one or more columns of {csv}, each once; there are {there}"
        )
    values = np.stack([numbers(table, name, "nan") for name in names], axis=1)
    measured = ~np.isnan(values)
    if missing == "error" and not measured.all():
        row, column = np.argwhere(~measured)[0]
        raise ValueError(
            f"{place(table, row, names[column])}: the number is missing; give "
            "--missing=interpolate to go on without it, or drop the row"
        )
    total = len(values)
    first = total - held_out - validation
    if first < least:
        raise UsageError(
            f"{csv} has {total} rows: --held_out={held_out} and --validation={validation} leave "
            f"{max(first, 0)} to learn from, where the settings want {least}; give smaller "
            "--held_out, --validation, --length or --season, or a longer series"
        )
    last = first + validation
    parts = {"learn from": (0, first), "compare networks on": (first, last)}
    _check_measured(table, names, measured, parts | {"foretell": (last, total)})
    for name, column in zip(names, values[:first].T, strict=True):
        if np.nanmin(column) == np.nanmax(column):
            raise ValueError(
                f"{csv}, column {shown(name)}: all of the {first} rows to learn from are "
                f"{column[0]:g} (lines {table.lines[0]} to {table.lines[first - 1]}); there is "
                "nothing to foretell"
            )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean, scale = np.nanmean(values[:first], axis=0), np.nanstd(values[:first], axis=0)
        far = np.abs(values - mean) > MOST_SPREADS * scale
        beyond = far | ~((scale > 0) & (scale < np.inf))
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise ValueError(
            f"{csv}, column {shown(names[column])}, line {table.lines[row]}: "
            f"{values[row, column]:g} cannot be compared with the rows to learn from, of mean "
            f"{mean[column]:.3g} and standard deviation {scale[column]:.3g}; give the column in "
            "other units, or take the value out"
        )
    if date_column:
        times = calendar_dates.times(table, date_column)
        dates = table.columns[date_column]
    else:
        times = np.arange(1.0, total + 1)
        dates = [f"{row:.0f}" for row in times]
    filled = fill_gaps(values, first)
    return Series(names, dates, times, filled, measured, mean, scale, first, last)


def _check_measured(
    table: Table, names: list[str], measured: np.ndarray, parts: dict[str, tuple[int, int]]
) -> None:
    """`ValueError` where a column begins with a gap, or has nothing in one of the parts."""
    for name, column in zip(names, measured.T, strict=True):
        if not column[0]:
            raise ValueError(
                f"{place(table, 0, name)}: the number is missing, and nothing before it can stand "
                "in for it; drop the rows up to the first that has one"
            )
        for purpose, (start, stop) in parts.items():
            if not column[start:stop].any():
                raise ValueError(
                    f"{table.path}, column {shown(name)}: there is no number in the {stop - start} "
                    f"rows to {purpose} (lines {table.lines[start]} to {table.lines[stop - 1]}); "
                    "give other --held_out and --validation, or leave the column out"
                )
