"""SIGINT and SIGTERM sent to real processes: at once a line, then an end, whatever they are at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from marks import slow

from experiments.cli import signals

pytestmark = pytest.mark.survival

ROOT = Path(__file__).parents[1]
INT, TERM = signal.SIGINT, signal.SIGTERM
KEPT_FIRST = "what runs now is finished and kept first"
ENDED = "ended; every file that was written is whole"


class Worker:
    """A process whose standard error is read while it runs."""

    def __init__(self, folder, *arguments):
        self.file = folder / "stderr"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        }
        with self.file.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.DEVNULL, stderr=file, cwd=folder, env=environment,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def said(self):
        return self.file.read_text()

    def wait_for(self, is_so, seconds):
        """Whether something is so before the time is over."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def ends_within(self, seconds):
        return self.wait_for(lambda: self.process.poll() is not None, seconds)

    def catches_signals(self):
        """Whether the process has taken both signals over: the system's own list of them."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return all(caught >> number - 1 & 1 for number in (INT, TERM))


STUCK_IN_C = """
import ctypes, sys
from experiments.cli import signals
with signals.catch_signals():
    lock = getattr(ctypes, sys.argv[1])(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    sys.stderr.write("locked\\n")
    sys.stderr.flush()
    lock(mutex)
"""


@pytest.mark.parametrize(
    ("library", "first", "second"),
    [
        ("CDLL", INT, INT),
        ("CDLL", TERM, INT),
        slow("CDLL", INT, TERM),
        slow("CDLL", TERM, TERM),
        # With the interpreter's lock kept, the system alone can answer, to the same signal.
        ("PyDLL", INT, INT),
        slow("PyDLL", TERM, TERM),
    ],
)
def test_the_first_is_answered_and_the_second_ends_what_is_stuck_in_c(
    library, first, second, tmp_path
):
    with Worker(tmp_path, "-c", STUCK_IN_C, library) as worker:
        assert worker.wait_for(lambda: "locked" in worker.said(), 20), worker.said()
        time.sleep(0.1)
        worker.process.send_signal(first)
        if library == "CDLL":
            assert worker.wait_for(lambda: KEPT_FIRST in worker.said(), 5), worker.said()
        assert not worker.ends_within(0.3)
        worker.process.send_signal(second)
        assert worker.ends_within(5)
        assert worker.process.returncode == -second
        wanted = [f"{first.name}: {KEPT_FIRST}"] if library == "CDLL" else []
        found = worker.said().splitlines()[1:]
        assert [line.partition(";")[0] for line in found] == wanted


def test_in_this_process_one_is_caught_and_all_is_as_before(capfd):
    before = [signal.getsignal(each) for each in (INT, TERM)]
    with signals.catch_signals() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), TERM)
        assert should_stop()
    assert [signal.getsignal(each) for each in (INT, TERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert capfd.readouterr().err.startswith(f"SIGTERM: {KEPT_FIRST}")
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), INT)


@pytest.mark.parametrize(
    ("number", "delay"),
    [(INT, 0.0), (INT, 0.6), *[slow(TERM, 0.3 * n) for n in range(5)],
     *[slow(INT, 0.2 + 0.3 * n) for n in range(5)]],
)  # fmt: skip
def test_while_it_starts_the_first_ends_it_in_one_line(number, delay, tmp_path):
    """Imports take a second or two; what comes after them has a chunk to finish first."""
    with Worker(
        tmp_path, "-m", "experiments.sine", "--workdir=run", "--train_steps=60000"
    ) as worker:
        assert worker.wait_for(worker.catches_signals, 20)
        time.sleep(delay)
        worker.process.send_signal(number)
        assert worker.wait_for(worker.said, 5)
        assert worker.ends_within(30)
        lines = worker.said().splitlines()
        if worker.process.returncode == -number:
            assert lines == [f"{number.name}: {ENDED}"]
        else:
            assert delay > 0.5
            assert worker.process.returncode == signals.EXIT_CODE
            assert lines[0].startswith(f"{number.name}: {KEPT_FIRST}")
            assert lines[-1].startswith("  ")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [2.0, 3.0, 5.0])
@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, INT)])
def test_whatever_it_is_at_the_first_is_answered_and_the_second_ends_it(
    first, second, delay, tmp_path
):
    """Nothing compiled is kept from before, so that most of these moments are compilation."""
    flags = ("--length=200", "--hidden_size=200", "--seeds=2", "--nocompilation_cache")
    with Worker(tmp_path, "-m", "experiments.memory", "--workdir=run", *flags) as worker:
        assert worker.wait_for(worker.catches_signals, 20)
        time.sleep(delay)
        worker.process.send_signal(first)
        assert worker.wait_for(lambda: f"{first.name}: " in worker.said(), 1), worker.said()
        time.sleep(0.1)
        worker.process.send_signal(second)
        assert worker.ends_within(2)
        assert worker.process.returncode in (-first, -second)
        assert "Traceback" not in worker.said()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(INT, INT), (INT, TERM), (TERM, INT)])
def test_a_program_that_never_ends_is_ended_by_the_second(first, second, tmp_path):
    flags = ("--cell=stuck_cell:stuck", "--length=8", "--hidden_size=4", "--seeds=1")
    with Worker(tmp_path, "-m", "experiments.memory", "--workdir=run", *flags) as worker:
        assert worker.wait_for(lambda: "traced" in worker.said(), 60), worker.said()
        assert not worker.ends_within(5), worker.said()
        worker.process.send_signal(first)
        assert worker.wait_for(lambda: KEPT_FIRST in worker.said(), 1), worker.said()
        assert not worker.ends_within(3)
        worker.process.send_signal(second)
        assert worker.ends_within(1)
        assert worker.process.returncode == -second
        assert "Traceback" not in worker.said()
