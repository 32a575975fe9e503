"""Groups of networks, run batch by batch into a folder that survives any end of the process.

A group shares one compiled program: its structure is fixed, its hyperparameters differ from network
to network. Networks are trained by the one loop (`experiments.training.loop`), or measured by one
call of a pure function.
"""

import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from experiments.cli.progress import progress
from experiments.cli.signals import Interrupted, catch_signals
from experiments.training import loop, store
from experiments.training.algorithm import Algorithm, Arrays
from experiments.training.loop import Callbacks, RunState, Schedule
from experiments.training.parts import (
    NETWORKS,
    Row,
    finished,
    gather_parts,
    load_rows,
    write_part,
)
from experiments.training.programs import Layout, Programs, of_many_networks
from experiments.training.store import CHECKPOINTS, CheckpointOptions
from rnn_jax import sharding, sweep
from rnn_jax.io import records
from rnn_jax.types import Key

DEFAULT_OPTIONS = CheckpointOptions()


class Training(NamedTuple):
    """How the networks of a group are trained."""

    algorithm: Algorithm
    schedule: Schedule


class Group(NamedTuple):
    """Networks of one structure.

    Attributes:
        settings: what all of them share; part of each line.
        hparams: name -> one number a network, `[N]`; handed to programs in float32.
        seeds: `[N]`.
        program: how they are trained, or `(hparams, key) -> name -> array` of one network that is
            measured only.
        describe: `(line so far, arrays of one network) -> (what to add to the line, arrays to
            keep)`.
        key_of: `(seed of the run, seeds [N]) -> keys [N]`; fold_in(key(seed of the run), own seed)
            unless given.
    """

    settings: Row
    hparams: Arrays
    seeds: np.ndarray
    program: Training | sweep.Fit
    describe: Callable[[Row, Arrays], tuple[Row, Arrays]]
    key_of: Callable[[int, np.ndarray], Key] | None = None


class Batch(NamedTuple):
    """Results of some networks of a group.

    Attributes:
        indices: `[M]`, which of them.
        results: name -> `[M, ...]`.
        params: start and end -> parameters, leaves `[M, ...]`; none of networks that do not train.
    """

    indices: np.ndarray
    results: Arrays
    params: Mapping[str, Any] = MappingProxyType({})


class Work(NamedTuple):
    """Networks of a group that are to be computed.

    Attributes:
        group: theirs.
        seed: of the run.
        indices: `[M]`, which networks.
        folder: for checkpoints within the group; dropped with all in it when the group is done.
        options: how checkpoints are kept.
        should_stop: whether a signal came.
        report: shows a few words of progress.
    """

    group: Group
    seed: int
    indices: np.ndarray
    folder: Path
    options: CheckpointOptions
    should_stop: Callable[[], bool]
    report: Callable[[str], None]


def run_groups(
    groups: list[Group],
    workdir: Path,
    seed: int,
    layout: Layout,
    options: CheckpointOptions = DEFAULT_OPTIONS,
) -> list[Row]:
    """Runs what is not yet done, and gathers all lines; call it in every process.

    Args:
        groups: in the order of their networks' indices.
        workdir: an open folder, held by this process. Only the writing process touches it.
        seed: of all networks.
        layout: how to spread them.
        options: how checkpoints within a group are kept.

    Returns:
        The lines of all networks, in order; empty in processes that do not write.

    Raises:
        ValueError: the folder cannot be written any more; what was finished is in it.
        Interrupted: a signal came; the same call goes on from there.
    """
    total = sum(len(group.seeds) for group in groups)
    done = sharding.only_writer(lambda: finished(workdir, total))
    if not done.all():
        _run_missing(groups, workdir, seed, layout, options, done.astype(bool))
    sharding.only_writer(lambda: gather_parts(workdir, len(groups), total))
    rows = load_rows(workdir) if sharding.is_writer() else []
    if rows and len(rows) != total:
        raise ValueError(
            f"{workdir / NETWORKS} has {len(rows)} lines, but the sweep {total} networks; start "
            "afresh with --overwrite"
        )
    return rows


def _run_missing(
    groups: list[Group],
    workdir: Path,
    seed: int,
    layout: Layout,
    options: CheckpointOptions,
    done: np.ndarray,
) -> None:
    """Computes and writes the networks that are not done."""
    writer = sharding.is_writer()
    if done.any() and writer:
        logging.warning("%d of %d networks are there from before", done.sum(), len(done))
    with (
        catch_signals() as should_stop,
        progress(len(done), "network", shown=writer) as report,
    ):
        first, count = 0, int(done.sum())
        start, before = time.monotonic(), count
        for number, group in enumerate(groups):
            where = f"group {number + 1} of {len(groups)}"
            missing = np.flatnonzero(~done[first : first + len(group.seeds)])

            def report_within(words: str, where: str = where, count: int = count) -> None:
                report(count, f"{where}: {words}")

            folder = workdir / CHECKPOINTS / f"{number:04d}"
            work = Work(group, seed, missing, folder, options, should_stop, report_within)
            compute = trained if isinstance(group.program, Training) else measured
            for batch in compute(work, layout) if len(missing) else ():
                if writer:
                    rows, kept = _described(group, first, batch)
                    write_part(workdir, number, batch.indices, rows, kept, batch.params)
                count += len(batch.indices)
                # A signal may reach one process before another, or one alone; all stop together.
                if count < len(done) and sharding.any_process(should_stop()):
                    raise Interrupted(f"stopped after {count} of {len(done)} networks")
                rate = (count - before) / (time.monotonic() - start)
                report(count, f"{rate:.3g} a second, {where}")
            if writer:
                shutil.rmtree(folder, ignore_errors=True)
            first += len(group.seeds)


