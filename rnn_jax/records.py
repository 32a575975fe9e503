"""A run's folder: config.json, metrics.jsonl, arrays. Every file is whole or absent.

config.json        what was asked for
metrics.jsonl      one JSON object a logged step
arrays/NAME.npy    the trace and other arrays
arrays/NAME.npz    pytrees, one entry a leaf, named by its path
NAME.png           figures
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

Tree = TypeVar("Tree")

CONFIG = "config.json"
METRICS = "metrics.jsonl"
ARRAYS = "arrays"


def open_run(workdir: str | Path, config: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Makes a run's folder, or takes one of the same config; metrics of an earlier run are dropped.

    Args:
        workdir: the folder.
        config: JSON values.
        overwrite: take the folder whatever config it holds.

    Raises:
        ValueError: the folder cannot be written, or holds a run of another config; the message
            names the settings that differ.
    """
    path = Path(workdir)
    try:
        (path / ARRAYS).mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name a folder that can"
        ) from error
    if (path / CONFIG).exists() and not overwrite:
        differing = config_differences(load_config(path), config)
        if differing:
            raise ValueError(
                f"--workdir={workdir} holds a run of other settings: {'; '.join(differing)}. "
                "Name another folder, or give --overwrite to replace that run"
            )
    write_atomically(path / CONFIG, json.dumps(config, indent=2) + "\n")
    write_atomically(path / METRICS, "")
    return path


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One text for each setting in which two configs differ: `name was OLD, now NEW`."""
    missing = "not set"
    return [
        f"{name} was {old.get(name, missing)}, now {new.get(name, missing)}"
        for name in sorted({*old, *new})
        if old.get(name, missing) != new.get(name, missing)
    ]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes under another name, syncs and renames: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_config(workdir: str | Path) -> dict[str, Any]:
    """The config of a run; `ValueError` where there is none or it is no JSON object."""
    path = Path(workdir) / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the config of a run: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not an object of settings")
    return config


def append_metrics(workdir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines to metrics.jsonl; a value that is not finite becomes null, which JSON has."""
    lines = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
    with (workdir / METRICS).open("a") as file:
        file.write(lines)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }


def load_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The logged lines of a run, in order."""
    return [json.loads(line) for line in (Path(workdir) / METRICS).read_text().splitlines()]


def save_array(workdir: Path, name: str, array: Any) -> None:
    """Writes arrays/NAME.npy."""
    path = workdir / ARRAYS / f"{name}.npy"
    temporary = path.with_name(f".{name}.npy")
    with temporary.open("wb") as file:
        np.save(file, np.asarray(array), allow_pickle=False)
    temporary.replace(path)


def load_array(workdir: str | Path, name: str) -> np.ndarray:
    """Reads arrays/NAME.npy."""
    return np.load(Path(workdir) / ARRAYS / f"{name}.npy", allow_pickle=False)


def save_tree(workdir: Path, name: str, tree: Any) -> None:
    """Writes a pytree's leaves to arrays/NAME.npz, each under its path in the tree."""
    path = workdir / ARRAYS / f"{name}.npz"
    temporary = path.with_name(f".{name}.npz")
    with temporary.open("wb") as file:
        leaves: dict[str, Any] = {key: np.asarray(leaf) for key, leaf in _named_leaves(tree)}
        np.savez(file, **leaves)
    temporary.replace(path)


def load_tree(workdir: str | Path, name: str, like: Tree) -> Tree:
    """Reads arrays/NAME.npz into a pytree of the structure of `like`.

    Raises:
        ValueError: a leaf is missing or of another shape; the message names the first such leaf.
    """
    path = Path(workdir) / ARRAYS / f"{name}.npz"
    with np.load(path, allow_pickle=False) as stored:
        leaves = []
        for key, leaf in _named_leaves(like):
            found = stored[key].shape if key in stored else "missing"
            if found != tuple(leaf.shape):
                raise ValueError(f"{path}: {key} is {found}, but {tuple(leaf.shape)} is wanted")
            leaves.append(stored[key])
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
