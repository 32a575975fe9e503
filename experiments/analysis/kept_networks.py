"""Which networks a run's folder holds, and the one that is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cli.options import LARGEST, UsageError
from rnn_jax.io.reading import read_lines, shown

NETWORKS = "networks.jsonl"
MOST_SHOWN = 6
"""Values of a setting that a message lists."""

Row = dict[str, Any]


class Choice(NamedTuple):
    """A network of a run.

    Attributes:
        number: in networks.jsonl; None for the run of a single network.
        row: its line; empty for the run of a single network.
        about: the network in words, and what others there are; empty where there are none.
    """

    number: int | None
    row: Row
    about: str


def choose(folder: str, which: str) -> Choice:
    """The network of a run that --network names; the first unless it names one.

    Args:
        folder: of the run.
        which: a number in networks.jsonl, settings such as cure=lstm,seed=1, or nothing.

    Raises:
        UsageError: there is no such network; the message lists what there is.
        ValueError: networks.jsonl is not one of lines of networks.
    """
    if not (Path(folder) / NETWORKS).exists():
        if which:
            raise UsageError(
                f"--network={which}: {folder} has no {NETWORKS}: it is the run of a single "
                "network, or of many that have not come to their end; leave --network out"
            )
        return Choice(None, {}, "")
    rows = rows_of(folder)
    there = listing(rows)
    found = matching(rows, which)
    if not found:
        raise UsageError(f"--network={which}: {folder} has no such network; there are {there}")
    row = found[0]
    words = ", ".join(f"{name} {value}" for name, value in settings_in(row).items())
    others = f"; there are {there}" if len(rows) > 1 else ""
    return Choice(row["network"], row, f"network {row['network']}: {words}{others}")


def load_rows(workdir: str | Path) -> list[Row]:
    """The lines of a finished sweep, in order.

    Raises:
        ValueError: there are none, or a line, which is named, is not that of its network.
    """
    path = Path(workdir) / NETWORKS
    rows = read_lines(path)
    for index, row in enumerate(rows):
        where, found = f"{path}, line {index + 1}", row.get("network")
        if type(found) is not int or found != index:
            raise ValueError(f"{where}: network is {shown(found)}, but {index} is wanted")
        for name, value in row.items():
            if isinstance(value, list | dict):
                raise ValueError(f"{where}: {shown(name)} is {shown(value)}; one value is wanted")
    return rows


def rows_of(folder: str) -> list[Row]:
    """The lines of a run's networks, in order, each with a seed; errors are those of `load_rows`"""
    rows = load_rows(folder)
    for number, row in enumerate(rows):
        seed = row.get("seed")
        if type(seed) is not int or not 0 <= seed <= LARGEST:
            raise ValueError(
                f"{Path(folder) / NETWORKS}, line {number + 1}: seed is {shown(seed)}; a whole "
                f"number of at most {LARGEST} is wanted"
            )
    if not rows:
        raise ValueError(f"{Path(folder) / NETWORKS} has no line; the run has no network")
    return rows


def settings_in(row: Row) -> Row:
    """What a network's line says of how it was made: all that stands up to its seed."""
    names = list(row)
    return {name: row[name] for name in names[: names.index("seed") + 1] if name != "network"}


def matching(rows: Sequence[Row], which: str) -> list[Row]:
    """The lines of the networks that --network names; all of them where it is empty."""
    if which.strip().isdecimal():
        return [row for row in rows if str(row["network"]) == which.strip()]
    pairs = [part.partition("=") for part in which.split(",") if part.strip()]
    for name, equals, _ in pairs:
        if not equals:
            raise UsageError(
                f"--network={which}: {name!r} is neither a number nor a setting; give a number "
                f"or settings such as seed=1; there are {listing(rows)}"
            )
    return [
        row
        for row in rows
        if all(_written(settings_in(row), name.strip(), value.strip()) for name, _, value in pairs)
    ]


def _written(settings: Row, name: str, value: str) -> bool:
    """Whether a setting has the value that is written so."""
    if name not in settings:
        return False
    there = settings[name]
    if isinstance(there, int | float):
        try:
            return float(value) == there
        except ValueError:
            return False
    return str(there) == value


def listing(rows: Sequence[Row]) -> str:
    """The networks of a run in words."""
    values: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in settings_in(row).items():
            values.setdefault(name, {})[str(value)] = None
    words = []
    for name, found in values.items():
        shown_values = ", ".join(list(found)[:MOST_SHOWN])
        more = f", ... ({len(found)})" if len(found) > MOST_SHOWN else ""
        words.append(f"{name}={shown_values}{more}")
    return f"--network=0 to {len(rows) - 1}, or by {'; '.join(words)}"
