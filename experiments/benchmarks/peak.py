"""Peak memory of a training run, beyond that of Python and the packages: a process for each side.

python -m experiments.benchmarks.peak --side=ours --cell=lstm --num_steps=1000 prints the bytes.
"""

import dataclasses
import importlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.contenders import (
    CELLS,
    Shape,
    axes_of,
    flax,
    in_segments,
    ours,
    plain,
    problem,
    side_of,
    torch_side,
)
from experiments.benchmarks.process import output_of
from experiments.benchmarks.report import Findings, Number, Wanted
from experiments.cli.options import launch, option
from experiments.cli.start_jax import use_compilation_cache

SIDES = {"ours": ours, "plain": plain, "flax": flax}
NAMES = {"ours": "ours", "plain": "plain scan", "flax": "Flax", "pytorch": "PyTorch"}
SHAPES = (
    Shape("elman", hidden_size=128, batch_size=32, num_steps=200),
    Shape("lstm", hidden_size=128, batch_size=32, num_steps=1000),
    Shape("gru", hidden_size=512, batch_size=128, num_steps=200),
)
STEPS = 2
"""Training steps in a run: the second one has the first one's arrays beside it."""


@dataclasses.dataclass(frozen=True)
class PeakConfig:
    """Whose peak, and at what."""

    side: str = option("ours", "who trains", choices=tuple(NAMES))
    cell: str = option("elman", "the cell", choices=tuple(CELLS))
    hidden_size: int = option(128, "H", minimum=1)
    batch_size: int = option(32, "B", minimum=1)
    num_steps: int = option(200, "T", minimum=1)
    segment_length: int = option(0, "of nested checkpointing, ours only; 0 for none", minimum=0)


def highest_so_far() -> int:
    """Bytes of this process's memory at its fullest.

    Where Linux tells it: the system's `ru_maxrss` of a new process starts from what the process
    that started it had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().partition("VmHWM:")[2].split()
        return 1024 * int(words[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def warm_up() -> None:
    """JAX's start: devices, the compiler, a product."""
    jax.block_until_ready(jax.jit(lambda a: jnp.tanh(a @ a))(jnp.eye(8)))


def peak(config: PeakConfig) -> int:
    """Bytes by which two training steps, compilation included, raise this process's peak."""
    torch: Any = None
    if config.side == "pytorch":
        torch = importlib.import_module("experiments.benchmarks.pytorch")
    warm_up()
    before = highest_so_far()
    given = problem(Shape(config.cell, config.hidden_size, config.batch_size, config.num_steps))
    if config.segment_length:
        given = in_segments(given, config.segment_length)
    if torch:
        torch_side(torch, given, STEPS).run()
    else:
        side_of(SIDES[config.side](given), STEPS).run()
    return highest_so_far() - before


def of_a_process(side: str, shape: Shape, segment_length: int = 0) -> int:
    """`peak` in a process of its own; `ValueError` if that fails."""
    config = PeakConfig(side, *shape, segment_length)
    settings = [f"--{name}={value}" for name, value in dataclasses.asdict(config).items()]
    command = (sys.executable, "-m", "experiments.benchmarks.peak", *settings)
    return int(output_of(command, os.environ))


def number(
    name: str, side: str, shape: Shape, segment_length: int = 0, wanted: Wanted | None = None
) -> Number:
    """A peak, for the table."""
    gigabytes = 1e-9 * of_a_process(side, shape, segment_length)
    at = {**axes_of(shape), "side": name}
    return Number(f"peak memory, {shape}: {name}", gigabytes, "GB", wanted, at)


def findings(torch: Any) -> Iterator[Findings]:
    """Peak memory of every side at each shape.

    Args:
        torch: `experiments.benchmarks.pytorch`, or None.
    """
    note = "Peaks are beyond that of a process that has imported and started JAX; they hold what"
    yield Findings([], [f"{note} compiling takes, about 0.1 GB."])
    sides = [side for side in NAMES if torch or side != "pytorch"]
    for shape in SHAPES:
        yield Findings([], [], [number(NAMES[side], side, shape) for side in sides])


def main(config: PeakConfig) -> None:
    """Prints the bytes."""
    use_compilation_cache(False)
    print(peak(config))


if __name__ == "__main__":
    launch(main, PeakConfig)