def keys_of(group: Group, seed: int) -> Key:
    """The keys of a group's networks, `[N]`."""
    if group.key_of is not None:
        return group.key_of(seed, group.seeds)
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.key(seed), s))(group.seeds)


def measured(work: Work, layout: Layout) -> Iterator[Batch]:
    """Networks by one call each of their group's function."""
    group = work.group
    assert not isinstance(group.program, Training)
    parts = sweep.batches(
        group.program,
        {name: values.astype(np.float32) for name, values in group.hparams.items()},
        keys_of(group, work.seed),
        width=layout.width,
        lanes=layout.batch,
        mesh=layout.mesh,
        indices=work.indices,
    )
    return (Batch(part.indices, part.results) for part in parts)


def trained(work: Work, layout: Layout) -> Iterator[Batch]:
    """Networks trained by the loop, a batch of the layout's size after the other.

    Of each network: its curves, name -> `[K, ...]`; NAME_STAGE of what was measured at each stage;
    steps, iterations that it trained; diverged_step and diverged_time_step, 0 where there is none.

    Raises:
        Interrupted: a signal came; the same call goes on from there.
        ValueError: the folder cannot be written, or no checkpoint in it is whole.
    """
    group = work.group
    assert isinstance(group.program, Training)
    keys: Any = keys_of(group, work.seed)
    for start in range(0, len(work.indices), layout.batch):
        indices = work.indices[start : start + layout.batch]
        hparams = {name: values[indices] for name, values in group.hparams.items()}
        programs = of_many_networks(group.program.algorithm, hparams, keys[indices], layout)
        end, start_params = _train_batch(work, programs, group.program.schedule, indices)
        results = {
            f"{name}_{stage}": values
            for stage, found in end.measured.items()
            for name, values in found.items()
        }
        curves = loop.curves(end, group.program.schedule)
        params = {loop.START: start_params, loop.END: end.state.params}
        yield Batch(indices, {**curves, **results, **end.ends}, params)


def _train_batch(
    work: Work, programs: Programs, schedule: Schedule, indices: np.ndarray
) -> tuple[RunState, Any]:
    """A batch of networks, trained to its end from where its checkpoint stands; and its start."""
    # Several processes train the same networks; a checkpoint of each would be in the others' way.
    alone = jax.process_count() == 1
    # Named by its networks: a checkpoint of others of the group is not theirs.
    folder = work.folder / f"{zlib.crc32(indices.tobytes()):08x}"

    saved = store.nothing_saved()

    def on_chunk(now: RunState, first: int, results: Arrays) -> None:
        del first
        solved = int(np.sum(~now.active) - np.count_nonzero(now.ends["diverged_step"]))
        loss = results["test_loss" if "test_loss" in results else "loss"][:, -1]
        words = "" if schedule.is_solved is None else f", {solved} of {len(indices)} solved"
        work.report(
            f"iteration {now.iteration} of {schedule.num_steps}: loss {np.median(loss):.3g}{words}"
        )

    def save_checkpoint(now: RunState, early: bool) -> None:
        nonlocal saved
        del early
        try:
            # The run's own folder is not made again where somebody took it away.
            work.folder.parent.mkdir(exist_ok=True)
            work.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(records.cannot_write(work.folder.parent.parent, error)) from error
        saved = store.save(folder, now, saved)

    def due(iteration: int) -> bool:
        return alone and store.is_due(work.options, iteration, saved)

    callbacks = Callbacks(
        on_chunk=on_chunk,
        on_stage=lambda now, words: work.report(words),
        checkpoint_due=due,
        save_checkpoint=save_checkpoint if alone else None,
        should_stop=work.should_stop if alone else lambda: False,
    )
    found = store.restore(folder, programs) if alone and work.options.resume else None
    if found is not None:
        now, saved = found
        # No checkpoint holds them: they are drawn again, from the same keys.
        start_params = programs.init().params
    else:
        store.forget(folder)
        now, saved = loop.begin(programs, callbacks), store.nothing_saved()
        start_params = now.state.params
    return loop.train(programs, now, schedule, callbacks), start_params


def _described(group: Group, first: int, batch: Batch) -> tuple[list[Row], list[Arrays]]:
    """The lines and the arrays to keep of a batch's networks, the first of the group `first`."""
    rows, kept = [], []
    for place, index in enumerate(batch.indices):
        point = {
            "network": int(first + index),
            **group.settings,
            **{name: float(values[index]) for name, values in group.hparams.items()},
            "seed": int(group.seeds[index]),
        }
        results = {name: values[place] for name, values in batch.results.items()}
        found, arrays = group.describe(point, results)
        rows.append({**point, **found})
        kept.append(arrays)
    return rows, kept
