"""What a benchmark found, as a table, as JSON and as the numbers of a figure."""

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.timing import Spread, Times, spread

FASTER, COST = "other/ours", "ours/other"
HEADER = "| what | ours | other | ratio median (min..max) | wanted |\n|---|---|---|---|---|"
NUMBERS_HEADER = "| what | found | wanted |\n|---|---|---|"
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Wanted(NamedTuple):
    """A bound on a row's ratio, on our seconds where there is no other side, or on a number.

    Attributes:
        sense: ">=" or "<=".
        bound: the number.
    """

    sense: str
    bound: float


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        what: the work, and which other side did it.
        ours: our times.
        other: the other side's, paired with ours run by run; None where ours stand alone.
        ratio: `FASTER`, other / ours, or `COST`, ours / other.
        wanted: what was aimed at, if anything.
        at: the cell, sizes and the like, where the row is a point of a grid of them.
    """

    what: str
    ours: Times
    other: Times | None = None
    ratio: str = FASTER
    wanted: Wanted | None = None
    at: Mapping[str, Any] = NOTHING


class Number(NamedTuple):
    """A finding that is not a time: a mean of ratios, a peak of memory.

    Attributes:
        what: it is.
        value: in `unit`.
        unit: "" for a ratio.
        wanted: what was aimed at, if anything.
        at: as in `Row`.
    """

    what: str
    value: float
    unit: str = ""
    wanted: Wanted | None = None
    at: Mapping[str, Any] = NOTHING


class Findings(NamedTuple):
    """What a section found, or a part of it.

    Attributes:
        rows: times.
        notes: lines to be read with them, such as what was left out.
        numbers: what is no time.
        figures: name -> figure.
    """

    rows: list[Row]
    notes: list[str]
    numbers: Sequence[Number] = ()
    figures: Mapping[str, Any] = NOTHING


def ratios(row: Row) -> np.ndarray | None:
    """The ratio of each pair of runs, `[R]`; None where there is no other side."""
    if row.other is None:
        return None
    faster = row.other.seconds / row.ours.seconds
    return faster if row.ratio == FASTER else 1 / faster


def is_met(found: Row | Number) -> bool | None:
    """Whether the number, or a row's median, keeps what was wanted; None where nothing was."""
    if found.wanted is None:
        return None
    value = found.value if isinstance(found, Number) else _median(found)
    sense, bound = found.wanted
    return value >= bound if sense == ">=" else value <= bound


def _median(row: Row) -> float:
    values = ratios(row)
    return spread(row.ours.seconds if values is None else values).median


