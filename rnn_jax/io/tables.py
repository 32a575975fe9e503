"""Time series in CSV files, as text and as numbers; gzip too.

A file may come from anyone: it is refused by its size before it is read, a compressed one by what
it becomes, and every error is a `ValueError` that names the file, the line and the column.
"""

import collections
import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rnn_jax.io.reading import read_bytes, shown

MAX_BYTES = 2**28
MAX_CELLS = 2 * 10**7
"""A cell takes some 60 bytes of memory, however short it is."""
GZIP_MAGIC = b"\x1f\x8b"
MISSING = {"", "na", "nan", "n/a", "null"}
"""Cells that say that there is no number, in lower case."""


class Table(NamedTuple):
    """A CSV file, its cells as they are.

    Attributes:
        path: the file.
        names: of the columns, in order.
        columns: name -> text of each row's cell.
        first_line: the line of the file that holds the names.
        lines: the line of the file where each row begins.
    """

    path: Path
    names: tuple[str, ...]
    columns: dict[str, list[str]]
    first_line: int
    lines: list[int]


def read_table(path: str | Path, max_bytes: int = MAX_BYTES) -> Table:
    """Reads a CSV file: commas, UTF-8, a first line of names; empty lines do not count.

    Args:
        path: the file, as it is or compressed with gzip, whatever it is called.
        max_bytes: the most that it may have, also after decompression.

    Raises:
        ValueError: there is no such file, it is too large, not such a table, or has a name twice.
    """
    path = Path(path)
    content = read_bytes(path, max_bytes)
    if content.startswith(GZIP_MAGIC):
        content = _decompressed(path, content, max_bytes)
    reader = csv.reader(io.StringIO(_decoded(path, content), newline=""), strict=True)
    names: tuple[str, ...] = ()
    first_line, line = 0, 1
    cells: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if not row:
                pass
            elif not names:
                names, first_line = _names(f"{path}, line {line}", row), line
                cells = [[] for _ in names]
            elif len(row) != len(names):
                raise ValueError(
                    f"{path}, line {line}: {len(row)} cells, but line {first_line} names "
                    f"{len(names)} columns"
                )
            else:
                for column, cell in zip(cells, row, strict=True):
                    column.append(cell)
                lines.append(line)
                if len(lines) * len(names) > MAX_CELLS:
                    raise ValueError(
                        f"{path}, line {line}: more than the {MAX_CELLS:,} cells that are read; "
                        "split the file, or drop columns"
                    )
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: not CSV: {error}") from None
    if not names:
        raise ValueError(f"{path} is empty; its first line should name the columns")
    return Table(path, names, dict(zip(names, cells, strict=True)), first_line, lines)


def numbers(table: Table, name: str, missing: Literal["error", "nan"] = "error") -> np.ndarray:
    """A column's numbers, float64 `[rows]`.

    Args:
        table: made by `read_table`.
        name: of the column.
        missing: what to do where a cell is empty, NaN or NA: raise, or return NaN there.

    Raises:
        ValueError: no such column, fewer than 2 rows, a cell that is not a finite number, or one
            that is missing.
    """
    if missing not in ("error", "nan"):
        raise ValueError(
            f"missing is {missing!r}; give 'error', or 'nan' and fill the gaps with "
            "rnn_jax.tasks.series.fill_gaps, which does not look ahead of the rows learned from"
        )
    if name not in table.columns:
        there = ", ".join(shown(known) for known in table.names[:20])
        raise ValueError(f"{table.path} has no column {shown(name)}; there are {there}")
    cells = table.columns[name]
    if len(cells) < 2:
        raise ValueError(f"{table.path} has {len(cells)} rows below its names; give at least 2")

    def where(row: int) -> str:
        return place(table, row, name)

    values = np.array([_number(cell, where, row) for row, cell in enumerate(cells)])
    gaps = np.isnan(values)
    if missing == "error" and gaps.any():
        raise ValueError(f"{where(int(np.argmax(gaps)))}: the number is missing; drop the row")
    return values


def place(table: Table, row: int, name: str) -> str:
    """A cell's file, line and column, as errors name it."""
    return f"{table.path}, line {table.lines[row]}, column {shown(name)}"


def _number(cell: str, where: Callable[[int], str], row: int) -> float:
    """A cell's number; NaN where it is missing."""
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        # Python reads 1_000 as a thousand, and digits of every script; a table means neither.
        value = float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        value = None
    if value is None:
        raise ValueError(
            f"{where(row)}: {shown(cell)} is no number; write it like -12.5 or 1e-3, leave the "
            "cell empty where there is none, or name another column"
        )
    if not math.isfinite(value):
        raise ValueError(f"{where(row)}: {shown(cell)} is not finite; correct it or drop the row")
    return value


def _names(where: str, row: list[str]) -> tuple[str, ...]:
    """The names of the columns, from the first row that holds anything."""
    names = tuple(cell.strip() for cell in row)
    if all(_is_number(name) for name in names):
        raise ValueError(
            f"{where}: numbers, where the names of the columns are wanted; put a line of names "
            "above them"
        )
    for column, name in enumerate(names):
        if not name:
            raise ValueError(f"{where}: column {column + 1} has no name; give it one")
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{where}: {count} columns are called {shown(name)}; rename them")
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _decompressed(path: Path, content: bytes, max_bytes: int) -> bytes:
    """What gzip packed, if it is no more than `max_bytes`; no more than that is unpacked."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            unpacked = packed.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None
    if len(unpacked) > max_bytes:
        raise ValueError(f"{path} unpacks to more than the {max_bytes:,} bytes that are read")
    return unpacked


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: not UTF-8; save the table in UTF-8 encoding"
        ) from None
