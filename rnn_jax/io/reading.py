"""Files that may come from anyone: bounded, plain data only, and one clear error for what is wrong.

Nothing here runs what a file holds. A file is refused by its size before it is read, and whatever
is wrong with it ends in a `ValueError` of one line that names it.
"""

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 2**20
MAX_LINES_BYTES = 2**30
MAX_LINE_BYTES = 2**20
MAX_INTEGER = 2**63
"""Whole numbers of a file lie within ± this."""
SHOWN = 40
"""Characters of a file's text that an error repeats."""

JSONObject = dict[str, Any]


@contextlib.contextmanager
def opened(path: str | Path, max_bytes: int) -> Iterator[BufferedReader]:
    """Opens a file for reading that is one, and no larger than `max_bytes`.

    Raises:
        ValueError: no such file, one that cannot be read, a folder, a pipe or a device, or a file
            that is too large; of the last nothing is read.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path} is no file, but a pipe or a device")
            if found.st_size > max_bytes:
                raise ValueError(
                    f"{path} has {found.st_size:,} bytes, but at most {max_bytes:,} are read"
                )
            yield file
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe too without waiting for somebody to write to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """A whole file; errors are those of `opened`."""
    with opened(path, max_bytes) as file:
        content = file.read(max_bytes + 1)
    # Some files, those of /proc among them, hold more than they say.
    if len(content) > max_bytes:
        raise ValueError(f"{path} has more than the {max_bytes:,} bytes that are read")
    return content


def shown(value: Any) -> str:
    """A value out of a file as an error may repeat it: short, on one line, nothing but print.

    >>> shown("a" * 1000)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'..."
    >>> shown("red\\x1b[31m")
    "'red\\\\x1b[31m'"
    """
    if isinstance(value, str):
        return ascii(value[:SHOWN]) + ("..." if len(value) > SHOWN else "")
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def json_object(content: bytes, where: str) -> JSONObject:
    """The JSON object that a text holds: finite numbers, no name twice.

    Args:
        content: UTF-8.
        where: the file, and the line where there are lines, for errors.

    Raises:
        ValueError: the text is no such object.
    """
    try:
        value = json.loads(
            content.decode(),
            parse_float=_finite_number,
            parse_int=_whole_number,
            parse_constant=_finite_number,
            object_pairs_hook=_named_once,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}, not an object of names")
    return value


def read_object(path: str | Path) -> JSONObject:
    """A file of one JSON object; errors are those of `opened` and `json_object`."""
    return json_object(read_bytes(path, MAX_CONFIG_BYTES), str(path))


def read_lines(path: str | Path) -> list[JSONObject]:
    """A file of one JSON object a line; errors name the line too."""
    rows: list[JSONObject] = []
    with opened(path, MAX_LINES_BYTES) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            where = f"{path}, line {len(rows) + 1}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where} has more than the {MAX_LINE_BYTES:,} bytes that are read"
                )
            rows.append(json_object(line, where))
    return rows


def readable_lines(path: str | Path) -> Iterator[JSONObject]:
    """The lines of a file that hold a JSON object each; whatever else there is is passed over.

    For a file that a process may have been killed over, and whose lines can be done without.
    """
    with contextlib.suppress(ValueError), opened(path, MAX_LINES_BYTES) as file:
        while line := file.readline(MAX_LINE_BYTES):
            with contextlib.suppress(ValueError):
                yield json_object(line, str(path))


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is no finite number")
    return value


def _whole_number(text: str) -> int:
    # Python itself refuses, and takes long over, numbers of thousands of digits.
    if len(text) > len(str(-MAX_INTEGER)) or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise ValueError(f"{shown(text)} is no whole number of 64 bits")
    return int(text)


def _named_once(pairs: list[tuple[str, Any]]) -> JSONObject:
    found: JSONObject = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} is there twice")
        found[name] = value
    return found


PLAIN_NAME = re.compile(r"\w[\w.=+-]*")


def plain_name(name: str) -> str:
    """The name, if it is that of a file in its own folder; `ValueError` for a path or a hidden one.

    >>> plain_name("trace_0001")
    'trace_0001'
    """
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)} is no name of an array; give letters, digits and _ . = + - alone"
        )
    return name
