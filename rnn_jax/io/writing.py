"""The one place where files are written: each is whole or absent, whenever the process ends."""

import contextlib
import errno
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes under another name, syncs and renames: a reader sees the old file or the new one.

    What a process that was killed leaves is at most `.NAME.PID`, which `records.held` removes.

    Raises:
        OSError: the file cannot be written; the old one, if there was one, is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    # Whatever has this name, a link included, is not written through.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # On a full disk half a file would be in the way of the rest.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def append(path: Path, data: bytes) -> None:
    """Adds to a file's end by a single write; what a full disk takes only in part is cut off again.

    Raises:
        OSError: the file cannot be written, or is a link; it is as it was.
    """
    with open(path, "ab", buffering=0, opener=not_through_a_link) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def not_through_a_link(path: str, flags: int) -> int:
    """Opens the file itself, never one elsewhere that a link of its name leads to.

    Nor does it wait at a pipe for somebody to read from it.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
