"""The one loop by which networks learn, one of them or many side by side.

Training goes in chunks, each one program on the device. Between two chunks the host logs, keeps
checkpoints, stops at a signal, and lets go of networks that have solved their task or left the
finite range.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.cli.signals import Interrupted
from experiments.training.algorithm import Arrays, FirstNonFinite
from experiments.training.programs import Programs

START, END = "start", "end"
"""Stages of training at which the gradient's flow is measured: before the first iteration and after
the last."""


class RunState(NamedTuple):
    """How far networks are, between two chunks.

    Attributes:
        iteration: where they are.
        state: of training, leaves `[N, ...]`; of one network alone without that axis.
        active: `[N]`, which of them still train.
        ends: steps, diverged_step and diverged_time_step (0 where it did not) so far, `[N]`.
        measured: stage -> what was measured then, `name -> [N, ...]`.
        chunks: results of the chunks so far, `name -> [N, k, ...]` each.
    """

    iteration: int
    state: Any
    active: np.ndarray
    ends: Arrays
    measured: dict[str, Arrays]
    chunks: tuple[Arrays, ...] = ()


class Schedule(NamedTuple):
    """When the loop does what.

    Attributes:
        num_steps: iterations of a network that is not let go before.
        chunk_size: iterations in a chunk; the last may have fewer.
        stages: stage -> the iteration, a multiple of `chunk_size`, at which it is measured. START
            and END are measured anyway.
        intervene_at: iterations before which the algorithm intervenes.
        is_solved: results of a chunk, `name -> [M, k, ...]`, to whether each network needs no more
            training, `[M]`; None where all train to the end.
    """

    num_steps: int
    chunk_size: int
    stages: Mapping[str, int] = {}
    intervene_at: tuple[int, ...] = ()
    is_solved: Callable[[Arrays], np.ndarray] | None = None


class Callbacks(NamedTuple):
    """What the host does between chunks; each may raise to end the run.

    Attributes:
        on_chunk: `(run state, first iteration of the chunk, its results)`, in order.
        on_nonfinite: `(run state, iteration, FirstNonFinite)` of one network alone whose numbers
            left the finite range. Networks side by side are let go of instead.
        on_stage: `(run state, words)` before something that takes its time.
        checkpoint_due: `iteration -> bool`.
        save_checkpoint: `(run state, whether only a signal asked for it)`.
        should_stop: whether a signal came.
    """

    on_chunk: Callable[[RunState, int, Arrays], None] = lambda now, first, results: None
    on_nonfinite: Callable[[RunState, int, FirstNonFinite], None] = lambda now, step, where: None
    on_stage: Callable[[RunState, str], None] = lambda now, words: None
    checkpoint_due: Callable[[int], bool] = lambda iteration: False
    save_checkpoint: Callable[[RunState, bool], None] | None = None
    should_stop: Callable[[], bool] = lambda: False


def begin(programs: Programs, callbacks: Callbacks, measure_start: bool = True) -> RunState:
    """Fresh networks, measured."""
    everyone = np.arange(programs.num_networks)
    names = ("steps", "diverged_step", "diverged_time_step")
    now = RunState(
        iteration=0,
        state=programs.init(),
        active=np.ones(programs.num_networks, bool),
        ends={name: np.zeros(programs.num_networks, np.int64) for name in names},
        measured={},
    )
    if not measure_start:
        return now
    callbacks.on_stage(now, "first measurement")
    return now._replace(measured={START: programs.measure(now.state, everyone)})


def train(programs: Programs, now: RunState, schedule: Schedule, callbacks: Callbacks) -> RunState:
    """Trains networks to their end, and measures them there.

    Args:
        programs: what is run.
        now: from `begin`, or restored from a checkpoint.
        schedule: when what is done.
        callbacks: what the host does in between.

    Returns:
        The networks at their end. Results of those let go stay as they were from then on.

    Raises:
        Interrupted: a signal came; a checkpoint was written, where there is a place for it.
    """
    pending: tuple[int, Any, FirstNonFinite] | None = None

    def settle(now: RunState) -> RunState:
        """The results of a single network's chunk, fetched while the device runs the next."""
        nonlocal pending
        if pending is None:
            return now
        (first, results, where), pending = pending, None
        now, bad = _settled(programs, now, first, results, where)
        callbacks.on_chunk(now, first, now.chunks[-1])
        if int(bad.iteration):
            callbacks.on_nonfinite(now, first + int(bad.iteration), bad)
        return now

    while now.iteration < schedule.num_steps and now.active.any():
        which, first = np.flatnonzero(now.active), now.iteration
        size = min(schedule.chunk_size - first % schedule.chunk_size, schedule.num_steps - first)
        if first in schedule.intervene_at:
            callbacks.on_stage(now, f"iteration {first}: flossing")
            state = programs.intervene(now.state, which)
            now = now._replace(state=_with_rows(programs, now.state, which, state))
        state, results, where = programs.train_chunk(now.state, which, size)
        if programs.side_by_side:
            now = _after(now, which, size, state, results, where, schedule)
            callbacks.on_chunk(now, first, now.chunks[-1])
        else:
            now = settle(now._replace(state=state, iteration=first + size))
            pending = (first, results, where)
        for stage, iteration in schedule.stages.items():
            if first < iteration <= now.iteration:
                now = settle(now)
                measured = programs.measure(now.state, np.arange(programs.num_networks))
                now = now._replace(measured={**now.measured, stage: measured})
        unfinished = now.iteration < schedule.num_steps and now.active.any()
        stop = bool(callbacks.should_stop() and unfinished)
        due = callbacks.checkpoint_due(now.iteration)
        if (stop or due) and callbacks.save_checkpoint is not None:
            now = settle(now)
            callbacks.save_checkpoint(now, not due)
        if stop:
            raise Interrupted(f"stopped after iteration {now.iteration} of {schedule.num_steps}")
    now = settle(now)
    measured = programs.measure(now.state, np.arange(programs.num_networks))
    return now._replace(measured={**now.measured, END: measured})


