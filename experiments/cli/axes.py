"""Axes of a sweep, as they are written on a command line.

0.1:3.0:30     30 numbers evenly spaced from 0.1 to 3.0, both included
0.5,1,2        these
elman,lstm     these words
"""

import math
from collections.abc import Sequence

import numpy as np

from experiments.cli.options import FLOAT32, LARGEST, UsageError, fits_float32

LARGEST_AXIS = 100_000


def numbers(
    flag: str, text: str, *, minimum: float = -math.inf, above: float = -math.inf
) -> list[float]:
    """The numbers of an axis; `UsageError` names the flag and the part that cannot be read."""
    parts = [part.strip() for part in text.split(",")]
    if not text.strip():
        raise UsageError(f"--{flag}= is empty; give numbers such as 0.5,1,2 or a range 0.1:3:30")
    values: list[float] = []
    for part in parts:
        if not part:
            raise UsageError(f"--{flag}={text}: there is a comma, but no number beside it")
        values += _span(flag, part) if ":" in part else [_number(flag, part, part)]
    for value in values:
        if value < minimum or value <= above:
            limit = f"at least {minimum:g}" if value < minimum else f"above {above:g}"
            raise UsageError(f"--{flag}={text}: {value:g} is not {limit}")
        if not fits_float32(value):
            raise UsageError(f"--{flag}={text}: {value:g} is too {_extreme(value)}; {FLOAT32}")
    _check_distinct(flag, text, values)
    return values


def whole_numbers(flag: str, text: str, *, minimum: int) -> list[int]:
    """The whole numbers of an axis."""
    values = numbers(flag, text, minimum=minimum)
    for value in values:
        if value != int(value):
            raise UsageError(f"--{flag}={text}: {value:g} is not a whole number")
        if value > LARGEST:
            raise UsageError(f"--{flag}={text}: {value:g} is above {LARGEST}, the largest allowed")
    return [int(value) for value in values]


def words(flag: str, text: str, choices: Sequence[str]) -> list[str]:
    """The words of an axis, each one of `choices`."""
    values = distinct_words(flag, text)
    for value in values:
        if value not in choices:
            raise UsageError(f"--{flag}={text}: take some of {', '.join(choices)}")
    return values


def distinct_words(flag: str, text: str) -> list[str]:
    """The words of an axis, whatever they are, none of them twice."""
    values = [part.strip() for part in text.split(",")]
    _check_distinct(flag, text, values)
    return values


def _extreme(value: float) -> str:
    return "small" if abs(value) < 1 else "large"


def _span(flag: str, part: str) -> list[float]:
    pieces = part.split(":")
    if len(pieces) != 3:
        raise UsageError(f"--{flag}={part}: a range is start:stop:count, such as 0.1:3.0:30")
    start, stop = (_number(flag, part, piece) for piece in pieces[:2])
    count = _number(flag, part, pieces[2])
    if count != int(count) or not 1 <= count <= LARGEST_AXIS:
        raise UsageError(
            f"--{flag}={part}: the count is {pieces[2]}; give a whole number in 1..{LARGEST_AXIS}"
        )
    if count == 1 and start != stop:
        raise UsageError(
            f"--{flag}={part}: a count of 1 has no room for both ends; give --{flag}={pieces[0]}"
        )
    # Rounded to what can be told apart when written: 0.3 and not 0.30000000000000004.
    return [float(f"{value:.12g}") for value in np.linspace(start, stop, int(count))]


def _number(flag: str, part: str, piece: str) -> float:
    try:
        value = float(piece)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"--{flag}={part}: {piece!r} is not a finite number; give numbers such as 0.5,1,2 or "
            "a range start:stop:count such as 0.1:3.0:30"
        )
    return value


def _check_distinct(flag: str, text: str, values: Sequence[float | str]) -> None:
    if len(set(values)) != len(values):
        raise UsageError(f"--{flag}={text}: a value is there twice; give each once")
