"""Groups of networks, run batch by batch into a folder that survives any end of the process.

A group shares one compiled program: its structure is fixed, its numbers differ from lane to lane.

parts/NAME.npz, NAME.jsonl    the arrays and the lines of a finished batch
checkpoints/NUMBER/           where a group that trains stands
networks.jsonl                one line a network, when all are done
arrays/NAME_GROUP.npy         profiles and curves, `[networks of the group, ...]`
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from experiments.cli import signals
from experiments.cli.progress import progress
from experiments.training.resuming import CHECKPOINTS, Safety
from rnn_jax import sharding, sweep
from rnn_jax.io import records
from rnn_jax.io.npy import read_npz
from rnn_jax.io.reading import read_lines, shown
from rnn_jax.types import Key

PARTS = "parts"
NETWORKS = "networks.jsonl"
DEFAULT_SAFETY = Safety()

Row = dict[str, Any]
Arrays = dict[str, np.ndarray]


class Group(NamedTuple):
    """Networks of one structure.

    Attributes:
        settings: what all of them share; part of each line.
        numbers: name -> one number a network, `[N]`; handed to `fit` in float32.
        seeds: `[N]`.
        fit: `(numbers, key) -> name -> array`, of one network; or what else the `Batches` of
            `run_groups` want.
        describe: `(line so far, arrays of one network) -> (what to add to the line, arrays to
            keep)`.
    """

    settings: Row
    numbers: Arrays
    seeds: np.ndarray
    fit: Any
    describe: Callable[[Row, Arrays], tuple[Row, Arrays]]


class Work(NamedTuple):
    """Networks of a group that are to be computed.

    Attributes:
        group: theirs.
        numbers: those of all its networks, float32 `[N]`.
        keys: one a network, `[N]`.
        indices: which networks.
        folder: for checkpoints within the group; dropped with all in it when the group is done.
        safety: how often to write them.
        asked_to_stop: whether a signal came; who keeps checkpoints may then stop between two
            batches too, and raise `Interrupted`.
    """

    group: Group
    numbers: Arrays
    keys: Key
    indices: np.ndarray
    folder: Path
    safety: Safety
    asked_to_stop: Callable[[], bool]


class Layout(NamedTuple):
    """How networks are spread; none of it changes a result.

    Attributes:
        width: networks side by side in a block.
        lanes: networks in a batch, which is what a killed process repeats at most.
        mesh: the devices.
    """

    width: int
    lanes: int
    mesh: jax.sharding.Mesh


Batches = Callable[[Work, Layout, Callable[[str], None]], Iterator[sweep.Lanes]]
"""`(work, layout, say) -> results`, batch by batch; `say` shows a few words of news."""


def whole_fits(work: Work, layout: Layout, say: Callable[[str], None]) -> Iterator[sweep.Lanes]:
    """Each network by one call of its group's fit."""
    del say
    return sweep.batches(
        work.group.fit,
        work.numbers,
        work.keys,
        width=layout.width,
        lanes=layout.lanes,
        mesh=layout.mesh,
        indices=work.indices,
    )


def run_groups(
    groups: list[Group],
    workdir: Path,
    seed: int,
    layout: Layout,
    batches: Batches = whole_fits,
    safety: Safety = DEFAULT_SAFETY,
) -> list[Row]:
    """Runs what is not yet done, and gathers all lines; call it in every process.

    Args:
        groups: in the order of their networks' indices.
        workdir: an open folder, held by this process. Only the writing process touches it.
        seed: of all networks; network n draws from fold_in(key(seed), its own seed).
        layout: how to spread them.
        batches: how networks are computed.
        safety: how checkpoints within a group are kept, where `batches` keeps any.

    Returns:
        The lines of all networks, in order; empty in processes that do not write.

    Raises:
        ValueError: the folder cannot be written any more; what was finished is in it.
        Interrupted: a signal came; the same call goes on from there.
    """
    total = sum(len(group.seeds) for group in groups)
    done = sharding.only_writer(lambda: finished(workdir, total))
    if not done.all():
        _run_missing(groups, workdir, seed, layout, batches, safety, done.astype(bool))
    sharding.only_writer(lambda: _gather_parts(workdir, groups, total))
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
    batches: Batches,
    safety: Safety,
    done: np.ndarray,
) -> None:
    """Computes and writes the networks that are not done."""
    if done.any() and sharding.is_writer():
        logging.warning("%d of %d networks are there from before", done.sum(), len(done))
    writer = sharding.is_writer()
    with (
        signals.noticed() as asked_to_stop,
        progress(len(done), "network", shown=writer) as report,
    ):
        first, count = 0, int(done.sum())
        start, before = time.monotonic(), count
        for number, group in enumerate(groups):
            where = f"group {number + 1} of {len(groups)}"
            missing = np.flatnonzero(~done[first : first + len(group.seeds)])

            def say(news: str, where: str = where, count: int = count) -> None:
                report(count, f"{where}: {news}")

            folder = workdir / CHECKPOINTS / f"{number:04d}"
            keys, numbers = _keys_and_numbers(group, seed)
            work = Work(group, numbers, keys, missing, folder, safety, asked_to_stop)
            for part in batches(work, layout, say) if len(missing) else ():
                if writer:
                    _write_part(workdir, group, number, first, part)
                count += len(part.indices)
                # A signal may reach one process before another, or one alone; all stop together.
                if count < len(done) and sharding.any_process(asked_to_stop()):
                    raise signals.Interrupted(f"stopped after {count} of {len(done)} networks")
                rate = (count - before) / (time.monotonic() - start)
                report(count, f"{rate:.3g} a second, {where}")
            if writer:
                shutil.rmtree(folder, ignore_errors=True)
            first += len(group.seeds)