def duration(seconds: float) -> str:
    """Three digits and a unit, from microseconds to seconds."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9995:
            return f"{three_digits(seconds * factor)} {unit}"
    return f"{three_digits(seconds * 1e6)} us"


def three_digits(value: float) -> str:
    """1234, 123, 12.3, 1.23, 0.123."""
    magnitude = int(np.floor(np.log10(value))) if value > 0 else 0
    # 99.96 has two digits before the point but is written with three.
    magnitude += round(value, max(0, 2 - magnitude)) >= 10 ** (magnitude + 1)
    return f"{value:.{max(0, 2 - magnitude)}f}"


def _durations(times: Times | None) -> str:
    if times is None:
        return "-"
    found = spread(times.seconds)
    return f"{duration(found.median)} ({duration(found.low)}..{duration(found.high)})"


def _ratio(row: Row) -> str:
    values = ratios(row)
    if values is None:
        return "-"
    text = "{} ({}..{})".format(*map(three_digits, spread(values)))
    return text if row.ratio == FASTER else f"{text} {COST}"


def _wanted(found: Row | Number) -> str:
    if found.wanted is None:
        return "-"
    unit = found.unit if isinstance(found, Number) else "s" if found.other is None else ""
    verdict = "met" if is_met(found) else "missed"
    return f"{found.wanted.sense} {found.wanted.bound:g}{unit and ' '}{unit}: {verdict}"


def table(rows: Sequence[Row]) -> str:
    """A markdown table, one line a row; times per iteration are medians with their range."""
    lines = [
        "| "
        + " | ".join((r.what, _durations(r.ours), _durations(r.other), _ratio(r), _wanted(r)))
        + " |"
        for r in rows
    ]
    return "\n".join([HEADER, *lines]) + "\n"


def numbers_table(numbers: Sequence[Number]) -> str:
    """A markdown table, one line a number; empty for none."""
    if not numbers:
        return ""
    lines = [f"| {n.what} | {quantity(n.value, n.unit)} | {_wanted(n)} |" for n in numbers]
    return "\n".join([NUMBERS_HEADER, *lines]) + "\n"


def quantity(value: float, unit: str) -> str:
    """Three digits and the unit; small ones in powers of ten."""
    text = f"{value:.1e}" if 0 < abs(value) < 1e-3 else three_digits(value)
    return f"{text} {unit}".rstrip()


def line(row: Row) -> str:
    """A row in short, for the terminal: the ratio, or our time where there is no other side."""
    return f"{row.what}: {_durations(row.ours) if row.other is None else _ratio(row)}"


NOTICEABLE = 0.01
"""Seconds: a first run that was slower by less compiled nothing."""


def compilation_lines(rows: Sequence[Row]) -> list[str]:
    """One line: how much longer each side's first run took, where it did; empty where none did."""
    sides = [side for row in rows for side in (row.ours, row.other) if side is not None]
    slower = {side.name: side.compilation for side in sides if side.compilation >= NOTICEABLE}
    if not slower:
        return []
    listed = "; ".join(f"{name} {duration(seconds)}" for name, seconds in slower.items())
    return [f"First runs took longer by, compilation included: {listed}."]


def as_json(row: Row) -> dict[str, Any]:
    """A row with every measured number, for results.json."""
    values = ratios(row)
    return {
        "what": row.what,
        "at": dict(row.at),
        "ours": _times_as_json(row.ours),
        "other": None if row.other is None else _times_as_json(row.other),
        "ratio": None
        if values is None
        else {"of": row.ratio, **spread(values)._asdict(), "pairs": values.tolist()},
        "wanted": None if row.wanted is None else " ".join(map(str, row.wanted)),
        "met": is_met(row),
    }


def number_as_json(number: Number) -> dict[str, Any]:
    """A number, for results.json."""
    wanted = None if number.wanted is None else " ".join(map(str, number.wanted))
    return {
        **number._asdict(),
        "at": dict(number.at),
        "wanted": wanted,
        "met": is_met(number),
    }


def _times_as_json(times: Times) -> dict[str, Any]:
    return {
        "name": times.name,
        "seconds": spread(times.seconds)._asdict(),
        "runs": times.seconds.tolist(),
        "compilation_seconds": times.compilation,
    }


LABEL_WIDTH = 32
"""Letters in a line of a bar's label: two lines hold what a row compares."""


class Bars(NamedTuple):
    """Arguments of `rnn_jax.plots.speed_ratios`, one entry a comparison; NaN: nothing wanted."""

    labels: list[str]
    medians: list[float]
    lows: list[float]
    highs: list[float]
    wanted: list[float]


def bars(rows: Sequence[Row]) -> Bars:
    """The rows that say how many times faster we are; a grid's have a figure of their own."""
    chosen: list[tuple[Row, Spread]] = []
    for row in rows:
        values = ratios(row)
        if values is not None and row.ratio == FASTER and not row.at:
            chosen.append((row, spread(values)))
    return Bars(
        [textwrap.fill(row.what, LABEL_WIDTH) for row, _ in chosen],
        [found.median for _, found in chosen],
        [found.low for _, found in chosen],
        [found.high for _, found in chosen],
        [np.nan if row.wanted is None else row.wanted.bound for row, _ in chosen],
    )
