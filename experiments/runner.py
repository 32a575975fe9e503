"""The loop that every training experiment uses: chunks of steps, metrics to disk, a bar."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import history, interruption, nonfinite, resuming
from experiments.compilation_cache import use_compilation_cache as use_compilation_cache
from experiments.history import History, row_of
from experiments.progress import progress
from experiments.resuming import Safety, Standing, is_due
from rnn_jax import objectives, records, traces, train
from rnn_jax.types import Batch, Key

NO_MATTER = {
    "workdir",
    "overwrite",
    "checkpoint_every",
    "resume",
    "tensorboard",
    "compilation_cache",
    "cpu_devices",
    "lanes",
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
}
"""Settings that say where and how to compute, and nothing of what comes out."""


def run_training(
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    state: train.TrainState,
    key: Key,
    *,
    num_steps: int,
    log_every: int,
    workdir: Path | None = None,
    trace: traces.Trace = traces.trace_states,
    clip_norm: float = 0.0,
    safety: Safety | None = None,
    way_back: nonfinite.WayBack | None = None,
    stop_at_nonfinite: bool = True,
    tell: Callable[[int, train.Metrics], None] | None = None,
) -> tuple[train.TrainState, History]:
    """Trains for `num_steps`, in chunks that end where something is logged.

    Args:
        objective, optimizer, sample, state, key, trace: as in `train.train_chunk`.
        num_steps: number of updates.
        log_every: iterations between two lines of metrics.jsonl.
        workdir: the run's folder; None writes and prints nothing.
        clip_norm: the bound in force, for the advice given when a run goes wrong; 0 for none.
        safety: how checkpoints are kept and taken up; None for neither.
        way_back: with it, a gradient that stopped being finite is followed in logarithms.
        stop_at_nonfinite: whether such a gradient ends the run.
        tell: called where a line is logged, with the iterations done and the metrics since the
            line before, as NumPy arrays.

    Returns:
        The final state and every step's metrics.

    Raises:
        NonFinite: loss or gradient stopped being finite. What was recorded up to there is on disk;
            the message says at which iteration and time step it began and what to try.
        Interrupted: a signal came; the run is kept and can be taken up.
        ValueError: the folder cannot be written, or no checkpoint in it is whole.
    """
    kept = _start(workdir, state, safety, log_every, objective, optimizer, sample, key, trace)
    state, done = kept.state, kept.done
    # Where the run was last kept, or began: what a failing iteration is traced from.
    before = (done, jax.device_get(state)) if way_back is not None else None
    fresh: list[train.Metrics] = []
    start, last_kept = time.monotonic() - kept.seconds, time.monotonic()

    def fetch(metrics: train.Metrics, done: int) -> str:
        host = jax.device_get(metrics)
        fresh.append(host)
        if workdir is not None:
            seconds = round(time.monotonic() - start, 3)
            records.append_metrics(workdir, [row_of(host, done, seconds)])
        if tell is not None:
            tell(done, host)
        bad = nonfinite.first_nonfinite(host, done - len(host.loss) + 1)
        if bad is not None and stop_at_nonfinite:
            raise _failure(bad)
        return f"loss {host.loss[-1]:.3e}  gradient norm {host.gradient_norm[-1]:.2e}"

    def _failure(bad: nonfinite.Beginning) -> nonfinite.NonFinite:
        found = ""
        if workdir is not None:
            history.save(workdir, history.stacked([*kept.metrics, *fresh]))
            if way_back is not None and before is not None:
                steps = bad.step - 1 - before[0]
                at = nonfinite.replayed(
                    objective, optimizer, sample, before[1], key, steps, trace, log_every
                )
                found = "; " + nonfinite.examine(
                    workdir, objective, sample, way_back, at, key, bad.step
                )
        return nonfinite.NonFinite(
            bad.step,
            f"iteration {bad.step}: {bad.where}{found}. {nonfinite.advice(clip_norm)}. What was "
            "recorded before stays in the run's folder",
        )

    watched = interruption.noticed() if safety and workdir else contextlib.nullcontext(_never)
    shown = progress(num_steps) if workdir is not None else _silent()
    with watched as asked_to_stop, shown as report:
        waiting = None
        while done < num_steps:
            size = min(log_every - done % log_every, num_steps - done)
            state, metrics = train.train_chunk(
                objective, optimizer, sample, state, key, size, trace
            )
            done += size
            # The device works on this chunk while the host writes the one before it.
            if waiting is not None:
                report(waiting[1], fetch(*waiting))
            waiting = (metrics, done)
            stop = asked_to_stop() and done < num_steps
            due = safety is not None and is_due(safety, done, kept.done, last_kept)
            if safety and workdir and (stop or due):
                report(done, fetch(*waiting))
                waiting = None
                new = jax.tree.map(lambda *leaves: np.concatenate(leaves), *fresh)
                kept = resuming.keep(workdir, kept, state, done, new, safety, early=not due)
                before = (done, jax.device_get(state))
                fresh, last_kept = [], time.monotonic()
            if stop:
                raise interruption.Interrupted(f"stopped after iteration {done} of {num_steps}")
        if waiting is not None:
            report(waiting[1], fetch(*waiting))
    told = history.stacked([*kept.metrics, *fresh])
    if workdir is not None:
        history.save(workdir, told)
    return state, told


def _start(
    workdir: Path | None,
    state: train.TrainState,
    safety: Safety | None,
    log_every: int,
    *program: Any,
) -> Standing:
    """A fresh run, or where the one in the folder stands."""
    if workdir is None:
        return Standing(state)
    if safety is None or not safety.resume:
        resuming.forget(workdir)
        records.clear_metrics(workdir)
        return Standing(state)
    objective, optimizer, sample, key, trace = program

    def like() -> train.Metrics:
        return jax.eval_shape(
            lambda s: train.scan_steps(objective, optimizer, sample, s, key, 2, trace), state
        )[1]

    standing = resuming.take_up(workdir, state, like, log_every)
    if standing.done:
        sys.stderr.write(f"taken up after iteration {standing.done}\n")
    return standing


def _never() -> bool:
    return False


def _silent() -> Any:
    return contextlib.nullcontext(lambda done, news: None)


def open_workdir(experiment: str, config: Any) -> Path:
    """The run's folder, with the config written in it; errors are those of `records.open_run`."""
    path = records.open_run(config.workdir, settings_of(experiment, config), config.overwrite)
    if config.overwrite:
        resuming.forget(path)
    return path


def settings_of(experiment: str, config: Any) -> dict[str, Any]:
    """What is kept in config.json: the settings that a run's results depend on."""
    settings = {"experiment": experiment, **dataclasses.asdict(config)}
    return {name: value for name, value in settings.items() if name not in NO_MATTER}
