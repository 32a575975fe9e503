"""The tutorial's training loop: ours, PyTorch's and Flax's, per iteration and from start to end."""

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import flax_loop
from experiments.benchmarks.report import Findings, Row, Wanted
from experiments.benchmarks.timing import Side, interleaved, stopwatch
from experiments.setup.sine import SineConfig
from experiments.training.algorithm import Algorithm, nothing
from experiments.training.loop import Schedule
from experiments.training.programs import of_one_network
from experiments.training.sine_training import algorithm_of
from experiments.training.single import Run, train_network
from rnn_jax import training
from rnn_jax.io import records

CONFIG = SineConfig()
"""The settings of experiments/flags/sine_6000.flags: H = 16, B = 1, T = 49, Adam."""

OURS = f"ours, chunks of {CONFIG.log_every}"
ONE_CHUNK = "ours, one chunk"
FLAX = "Flax"
TORCH_THREADS = {"PyTorch, 1 thread": 1, "PyTorch, 2 threads": 2}

FASTER_THAN_FLAX = Wanted(">=", 6)
FASTER_THAN_TORCH = Wanted(">=", 75)
FASTER_END_TO_END = Wanted(">=", 6)


def train_as_experiment(iterations: int, folder: Path | None) -> Any:
    """Traces on, metrics fetched and written at each chunk; progress is kept off the terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        return train_network(
            _untested(),
            {"learning_rate": CONFIG.learning_rate},
            jax.random.key(CONFIG.seed),
            Schedule(iterations, CONFIG.log_every),
            Run(folder),
        )


@functools.cache
def _untested() -> Algorithm:
    """How a network learns, without the free runs after it."""
    return algorithm_of(CONFIG)._replace(measure=nothing)


def ours_in_chunks(iterations: int, folder: Path) -> Side:
    """Training as the experiment does it, in chunks of `log_every`."""

    def prepare() -> None:
        records.open_run(folder, {}, overwrite=True)

    return Side(stopwatch(prepare, lambda _: train_as_experiment(iterations, folder)), iterations)


def ours_in_one_chunk(iterations: int) -> Side:
    """The same training as one XLA program; its traces stay on the device."""
    rate = {"learning_rate": CONFIG.learning_rate}
    programs = of_one_network(_untested(), rate, jax.random.key(CONFIG.seed))

    def work(state: training.TrainState) -> Any:
        return programs.train_chunk(state, np.arange(1), iterations)

    return Side(stopwatch(programs.init, work), iterations)


def flax_side(iterations: int) -> Side:
    """The usual Flax loop."""
    net = flax_loop.network(CONFIG.hidden_size)
    optimizer = optax.adam(CONFIG.learning_rate)
    step = flax_loop.make_step(net, optimizer)
    training = flax_loop.start(net, optimizer, CONFIG.seed)

    def work(training: flax_loop.Training) -> float:
        return flax_loop.train(step, training, iterations, CONFIG.log_every, CONFIG.seed)

    return Side(stopwatch(lambda: training, work), iterations)


def torch_side(torch: Any, threads: int, iterations: int) -> Side:
    """The PyTorch loop; `torch` is the module `experiments.benchmarks.pytorch`."""

    def work(net: Any) -> float:
        return torch.train(
            net, iterations, CONFIG.log_every, CONFIG.learning_rate, threads, CONFIG.seed
        )

    return Side(stopwatch(lambda: torch.network(CONFIG.hidden_size, CONFIG.seed), work), iterations)


def iteration_findings(
    torch: Any, iterations: int, torch_iterations: int, repeats: int
) -> Findings:
    """Time per training iteration of every side, compilation apart.

    Args:
        torch: the module `experiments.benchmarks.pytorch`, or None for no such rows.
        iterations: in each run of ours and Flax's.
        torch_iterations: in each run of PyTorch's.
        repeats: rounds.
    """
    threads = TORCH_THREADS if torch else {}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            OURS: ours_in_chunks(iterations, Path(folder)),
            ONE_CHUNK: ours_in_one_chunk(iterations),
            FLAX: flax_side(iterations),
            **{name: torch_side(torch, count, torch_iterations) for name, count in threads.items()},
        }
        times = interleaved(sides, repeats)
    wanted = {FLAX: FASTER_THAN_FLAX, **dict.fromkeys(threads, FASTER_THAN_TORCH)}
    rows = [
        Row(f"iteration: {ours} / {other}", times[ours], times[other], wanted=wanted[other])
        for ours in (OURS, ONE_CHUNK)
        for other in wanted
    ]
    return Findings(rows, [])


def end_to_end_findings(torch: Any, torch_iterations: int, repeats: int) -> Findings:
    """The tutorial's 6,000 iterations from fresh weights to metrics on the host, compiled anew.

    Args:
        torch: as in `iteration_findings`.
        torch_iterations: that PyTorch is run for; its time is scaled to the tutorial's number.
        repeats: rounds.
    """
    total = CONFIG.train_steps
    run = min(torch_iterations, total)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours, compiled anew": ours_from_nothing(Path(folder))}
        if torch:
            name, threads = next(iter(TORCH_THREADS.items()))
            sides[name] = scaled(torch_side(torch, threads, run), total)
        ours, *others = interleaved(sides, repeats, warm_up=False).values()
    what = f"{total:,} iterations, compiled anew"
    if not others:
        return Findings([Row(what, ours)], [])
    (other,) = others
    row = Row(f"{what}: ours / {other.name}", ours, other, wanted=FASTER_END_TO_END)
    note = f"PyTorch's {total:,} iterations are scaled from {run:,}."
    return Findings([row], [note] if run < total else [])


def ours_from_nothing(folder: Path) -> Side:
    """Training as the experiment does it, with every compiled program thrown away before."""

    def prepare() -> None:
        records.open_run(folder, {}, overwrite=True)
        jax.clear_caches()

    def work(_: None) -> Any:
        return train_as_experiment(CONFIG.train_steps, folder)

    return Side(stopwatch(prepare, work))


def scaled(side: Side, total: int) -> Side:
    """A side whose whole run counts as one unit of `total` iterations."""
    factor = total / side.iterations
    return Side(lambda: factor * side.run())
