"""SIGTERM and SIGINT: the work at hand is finished and kept, and the way to go on is told."""

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

EXIT_CODE = 75
"""Of a process that stopped early and can be gone on with: `EX_TEMPFAIL` of sysexits.h."""


class Interrupted(Exception):
    """A signal asked the run to stop; all that it did is on disk."""


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
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

    # None is a handler that was not set from Python, such as the one of a distributed JAX.
    before = {
        each: signal.signal(each, note) or signal.SIG_DFL
        for each in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(came)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def command_to_resume(arguments: Sequence[str], settings: Sequence[str]) -> str:
    """The line that takes up a run, without what would start it afresh.

    Args:
        arguments: the whole command that started it, as in `sys.orig_argv`.
        settings: names of its settings.
    """
    again = [word for word in arguments if not _starts_afresh(word)]
    # Last, since a flags file may say otherwise.
    words = {"overwrite": "--nooverwrite", "resume": "--resume"}
    return shlex.join([*again, *(word for name, word in words.items() if name in settings)])


def _starts_afresh(word: str) -> bool:
    name, _, value = word.lstrip("-").partition("=")
    return word.startswith("-") and (
        name in ("overwrite", "nooverwrite", "noresume") or (name == "resume" and value == "false")
    )
