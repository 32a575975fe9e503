"""SIGTERM and SIGINT: the first is answered at once, whatever runs, and a second ends the process.

A handler in Python runs between two bytecodes, and so not while a program is compiled, computes or
is stuck. The system's own part of it writes to a file instead (`signal.set_wakeup_fd`), at which a
thread waits.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

EXIT_CODE = 75
"""Of a process that stopped early and can be gone on with: `EX_TEMPFAIL` of sysexits.h."""

NUMBERS = (signal.SIGTERM, signal.SIGINT)
LIBC = ctypes.CDLL(None)
"""Its `signal`, unlike Python's, may be called in any thread."""
LIBC.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
LIBC.signal.restype = ctypes.c_void_p


class Interrupted(Exception):
    """A signal asked the run to stop; all that it did is on disk."""


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT came since.

    The first is announced on standard error at once, and a second of either kind ends the process
    at once, as that signal would have without any handler. In any thread but the main one signals
    cannot be caught, and the function tells False.
    """
    if not _in_main_thread():
        yield lambda: False
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)

    answered: list[int] = []

    def answer(number: int) -> None:
        if answered:
            _end(number)
        answered.append(number)
        _default()
        _write(
            f"{_name(number)}: what runs now is finished and kept first; a second SIGINT or "
            "SIGTERM ends the process at once"
        )

    # The file first: whoever comes before the handlers is answered, too.
    file, thread = _answered_by_a_thread(answer)
    outer = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    # None is a handler that was not set from Python.
    before = {each: signal.signal(each, note) or signal.SIG_DFL for each in NUMBERS}
    for each in NUMBERS:
        _handled_once(each)
    try:
        yield lambda: bool(came or answered)
    finally:
        signal.set_wakeup_fd(outer)
        # The thread comes to the end of its file, and with it to its own.
        os.close(file)
        thread.join(timeout=1)
        for each, handler in before.items():
            signal.signal(each, handler)


def end_at_signals() -> None:
    """From now on the first SIGTERM or SIGINT ends the process, with a line on standard error.

    What there is before a run, after it and where nothing has to be kept: imports, settings,
    figures. Files are whole or absent anyway (`rnn_jax.io.writing`). Called again, it puts its
    handlers back in the place of those of a library.
    """
    if not _in_main_thread():
        return

    def answer(number: int) -> None:
        _write(f"{_name(number)}: ended; every file that was written is whole")
        _end(number)

    # The file first: what came to a handler without it would be lost.
    if signal.getsignal(signal.SIGINT) is not _noted:
        signal.set_wakeup_fd(_answered_by_a_thread(answer)[0], warn_on_full_buffer=False)
    for each in NUMBERS:
        signal.signal(each, _noted)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _noted(number: int, frame: FrameType | None) -> None:
    """A handler of Python's, without which there would be no word to the thread."""


def _answered_by_a_thread(answer: Callable[[int], None]) -> tuple[int, threading.Thread]:
    """A file for `signal.set_wakeup_fd`; until it is closed the thread answers each signal."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def wait() -> None:
        while numbers := os.read(read_end, 64):
            for number in numbers:
                if number in NUMBERS:
                    answer(number)
        os.close(read_end)

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    return write_end, thread


def _handled_once(number: int) -> None:
    """The system itself takes the handler away when it calls it.

    A second signal then ends the process even where a library keeps the interpreter's lock, so that
    no thread comes to run. Where the system has no such call, it ends it as soon as one does.
    """
    once: Any = getattr(LIBC, "sysv_signal", None)
    if once is not None:
        once.argtypes = LIBC.signal.argtypes
        once(number, LIBC.signal(number, None))


def _default() -> None:
    """Either signal ends the process from now on."""
    for each in NUMBERS:
        LIBC.signal(each, None)


def _end(number: int) -> None:
    """Ends the process as the signal would have: a shell sees 130 or 143, and a signal in it."""
    _default()
    os.kill(os.getpid(), number)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _write(line: str) -> None:
    """A line on standard error, past Python's own file, which the main thread may be writing to."""
    with contextlib.suppress(OSError):
        # A bar of progress hid the cursor and stands on this line.
        clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        os.write(2, f"{clear}{line}\n".encode())


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
