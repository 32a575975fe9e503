"""SIGTERM and SIGINT: the work at hand is finished and kept, and the way to go on is told."""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

EXIT_CODE = 75
"""Of a process that stopped early and can be gone on with: `EX_TEMPFAIL` of sysexits.h."""


class Interrupted(Exception):
    """A signal asked the run to stop; all that it did is on disk."""


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT came since.

    A second signal ends the process as it would have without. In any thread but the main one
    signals cannot be caught, and the function tells False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def command_to_go_on(arguments: Sequence[str]) -> str:
    """The line that takes up a run started with these arguments, without what starts it afresh."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name] if module else ["python", arguments[0]]
    again = [word for word in arguments[1:] if not _starts_afresh(word)]
    # Last, since a flags file may say otherwise.
    return shlex.join([*program, *again, "--nooverwrite"])


def _starts_afresh(word: str) -> bool:
    name, _, value = word.lstrip("-").partition("=")
    return word.startswith("-") and (
        name in ("overwrite", "nooverwrite", "noresume") or (name == "resume" and value == "false")
    )
