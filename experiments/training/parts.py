"""The folder of many networks: finished batches, and one line and one row of arrays a network.

parts/NAME.npz, NAME.jsonl    the arrays and the lines of a finished batch
parts/NAME.STAGE.npz          the parameters of its networks
networks.jsonl                one line a network, when all are done
arrays/NAME_GROUP.npy         profiles and curves, `[networks of the group, ...]`
arrays/params_STAGE_GROUP.npz parameters; see `rnn_jax.io.parameters`
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from experiments.analysis.kept_networks import NETWORKS as NETWORKS
from experiments.analysis.kept_networks import Row as Row
from experiments.analysis.kept_networks import load_rows as load_rows
from experiments.training.algorithm import Arrays
from experiments.training.store import CHECKPOINTS
from rnn_jax.io import parameters, records
from rnn_jax.io.npy import read_npz
from rnn_jax.io.reading import read_lines, shown

PARTS = "parts"


def write_part(
    workdir: Path,
    group: int,
    indices: np.ndarray,
    rows: Sequence[Row],
    kept: Sequence[Arrays],
    params: Mapping[str, Any],
) -> None:
    """Writes a batch's arrays and then its lines: where the lines are, the batch is whole.

    Args:
        workdir: an open folder.
        group: number of the batch's group.
        indices: of its networks in the group.
        rows: a line a network.
        kept: the arrays of each.
        params: stage -> parameters of the networks, leaves `[M, ...]`.

    Raises:
        ValueError: the folder cannot be written any more.
    """
    name = f"{group:04d}-{indices[0]:06d}-{indices[-1]:06d}"
    try:
        numbers = np.array([row["network"] for row in rows])
        for stage, tree in params.items():
            arrays = _kept_params(tree, indices, numbers)
            if len(arrays[parameters.NETWORK]):
                records.write_arrays(workdir / PARTS / f"{name}.{stage}.npz", arrays)
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
            for stage in parameters.STAGES:
                _part_params(path, stage)
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


def gather_parts(workdir: Path, num_groups: int, total: int) -> np.ndarray:
    """Puts all parts together, and drops them once the whole is on disk."""
    if (workdir / NETWORKS).exists():
        # A process that was killed in between left them.
        _drop_parts(workdir)
        return np.zeros(0, np.int64)
    try:
        rows: list[Row] = []
        for number in range(num_groups):
            names = [path for path in _part_names(workdir) if path.name.startswith(f"{number:04d}")]
            lines = [read_lines(path) for path in names]
            order = np.argsort([row["network"] for part in lines for row in part], kind="stable")
            loaded = [read_npz(path.with_suffix(".npz")) for path in names]
            for key in loaded[0]:
                stacked = np.concatenate([arrays[key] for arrays in loaded])
                records.save_array(workdir, f"{key}_{number:04d}", stacked[order])
            _gather_params(workdir, number, names)
            rows += [row for part in lines for row in part]
        rows.sort(key=lambda row: row["network"])
        if [row["network"] for row in rows] != list(range(total)):
            raise ValueError("some networks are there twice")
        records.write_atomically(workdir / NETWORKS, records.json_lines(rows))
        _drop_parts(workdir)
    except OSError as error:
        raise ValueError(records.cannot_write(workdir, error)) from error
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"{workdir / PARTS} is not of this sweep: {error}; start afresh with --overwrite"
        ) from error
    return np.zeros(0, np.int64)


def _kept_params(params: Any, indices: np.ndarray, numbers: np.ndarray) -> Arrays:
    """The leaves of as many networks, the first of a group, as the group's file holds."""
    leaves = parameters.leaves(params)
    size = sum(leaf[0].nbytes for leaf in leaves.values())
    kept = indices < max(1, parameters.MOST_BYTES // max(1, size))
    return {parameters.NETWORK: numbers[kept]} | {name: leaf[kept] for name, leaf in leaves.items()}


def _part_params(path: Path, stage: str) -> Arrays:
    """The parameters beside the lines of a batch; none where it has none."""
    place = path.with_suffix(f".{stage}.npz")
    return read_npz(place) if place.exists() else {}


def _gather_params(workdir: Path, number: int, names: Sequence[Path]) -> None:
    """Puts the parameters of a group's batches together, in the order of their networks."""
    for stage in parameters.STAGES:
        found = [arrays for path in names if (arrays := _part_params(path, stage))]
        if found:
            stacked = {key: np.concatenate([arrays[key] for arrays in found]) for key in found[0]}
            order = np.argsort(stacked[parameters.NETWORK], kind="stable")
            in_order = {key: rows[order] for key, rows in stacked.items()}
            parameters.save_group(workdir, stage, number, in_order)


def start_afresh(workdir: Path) -> None:
    """Drops what an earlier sweep left in the folder."""
    (workdir / NETWORKS).unlink(missing_ok=True)
    _drop_parts(workdir)


def _drop_parts(workdir: Path) -> None:
    """Drops what only a sweep that is not finished needs."""
    for name in (PARTS, CHECKPOINTS):
        shutil.rmtree(workdir / name, ignore_errors=True)