def _keys_and_numbers(group: Group, seed: int) -> tuple[Key, Arrays]:
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(seed), s))(group.seeds)
    return keys, {name: values.astype(np.float32) for name, values in group.numbers.items()}


def _write_part(workdir: Path, group: Group, number: int, first: int, part: sweep.Lanes) -> None:
    """A batch's arrays and then its lines: where the lines are, the batch is whole."""
    rows, kept = [], []
    for lane, index in enumerate(part.indices):
        point = {
            "network": int(first + index),
            **group.settings,
            **{name: float(values[index]) for name, values in group.numbers.items()},
            "seed": int(group.seeds[index]),
        }
        found, arrays = group.describe(
            point, {name: values[lane] for name, values in part.results.items()}
        )
        rows.append({**point, **found})
        kept.append(arrays)
    name = f"{number:04d}-{part.indices[0]:06d}-{part.indices[-1]:06d}"
    try:
        records.write_arrays(
            workdir / PARTS / f"{name}.npz",
            {key: np.stack([arrays[key] for arrays in kept]) for key in kept[0]},
        )
        records.write_atomically(workdir / PARTS / f"{name}.jsonl", records.json_lines(rows))
    except OSError as error:
        raise ValueError(
            records.cannot_write(workdir, error) + ": the same command goes on from there"
        ) from error


def finished(workdir: Path, total: int) -> np.ndarray:
    """Which networks are done, `[total]` of 0 and 1; parts that cannot be read are dropped."""
    done = np.zeros(total, np.int64)
    if (workdir / NETWORKS).exists():
        return done + 1
    records.inside(workdir, PARTS).mkdir(exist_ok=True)
    for path in _part_names(workdir):
        try:
            indices = [_network(row, total) for row in read_lines(path)]
            arrays = read_npz(path.with_suffix(".npz"))
            whole = all(np.shape(array)[:1] == (len(indices),) for array in arrays.values())
        except ValueError:
            whole = False
        if whole:
            done[indices] = 1
        else:
            logging.warning("%s cannot be read; its networks are computed again", path)
            path.unlink()
    return done


def _part_names(workdir: Path) -> list[Path]:
    """The line files of all finished batches, in the order of their networks."""
    return sorted((workdir / PARTS).glob("*.jsonl"))


def _network(row: Row, total: int) -> int:
    """Which network a line tells of."""
    index = row.get("network")
    if type(index) is not int or not 0 <= index < total:
        raise ValueError(f"network is {shown(index)}; a whole number below {total} is wanted")
    return index


def _gather_parts(workdir: Path, groups: list[Group], total: int) -> np.ndarray:
    """Puts all parts together, and drops them once the whole is on disk."""
    if (workdir / NETWORKS).exists():
        return np.zeros(0, np.int64)
    try:
        rows: list[Row] = []
        for number in range(len(groups)):
            names = [path for path in _part_names(workdir) if path.name.startswith(f"{number:04d}")]
            lines = [read_lines(path) for path in names]
            order = np.argsort([row["network"] for part in lines for row in part], kind="stable")
            loaded = [read_npz(path.with_suffix(".npz")) for path in names]
            for key in loaded[0]:
                stacked = np.concatenate([arrays[key] for arrays in loaded])
                records.save_array(workdir, f"{key}_{number:04d}", stacked[order])
            rows += [row for part in lines for row in part]
        rows.sort(key=lambda row: row["network"])
        if [row["network"] for row in rows] != list(range(total)):
            raise ValueError("some networks are there twice")
        records.write_atomically(workdir / NETWORKS, records.json_lines(rows))
        shutil.rmtree(workdir / PARTS)
        shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)
    except OSError as error:
        raise ValueError(records.cannot_write(workdir, error)) from error
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"{workdir / PARTS} is not of this sweep: {error}; start afresh with --overwrite"
        ) from error
    return np.zeros(0, np.int64)


def load_rows(workdir: str | Path) -> list[Row]:
    """The lines of a finished sweep, in order.

    Raises:
        ValueError: there are none, or a line, which is named, is not that of its network.
    """
    path = Path(workdir) / NETWORKS
    rows = read_lines(path)
    for index, row in enumerate(rows):
        where, found = f"{path}, line {index + 1}", row.get("network")
        if type(found) is not int or found != index:
            raise ValueError(f"{where}: network is {shown(found)}, but {index} is wanted")
        for name, value in row.items():
            if isinstance(value, list | dict):
                raise ValueError(f"{where}: {shown(name)} is {shown(value)}; one value is wanted")
    return rows


def start_afresh(workdir: Path) -> None:
    """Drops what an earlier sweep left in the folder."""
    (workdir / NETWORKS).unlink(missing_ok=True)
    for name in (PARTS, CHECKPOINTS):
        shutil.rmtree(workdir / name, ignore_errors=True)
