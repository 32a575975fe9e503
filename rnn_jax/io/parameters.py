"""The parameters that a run starts and ends with, in its folder, as plain NumPy archives.

arrays/params_STAGE.npz         of a single network: one entry a leaf, named by its path
arrays/params_STAGE_GROUP.npz   of a group of networks: leaves `[n, ...]`, and which networks they
                                are, as networks.jsonl numbers them, in the entry `network`

    from rnn_jax.io import parameters
    params = parameters.load("runs/memory", "end", network=3)    # {"cell.W": array, ...}
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from rnn_jax.io import records
from rnn_jax.io.npy import read_npz

Tree = TypeVar("Tree")

STAGES = ("start", "end")
NETWORK = "network"
"""The entry that says which networks the rows of the others are."""
MOST_BYTES = 2**28
"""Of a group's file: of a larger group as many networks are kept as it holds, from the first on."""


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of parameters by their path, such as `cell.W`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def save(workdir: Path, stage: str, params: Any) -> None:
    """Writes the parameters of a run's single network."""
    records.save_tree(workdir, f"params_{stage}", params)


def save_group(workdir: Path, stage: str, group: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the parameters of a group of networks.

    Args:
        workdir: the run's folder.
        stage: of `STAGES`.
        group: its number.
        arrays: path of a leaf -> `[n, ...]`, and `network`, `[n]`.
    """
    folder = records.inside(workdir, records.ARRAYS)
    records.write_arrays(folder / f"params_{stage}_{group:04d}.npz", arrays)


def is_kept(workdir: str | Path, stage: str) -> bool:
    """Whether the folder holds parameters of this stage, whatever is in the files."""
    return bool(_files(workdir, stage))


def load(workdir: str | Path, stage: str = "end", network: int | None = None) -> dict[str, Any]:
    """A network's parameters, path of a leaf -> array.

    Args:
        workdir: the run's folder.
        stage: "start" or "end" of training.
        network: its number in networks.jsonl; None for the run of a single network.

    Raises:
        ValueError: there is no such network, or a file is not an archive of plain numbers.
    """
    if network is None:
        return read_npz(_single(workdir, stage))
    for path in _files(workdir, stage):
        found = read_npz(path)
        numbers = found.pop(NETWORK, np.zeros(0, np.int64))
        if numbers.ndim != 1 or numbers.dtype.kind != "i":
            raise ValueError(f"{path}: {NETWORK} is {numbers.dtype} {numbers.shape}, not numbers")
        rows = np.flatnonzero(numbers == network)
        if len(rows):
            short = [name for name, array in found.items() if array.shape[:1] != numbers.shape]
            if short:
                raise ValueError(f"{path}: {short[0]} has not one row for each network")
            return {name: array[rows[0]] for name, array in found.items()}
    raise ValueError(
        f"{workdir} keeps no parameters of network {network} at the {stage} of training"
    )


def load_tree(
    workdir: str | Path, stage: str, network: int | None, like: Tree, prefix: str = ""
) -> Tree:
    """A network's parameters in the structure of `like`, checked leaf by leaf.

    Args:
        workdir, stage, network: as for `load`.
        like: a tree of arrays or `jax.ShapeDtypeStruct`.
        prefix: of the paths in the file, where `like` is only a part of what was kept.

    Raises:
        ValueError: as `load`; or a leaf is missing, of another shape or no number of that kind.
    """
    found = load(workdir, stage, network)
    values = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = prefix + jax.tree_util.keystr(path, simple=True, separator=".")
        array = found.get(name)
        given = "missing" if array is None else f"{array.dtype} {array.shape}"
        if (
            array is None
            or array.shape != leaf.shape
            or array.dtype.kind != np.dtype(leaf.dtype).kind
        ):
            raise ValueError(
                f"{workdir}, parameters of the {stage}: {name} is {given}, but {leaf.dtype} "
                f"{leaf.shape} is wanted"
            )
        values.append(array)
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _single(workdir: str | Path, stage: str) -> Path:
    return records.inside(workdir, records.ARRAYS) / f"params_{stage}.npz"


def _files(workdir: str | Path, stage: str) -> list[Path]:
    """The archives of a stage that are there, in the order of their groups."""
    folder = records.inside(workdir, records.ARRAYS)
    name = re.compile(rf"params_{re.escape(stage)}(_\d{{4,}})?\.npz")
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name))
