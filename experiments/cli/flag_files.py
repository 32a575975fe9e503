"""Flags files are looked through before absl reads them: whatever is wrong with one is one line."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rnn_jax.io.reading import read_bytes, shown

MAX_BYTES = 2**16
MAX_FILES = 64
"""Flags files of one command line, with those that they name."""
CONTROL = re.compile(r"[^\t\n\r\x20-\x7e\x80-\U0010ffff]")


def check_flag_files(arguments: Sequence[str]) -> None:
    """`ValueError` for a flags file that cannot be read as text, or that includes itself.

    Args:
        arguments: the command line without the program's name.
    """
    _check(_named(arguments), (), [])


def _check(names: Iterator[str], above: tuple[Path, ...], read: list[str]) -> None:
    """Reads files and those that they name; `above` are those that led here."""
    for name in names:
        given = f"--flagfile={name if name.isprintable() else shown(name)}"
        if not name:
            raise ValueError(f"{given} is empty; name a file of flags, one a line")
        path = Path(os.path.realpath(os.path.expanduser(name)))
        if path in above:
            raise ValueError(f"{given}: this file includes itself, by way of {above[-1].name}")
        read.append(name)
        if len(read) > MAX_FILES:
            raise ValueError(f"{given}: more than {MAX_FILES} flags files include each other")
        try:
            text = read_bytes(path, MAX_BYTES).decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{given} is not UTF-8 text: byte {error.start} is "
                f"0x{error.object[error.start]:02x}; save it as UTF-8, one flag a line"
            ) from None
        except ValueError as error:
            reason = str(error).removeprefix(f"{path} ")
            raise ValueError(f"{given} {reason}; name a text file, one flag a line") from None
        if found := CONTROL.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise ValueError(
                f"{given} is not text: line {line} holds the character {found.group()!r}"
            )
        _check(_included(text), (*above, path), read)


def _named(arguments: Sequence[str]) -> Iterator[str]:
    """Files that the words of a command line name, in absl's ways to write it."""
    words = iter(arguments)
    for word in words:
        if word == "--":
            return
        if word in ("--flagfile", "-flagfile"):
            # absl itself says what is wrong where nothing follows.
            if (name := next(words, None)) is not None:
                yield name
        elif word.startswith(("--flagfile=", "-flagfile=")):
            yield word.partition("=")[2].strip()


def _included(text: str) -> Iterator[str]:
    """Files that the lines of a flags file name; there absl knows one way alone."""
    for line in text.splitlines():
        if line.startswith(("--flagfile=", "-flagfile=")):
            yield line.partition("=")[2].strip()
