"""How far a run is, on disk, so that it can be restored and goes on bit for bit.

FOLDER/000000001200/       the training state (see `rnn_jax.io.checkpoint`)
FOLDER/history/A-B.npz     results of iterations A+1..B, written once
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.training.loop import RunState, joined
from experiments.training.programs import Programs
from rnn_jax.io import checkpoint, records

CHECKPOINTS = "checkpoints"
HISTORY = "history"
SECONDS_BETWEEN = 60.0
"""Between two checkpoints where they go by the clock."""
STAGES = "stages"
"""The note of a checkpoint that names the stages at which its networks have been measured."""
EARLY = "early"
"""The note of a checkpoint that a signal asked for; an undisturbed run would not have it."""


class CheckpointOptions(NamedTuple):
    """How checkpoints are kept.

    Attributes:
        every: iterations between two checkpoints; 0 for one about every minute.
        resume: go on from the newest checkpoint where there is one.
    """

    every: int = 0
    resume: bool = True


class Saved(NamedTuple):
    """What of a run is on disk.

    Attributes:
        iteration: of the newest checkpoint.
        chunks: how many of the run's chunks are in the pieces.
        pieces: name -> digest of the files that hold them.
        at: `time.monotonic()` when it was written.
    """

    iteration: int
    chunks: int
    pieces: Mapping[str, Any]
    at: float


def nothing_saved() -> Saved:
    """Of a fresh run."""
    return Saved(0, 0, MappingProxyType({}), time.monotonic())


def is_due(options: CheckpointOptions, iteration: int, saved: Saved) -> bool:
    """Whether to write a checkpoint now."""
    if options.every:
        return iteration // options.every > saved.iteration // options.every
    return time.monotonic() - saved.at >= SECONDS_BETWEEN


def forget(folder: Path) -> None:
    """Drops all checkpoints of a folder."""
    shutil.rmtree(folder, ignore_errors=True)


def save(
    folder: Path,
    now: RunState,
    saved: Saved,
    *,
    early: bool = False,
    score: float | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Saved:
    """Writes the results that are new since the last checkpoint, and then a checkpoint.

    Args:
        folder: for the checkpoints of this run.
        now: how far it is.
        saved: what is on disk of it.
        early: whether only a signal asked for it. It lasts until the next.
        score: the smaller the better; the best checkpoint is kept.
        notes: JSON values kept with it.

    Raises:
        ValueError: the folder cannot be written; the checkpoint before is whole.
    """
    pieces = dict(saved.pieces)
    try:
        # Not the run's own folder: one that somebody moved is not to come back half empty.
        folder.mkdir(exist_ok=True)
        new = now.chunks[saved.chunks :]
        if new:
            (folder / HISTORY).mkdir(exist_ok=True)
            name = f"{HISTORY}/{saved.iteration:012d}-{now.iteration:012d}.npz"
            records.write_arrays(folder / name, joined(new))
            pieces[name] = checkpoint.digest(folder / name)
        passing = [step for step, said in checkpoint.notes(folder).items() if said.get(EARLY)]
        checkpoint.save(
            folder,
            now.iteration,
            _tree(now),
            score=score,
            notes={**(notes or {}), EARLY: early, STAGES: list(now.measured)},
            beside=pieces,
        )
        for step in set(passing) - {now.iteration}:
            checkpoint.drop(folder, step)
    except OSError as error:
        raise ValueError(records.cannot_write(folder.parent, error)) from error
    return Saved(now.iteration, len(now.chunks), pieces, time.monotonic())


def restore(folder: Path, programs: Programs) -> tuple[RunState, Saved] | None:
    """The run as its newest whole checkpoint has it; None where there is none.

    Args:
        folder: for the checkpoints of this run.
        programs: of its networks.

    Raises:
        ValueError: see `checkpoint.load`.
    """
    if not folder.exists():
        return None
    found = checkpoint.load(folder, lambda notes: _tree(_shapes(programs, notes[STAGES])))
    if found is None:
        return None
    for path in (folder / HISTORY).glob("*.npz"):
        if f"{HISTORY}/{path.name}" not in found.beside:
            path.unlink()
    chunks = []
    for path in (folder / name for name in sorted(found.beside)):
        with np.load(path, allow_pickle=False) as stored:
            chunks.append({key: stored[key] for key in stored.files})
    tree = found.tree
    now = RunState(
        found.step,
        tree["state"],
        np.asarray(tree["active"]),
        {name: np.array(value) for name, value in tree["ends"].items()},
        tree.get("measured", {}),
        tuple(chunks),
    )
    return now, Saved(found.step, len(chunks), found.beside, time.monotonic())


def _shapes(programs: Programs, stages: list[str]) -> RunState:
    """Shapes of a run state that has been measured at some stages."""
    state, measured = programs.shapes()
    count = programs.num_networks
    whole = jax.ShapeDtypeStruct((count,), np.int64)
    names = ("steps", "diverged_step", "diverged_time_step")
    active: Any = jax.ShapeDtypeStruct((count,), np.bool_)
    return RunState(0, state, active, dict.fromkeys(names, whole), dict.fromkeys(stages, measured))


def notes_of(folder: Path) -> dict[str, Any]:
    """The notes of the newest checkpoint; empty where there is none."""
    found = checkpoint.notes(folder)
    return found[max(found)] if found else {}


def go_back(folder: Path, failed: int) -> None:
    """Drops the checkpoints that a run whose iteration failed cannot go back to.

    Args:
        folder: for the checkpoints of this run.
        failed: the iteration. Its loss and gradient follow from the state before it alone,
            whatever the learning rate: a checkpoint of that state leads to the same failure.

    An early checkpoint is dropped too, so that a run which was stopped in between goes back to
    where it would have without.
    """
    for step, notes in checkpoint.notes(folder).items():
        if step >= failed - 1 or notes.get(EARLY):
            checkpoint.drop(folder, step)


def _tree(now: RunState) -> dict[str, Any]:
    """What a checkpoint holds; Orbax does not keep empty dictionaries."""
    tree = {"state": now.state, "active": now.active, "ends": now.ends}
    measured = {stage: values for stage, values in now.measured.items() if values}
    return {**tree, "measured": measured} if measured else tree
