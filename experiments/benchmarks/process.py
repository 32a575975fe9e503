"""Whole processes: the sine experiment from the command line, and a C program as a yardstick."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.report import COST, Findings, Row, Wanted
from experiments.benchmarks.timing import Side, Times, interleaved
from experiments.benchmarks.tutorial import ours_in_chunks

ROOT = Path(__file__).parents[2]
COMPILER = "cc"
COMPILER_FLAGS = ("-O3", "-march=native", "-ffast-math")
READING = re.compile(r"C limit:\s*([0-9.]+)\s*us/iter")


def output_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a command, run in the repository's root, prints; `ValueError` if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(
            f"{' '.join(command)} ended with {done.returncode}: {_last_line(done.stderr)}"
        )
    return done.stdout


def seconds_of(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Wall-clock seconds of a command; errors are those of `output_of`."""
    start = time.perf_counter()
    output_of(command, environment)
    return time.perf_counter() - start


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


def process_findings(arguments: Sequence[str], warm: Wanted | None, repeats: int) -> Findings:
    """`python -m ...` twice: with an empty cache folder, and again with what that run left there.

    Args:
        arguments: what follows `python -m`; each run gets a --workdir of its own.
        warm: wanted of the second run, in seconds.
        repeats: how many such pairs.
    """
    cold_runs: list[float] = []
    warm_runs: list[float] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
            # JAX's own setting comes before it.
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            for name, runs in (("cold", cold_runs), ("warm", warm_runs)):
                command = (sys.executable, "-m", *arguments, f"--workdir={folder}/{name}")
                runs.append(seconds_of(command, environment))
    what = f"python -m {arguments[0]} {Path(arguments[-1]).name}"
    return Findings(
        [
            Row(f"{what}, empty cache", Times("cold", np.array(cold_runs))),
            Row(f"{what}, second run", Times("warm", np.array(warm_runs)), wanted=warm),
        ],
        [],
    )


def limit_findings(source: str, iterations: int, repeats: int) -> Findings:
    """Our time per iteration over that of a C program that does the same work.

    Args:
        source: a file that `cc -O3 -march=native -ffast-math FILE -lm` builds into a program that
            prints `C limit: X us/iter`; empty for none.
        iterations: in each of our runs.
        repeats: rounds.

    Raises:
        ValueError: the file cannot be built, or its program prints something else.
    """
    if not source:
        return Findings([], [])
    if shutil.which(COMPILER) is None:
        return Findings([], [f"no C compiler ({COMPILER}) is installed: {source} is left out"])
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(source), Path(folder))
        sides = {
            "ours": ours_in_chunks(iterations, Path(folder) / "run"),
            "C": Side(lambda: reading(program)),
        }
        times = interleaved(sides, repeats)
    what = "iteration: ours, chunks / C"
    return Findings([Row(what, times["ours"], times["C"], COST, Wanted("<=", 3))], [])


def build(source: Path, folder: Path) -> Path:
    """Compiles a C file; `ValueError` with the compiler's last line where it will not."""
    program = folder / "limit"
    command = (COMPILER, *COMPILER_FLAGS, str(source), "-o", str(program), "-lm")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(
            f"--limit_source={source}: {COMPILER} cannot build it: {_last_line(done.stderr)}"
        )
    return program


def reading(program: Path) -> float:
    """Seconds per iteration that the program says it took; `ValueError` if it says nothing."""
    done = subprocess.run([program], capture_output=True, text=True)
    found = READING.search(done.stdout)
    if done.returncode != 0 or found is None:
        raise ValueError(
            f"--limit_source: the program ended with {done.returncode} and printed "
            f"{_last_line(done.stdout)!r}; 'C limit: X us/iter' is wanted"
        )
    return 1e-6 * float(found.group(1))
