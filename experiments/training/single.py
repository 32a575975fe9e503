"""One network trained to its end: metrics to disk, checkpoints, and what is done when it diverges.

The loop is that of many networks (`experiments.training.loop`); here are its callbacks for one.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.cli.progress import progress
from experiments.cli.signals import catch_signals
from experiments.training import history, loop, nonfinite, store
from experiments.training.algorithm import Algorithm, Arrays, FirstNonFinite
from experiments.training.loop import Callbacks, RunState, Schedule
from experiments.training.nonfinite import NonFinite, NonFinitePolicy
from experiments.training.programs import Programs, of_one_network
from experiments.training.store import CHECKPOINTS, CheckpointOptions, Saved
from rnn_jax.io import records
from rnn_jax.io.reading import readable_lines
from rnn_jax.types import Key

RESTORES = "restores"
"""The note of a checkpoint that says how often the run went back before."""

OnLog = Callable[[int, Arrays], None]
"""`(iterations done, results since the line before, name -> [1, K, ...])`."""


class Run(NamedTuple):
    """Where a network's training writes, and how it is watched.

    Attributes:
        workdir: its folder; None writes and prints nothing.
        checkpoints: how they are kept; None for none.
        on_log: called where a line is logged.
    """

    workdir: Path | None = None
    checkpoints: CheckpointOptions | None = None
    on_log: OnLog | None = None


def train_network(
    algorithm: Algorithm,
    hparams: Mapping[str, float],
    key: Key,
    schedule: Schedule,
    run: Run = Run(),  # noqa: B008
    policy: NonFinitePolicy = nonfinite.STOP,
) -> RunState:
    """Trains one network, whatever the policy says of numbers that are not finite.

    Args:
        algorithm: how it learns.
        hparams: name -> value; the policy's restores scale learning_rate.
        key: the network's.
        schedule: a line is logged after each chunk.
        run: where it writes.
        policy: what is done when its numbers leave the finite range.

    Returns:
        The network at its end; its results are those of every iteration.

    Raises:
        NonFinite: loss or gradient stopped being finite. What was recorded up to there is on disk;
            the message says at which iteration and time step it began and what to try.
        Interrupted: a signal came; the run is kept and can be resumed.
        ValueError: the folder cannot be written, or no checkpoint in it is whole.
    """
    resume = run.checkpoints is not None and run.checkpoints.resume
    restores = 0
    if run.workdir is not None and resume:
        restores = store.notes_of(run.workdir / CHECKPOINTS).get(RESTORES, 0)
    while True:
        rate = hparams["learning_rate"] * policy.restore_factor**restores
        programs = of_one_network(algorithm, {**hparams, "learning_rate": rate}, key)
        try:
            return _train(programs, key, schedule, run, policy, resume, {RESTORES: restores})
        except NonFinite as error:
            if policy.action != "restore" or restores >= policy.max_restores:
                raise
            restores, resume = restores + 1, True
            if run.workdir is not None:
                store.go_back(run.workdir / CHECKPOINTS, error.step)
            rate = hparams["learning_rate"] * policy.restore_factor**restores
            sys.stderr.write(f"{error}\nrestored; from here on the learning rate is {rate:.3g}\n")


def _train(
    programs: Programs,
    key: Key,
    schedule: Schedule,
    run: Run,
    policy: NonFinitePolicy,
    resume: bool,
    notes: dict[str, int],
) -> RunState:
    workdir, options = run.workdir, run.checkpoints
    now, saved = _started(programs, schedule, workdir, resume)
    seconds_before = _seconds_logged(workdir, now.iteration)
    start = time.monotonic() - seconds_before
    # Where the run was last kept, or began: what a failing iteration is traced from.
    kept = (now.iteration, jax.device_get(now.state))

    def on_chunk(now: RunState, first: int, results: Arrays) -> None:
        done = first + results["loss"].shape[1]
        if workdir is not None:
            seconds = round(time.monotonic() - start, 3)
            records.append_metrics(workdir, [history.row_of(results, done, seconds)])
        if run.on_log is not None:
            run.on_log(done, results)
        loss, norm = results["loss"][0, -1], results["gradient_norm"][0, -1]
        report(done, f"loss {loss:.3e}  gradient norm {norm:.2e}")

    def on_nonfinite(now: RunState, step: int, where: FirstNonFinite) -> None:
        if policy.action == "skip":
            return
        loss = float(now.chunks[-1]["loss"][0, where.iteration - 1])
        found = ""
        if workdir is not None:
            history.save(workdir, history.history_of(loop.joined(now.chunks)))
            if policy.network is not None:
                before = _replayed(programs, schedule, kept, step - 1)
                found = "; " + nonfinite.examine(workdir, policy, before, key, step)
        raise NonFinite(
            step,
            f"iteration {step}: {nonfinite.describe(where, loss)}{found}. "
            f"{nonfinite.advice(policy.clip_norm)}. What was recorded before stays in the run's "
            "folder",
        )

    def save_checkpoint(now: RunState, early: bool) -> None:
        nonlocal saved, kept
        if workdir is None:
            return
        score = float(now.chunks[-1]["loss"][0, -1])
        saved = store.save(workdir / CHECKPOINTS, now, saved, early=early, score=score, notes=notes)
        kept = (now.iteration, jax.device_get(now.state))

    watched = options is not None and workdir is not None
    with (
        catch_signals() if watched else contextlib.nullcontext(lambda: False) as should_stop,
        progress(schedule.num_steps, shown=workdir is not None) as report,
    ):
        end = loop.train(
            programs,
            now,
            schedule,
            Callbacks(
                on_chunk=on_chunk,
                on_nonfinite=on_nonfinite,
                checkpoint_due=lambda iteration: (
                    options is not None
                    and iteration < schedule.num_steps
                    and store.is_due(options, iteration, saved)
                ),
                save_checkpoint=save_checkpoint if watched else None,
                should_stop=should_stop,
            ),
        )
    if workdir is not None:
        history.save(workdir, history.history_of(loop.joined(end.chunks)))
    return end


def _started(
    programs: Programs, schedule: Schedule, workdir: Path | None, resume: bool
) -> tuple[RunState, Saved]:
    """A fresh run, or the one in the folder as its newest checkpoint has it."""
    found = None
    if workdir is not None and resume:
        found = store.restore(workdir / CHECKPOINTS, programs)
    if found is not None and workdir is not None:
        now, saved = found
        _rewrite_metrics(workdir, now, schedule.chunk_size)
        sys.stderr.write(f"resumed after iteration {now.iteration}\n")
        return now._replace(state=jax.device_put(now.state)), saved
    if workdir is not None:
        store.forget(workdir / CHECKPOINTS)
        records.clear_metrics(workdir)
    return loop.begin(programs, Callbacks(), measure_start=False), store.nothing_saved()


def _replayed(programs: Programs, schedule: Schedule, kept: tuple[int, Any], iteration: int) -> Any:
    """The training state at an iteration; training is the same every time it is run."""
    done, state = kept
    state = jax.device_put(state)
    while done < iteration:
        size = min(schedule.chunk_size, iteration - done)
        state, *_ = programs.train_chunk(state, np.arange(1), size)
        done += size
    return state


def _logged_seconds(workdir: Path) -> dict[int, float]:
    """iteration -> seconds, of the lines of metrics.jsonl that can be read."""
    return {
        row["step"]: float(row["seconds"])
        for row in readable_lines(workdir / records.METRICS)
        if type(row.get("step")) is int and type(row.get("seconds")) in (int, float)
    }


def _seconds_logged(workdir: Path | None, iteration: int) -> float:
    """Seconds that a restored run took up to an iteration."""
    if workdir is None or not iteration:
        return 0.0
    return _logged_seconds(workdir).get(iteration) or 0.0


def _rewrite_metrics(workdir: Path, now: RunState, log_every: int) -> None:
    """metrics.jsonl with one line for each logged iteration so far.

    The lines follow from the history; only their seconds come from the file as it was left.
    """
    seconds, rows = _logged_seconds(workdir), []
    if now.chunks:
        whole = loop.joined(now.chunks)
        for end in sorted({*range(log_every, now.iteration + 1, log_every), now.iteration}):
            first = (end - 1) // log_every * log_every
            chunk = {name: values[:, first:end] for name, values in whole.items()}
            rows.append(history.row_of(chunk, end, seconds.get(end)))
    records.write_atomically(workdir / records.METRICS, records.json_lines(rows))