def _settled(
    programs: Programs, now: RunState, first: int, results: Any, where: Any
) -> tuple[RunState, FirstNonFinite]:
    """The run of one network with a chunk's results on the host."""
    fetched, where = programs.fetch((results, where))
    bad = FirstNonFinite(*(int(value[0]) for value in where))
    ends = {**now.ends, "steps": np.array([now.iteration])}
    if bad.iteration and not now.ends["diverged_step"][0]:
        ends["diverged_step"] = np.array([first + bad.iteration])
        ends["diverged_time_step"] = np.array([bad.adjoint_step])
    return now._replace(chunks=(*now.chunks, fetched), ends=ends), bad


def _after(
    now: RunState,
    which: np.ndarray,
    size: int,
    new: Any,
    results: Arrays,
    where: FirstNonFinite,
    schedule: Schedule,
) -> RunState:
    """Networks side by side after a chunk, of which those still training have a new state."""
    diverged = where.iteration > 0
    ends = {name: values.copy() for name, values in now.ends.items()}
    ends["steps"][which] += size
    gone = which[diverged]
    ends["diverged_step"][gone] = now.iteration + where.iteration[diverged]
    ends["diverged_time_step"][gone] = where.adjoint_step[diverged]
    # A network that left the finite range is kept as it was a chunk before.
    kept = jax.tree.map(lambda leaf: leaf[~diverged], new)
    active = now.active.copy()
    active[gone] = False
    if schedule.is_solved is not None:
        active[which[~diverged & schedule.is_solved(results)]] = False
    if len(which) < len(now.active):
        # Those at their end keep what they had.
        results = {
            name: replace_rows(
                np.repeat(now.chunks[-1][name][:, -1:], rows.shape[1], axis=1), which, rows
            )
            for name, rows in results.items()
        }
    return now._replace(
        iteration=now.iteration + size,
        state=replace_rows(now.state, which[~diverged], kept),
        active=active,
        ends=ends,
        chunks=(*now.chunks, results),
    )


def _with_rows(programs: Programs, old: Any, which: np.ndarray, new: Any) -> Any:
    return replace_rows(old, which, new) if programs.side_by_side else new


def replace_rows(tree: Any, which: np.ndarray, new: Any) -> Any:
    """The rows `which` of every leaf replaced."""

    def put(leaf: np.ndarray, rows: np.ndarray) -> np.ndarray:
        leaf = np.array(leaf)
        leaf[which] = rows
        return leaf

    return jax.tree.map(put, tree, new)


def joined(chunks: Sequence[Arrays]) -> Arrays:
    """The results of successive chunks as one, `name -> [N, k, ...]`."""
    return {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}


def curves(now: RunState, schedule: Schedule) -> Arrays:
    """The results of all chunks, of one length whenever the last network came to its end."""
    done = -(-now.iteration // schedule.chunk_size)
    missing = -(-schedule.num_steps // schedule.chunk_size) - done

    def filled(leaf: np.ndarray) -> np.ndarray:
        rest = np.repeat(leaf[:, -1:], missing * (leaf.shape[1] // done), axis=1)
        return np.concatenate([leaf, rest], axis=1)

    return {name: filled(leaf) for name, leaf in joined(now.chunks).items()}
