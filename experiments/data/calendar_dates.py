"""Dates of a table's rows: YYYY, YYYY-MM or YYYY-MM-DD, evenly spaced."""

import calendar
import re

import numpy as np

from rnn_jax.io.reading import shown
from rnn_jax.io.tables import Table

FORM = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")

Date = tuple[int, int, int]
"""Year, month and day; month and day are 1 where the date has none."""


def times(table: Table, name: str) -> np.ndarray:
    """The dates of a column as years and parts of years, `[rows]`.

    Args:
        table: made by `rnn_jax.io.tables.read_table`.
        name: of the column.

    Raises:
        ValueError: no such column, a cell that is no date or of another form than the first, or
            dates that are not evenly spaced, by days, months or years, from early to late.
    """
    if name not in table.columns:
        there = ", ".join(shown(known) for known in table.names[:20])
        raise ValueError(f"{table.path} has no column {shown(name)}; there are {there}")
    cells = [cell.strip() for cell in table.columns[name]]
    dates = [_date(table, name, row, cells) for row in range(len(cells))]
    _check_even(table, name, cells, dates)
    return np.array([_years(date) for date in dates])


def _date(table: Table, name: str, row: int, cells: list[str]) -> Date:
    found = FORM.fullmatch(cells[row])
    if found is None:
        raise ValueError(
            f"{_where(table, name, row)}: {shown(cells[row])} is no date; write YYYY, YYYY-MM or "
            "YYYY-MM-DD"
        )
    if len(cells[row]) != len(cells[0]):
        raise ValueError(
            f"{_where(table, name, row)}: {shown(cells[row])} is not written like the first date, "
            f"{shown(cells[0])}; write all of them alike"
        )
    year, month, day = (int(part or 1) for part in found.groups())
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise ValueError(
            f"{_where(table, name, row)}: {shown(cells[row])} is no day of the calendar"
        )
    return year, month, day


def _check_even(table: Table, name: str, cells: list[str], dates: list[Date]) -> None:
    """`ValueError` unless all rows are as far apart as the first two, in months or in days."""
    same_day = len({day for _, _, day in dates}) == 1
    ends = all(day == calendar.monthrange(year, month)[1] for year, month, day in dates)
    if same_day or ends:
        unit, counts = "months", [12 * year + month for year, month, _ in dates]
    else:
        unit, counts = "days", [_day_number(date) for date in dates]
    gaps = np.diff(counts)
    for row, gap in enumerate(gaps, start=1):
        if gap <= 0:
            raise ValueError(
                f"{_where(table, name, row)}: {cells[row]} does not come after {cells[row - 1]}; "
                "sort the rows from early to late, one a date"
            )
        if gap != gaps[0]:
            raise ValueError(
                f"{_where(table, name, row)}: {cells[row]} comes {gap} {unit} after "
                f"{cells[row - 1]}, but the first two rows are {gaps[0]} {unit} apart; give every "
                "date its row (--missing=interpolate fills a cell left empty)"
            )


def _day_number(date: Date) -> int:
    return int(np.datetime64(f"{date[0]:04d}-{date[1]:02d}-{date[2]:02d}", "D").astype(int))


def _years(date: Date) -> float:
    year, month, day = date
    return year + (month - 1 + (day - 1) / calendar.monthrange(year, month)[1]) / 12


def _where(table: Table, name: str, row: int) -> str:
    return f"{table.path}, line {table.lines[row]}, column {shown(name)}"
