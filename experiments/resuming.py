"""Where a training run stands, on disk, so that it can be taken up again bit for bit.

checkpoints/000000001200/       the training state (see `rnn_jax.checkpoint`)
checkpoints/history/A-B.npz     what iterations A+1..B told, written once
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.history import row_of
from rnn_jax import checkpoint, records, train
from rnn_jax.reading import readable_lines

CHECKPOINTS = "checkpoints"
HISTORY = "history"
SECONDS_BETWEEN = 60.0
"""Between two checkpoints where they go by the clock."""
EARLY = "early"
"""The note of a checkpoint that a signal asked for; an undisturbed run would not have it."""


class Safety(NamedTuple):
    """How a run is kept.

    Attributes:
        every: iterations between two checkpoints; 0 for one about every minute.
        resume: go on from the newest checkpoint where there is one.
        notes: kept with each checkpoint, JSON values.
    """

    every: int = 0
    resume: bool = True
    notes: dict[str, Any] | None = None


class Standing(NamedTuple):
    """How far a run is.

    Attributes:
        state: of training.
        done: iterations.
        metrics: what they told, in parts.
        pieces: name -> digest of the files that hold the parts.
        seconds: that they took.
    """

    state: train.TrainState
    done: int = 0
    metrics: tuple[train.Metrics, ...] = ()
    pieces: Mapping[str, Any] = MappingProxyType({})
    seconds: float = 0.0


def forget(workdir: Path) -> None:
    """Drops all checkpoints of a run."""
    shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)


def take_up(
    workdir: Path, state: train.TrainState, like: Callable[[], train.Metrics], log_every: int
) -> Standing:
    """Where the run in a folder stands; metrics.jsonl is made to end there.

    Args:
        workdir: the run's folder.
        state: a fresh one, which a run without a checkpoint starts from.
        like: a function that gives the structure of `Metrics`.
        log_every: iterations between two lines.

    Raises:
        ValueError: see `checkpoint.load`.
    """
    folder = workdir / CHECKPOINTS
    found = checkpoint.load(folder, state)
    if found is None:
        forget(workdir)
        records.clear_metrics(workdir)
        return Standing(state)
    for path in (folder / HISTORY).glob("*.npz"):
        if f"{HISTORY}/{path.name}" not in found.beside:
            path.unlink()
    structure = jax.tree.structure(like())
    parts = []
    for path in (folder / name for name in sorted(found.beside)):
        with np.load(path, allow_pickle=False) as stored:
            leaves = [stored[f"leaf_{index}"] for index in range(len(stored.files))]
        parts.append(jax.tree.unflatten(structure, leaves))
    seconds = _rewrite_metrics(workdir, parts, found.step, log_every)
    return Standing(
        jax.device_put(found.tree), found.step, tuple(parts), found.beside, seconds or 0.0
    )


def notes_of(workdir: Path) -> dict[str, Any]:
    """The notes of the newest checkpoint; empty where there is none."""
    found = checkpoint.notes(workdir / CHECKPOINTS)
    return found[max(found)] if found else {}


def go_back(workdir: Path, failed: int) -> None:
    """Drops the checkpoints that are no place to go back to for a run whose iteration failed.

    Args:
        workdir: the run's folder.
        failed: the iteration. Its loss and gradient follow from the state before it alone,
            whatever the learning rate: a checkpoint of that state leads to the same failure.

    An early checkpoint is dropped too, so that a run which was stopped in between goes back to
    where it would have without.
    """
    folder = workdir / CHECKPOINTS
    for step, notes in checkpoint.notes(folder).items():
        if step >= failed - 1 or notes.get(EARLY):
            checkpoint.drop(folder, step)


def keep(
    workdir: Path,
    standing: Standing,
    state: train.TrainState,
    done: int,
    new: train.Metrics | None,
    safety: Safety,
    early: bool = False,
) -> Standing:
    """Writes what is new since the last checkpoint, and then a checkpoint.

    Args:
        workdir: the run's folder.
        standing: at the last checkpoint.
        state: of training, now.
        done: iterations.
        new: what those since the last checkpoint told; None where there are none.
        safety: what to write with it.
        early: whether it is one that only a signal asked for. It lasts until the next.

    Raises:
        ValueError: the folder cannot be written; the checkpoint before is whole.
    """
    folder = workdir / CHECKPOINTS
    pieces, metrics = dict(standing.pieces), standing.metrics
    try:
        # Not the run's folder itself: one that somebody took away is not to come back half empty.
        folder.mkdir(exist_ok=True)
        if new is not None:
            (folder / HISTORY).mkdir(exist_ok=True)
            name = f"{HISTORY}/{standing.done:012d}-{done:012d}.npz"
            leaves = jax.tree.leaves(new)
            records.write_arrays(
                folder / name, {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
            )
            pieces[name], metrics = checkpoint.digest(folder / name), (*metrics, new)
        score = float(new.loss[-1]) if new is not None else None
        notes = {**(safety.notes or {}), EARLY: early}
        passing = [step for step, said in checkpoint.notes(folder).items() if said.get(EARLY)]
        checkpoint.save(folder, done, state, score=score, notes=notes, beside=pieces)
        for step in set(passing) - {done}:
            checkpoint.drop(folder, step)
    except OSError as error:
        raise ValueError(records.cannot_write(workdir, error)) from error
    return Standing(state, done, metrics, pieces, standing.seconds)


def is_due(safety: Safety, done: int, before: int, since: float) -> bool:
    """Whether to write a checkpoint now.

    Args:
        safety: how often.
        done: iterations done.
        before: at the last checkpoint.
        since: `time.monotonic()` at the last checkpoint.
    """
    if safety.every:
        return done // safety.every > before // safety.every
    return time.monotonic() - since >= SECONDS_BETWEEN


def _rewrite_metrics(
    workdir: Path, parts: list[train.Metrics], done: int, log_every: int
) -> float | None:
    """metrics.jsonl with one line for each logged iteration so far; the seconds of the last.

    The lines follow from the history; only their seconds come from the file as it was left.
    """
    path = workdir / records.METRICS
    seconds = {
        row["step"]: float(row["seconds"])
        for row in readable_lines(path)
        if type(row.get("step")) is int and type(row.get("seconds")) in (int, float)
    }
    rows = []
    if parts:
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        for end in sorted({*range(log_every, done + 1, log_every), done}):
            first = (end - 1) // log_every * log_every
            chunk = jax.tree.map(lambda leaf, a=first, b=end: leaf[a:b], whole)
            rows.append(row_of(chunk, end, seconds.get(end)))
    records.write_atomically(path, records.json_lines(rows))
    return seconds.get(done)
