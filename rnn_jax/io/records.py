"""A run's folder: config.json, metrics.jsonl, arrays. Every file is whole or absent.

config.json        what was asked for
metrics.jsonl      one JSON object a logged step
arrays/NAME.npy    the trace and other arrays
arrays/NAME.npz    pytrees, one entry a leaf, named by its path
NAME.png           figures
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from rnn_jax.io.npy import read_npy, read_npz
from rnn_jax.io.reading import plain_name, read_lines, read_object, shown
from rnn_jax.io.writing import append, not_through_a_link
from rnn_jax.io.writing import write_atomically as write_atomically

Tree = TypeVar("Tree")

CONFIG = "config.json"
METRICS = "metrics.jsonl"
ARRAYS = "arrays"
LOCK = ".lock"
EXPERIMENT = "experiment"
"""The setting that says which experiment a run is of."""
MOST_NAMED = 8
"""Settings that an error names."""
NO_MORE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What the system says of a disk that takes no more."""


def open_run(workdir: str | Path, config: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Makes a run's folder, or takes one of the same config.

    Args:
        workdir: the folder.
        config: JSON values.
        overwrite: take the folder whatever config it holds.

    Raises:
        ValueError: the folder cannot be written, or holds a run of another config; the message
            names the settings that differ.
    """
    path = make_folder(workdir)
    try:
        inside(path, ARRAYS).mkdir(exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        write_atomically(probe, "")
        probe.unlink()
    except OSError as error:
        raise ValueError(cannot_write(workdir, error)) from error
    if (path / CONFIG).exists() and not overwrite:
        old = load_config(path)
        differing = config_differences(old, config)
        if old.get(EXPERIMENT) != config.get(EXPERIMENT):
            # Hardly a setting of one experiment is one of another.
            differing = [text for text in differing if text.startswith(f"{EXPERIMENT} was ")]
        if differing:
            more = f"; and {len(differing) - MOST_NAMED} more" if differing[MOST_NAMED:] else ""
            raise ValueError(
                f"--workdir={workdir} holds a run of other settings: "
                f"{'; '.join(differing[:MOST_NAMED])}{more}. "
                "Name another folder, or give --overwrite to replace that run"
            )
    write_atomically(path / CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")
    return path


def make_folder(workdir: str | Path) -> Path:
    """Makes a folder, and those that it lies in, unless it is there.

    Raises:
        ValueError: its name is empty or does not print, or there can be no such folder.
    """
    path, name = Path(workdir), str(workdir)
    if not name.strip() or not name.isprintable():
        raise ValueError(
            f"--workdir={shown(name) if name else ''}: give a folder a name of letters that print, "
            "such as runs/first"
        )
    if name.startswith("~"):
        raise ValueError(
            f"--workdir={name}: in this place a shell leaves ~ as it is; write $HOME, or give "
            f"./{name} for a folder of that name"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(_cannot_make(path, error)) from error
    return path


def _cannot_make(path: Path, error: OSError) -> str:
    """What to say of a folder that cannot be made."""
    for place in (path, *path.parents):
        # pathlib's own raise where a name is too long.
        if os.path.islink(place) and not os.path.exists(place):
            return (
                f"--workdir={path} cannot be made: {place} is a link to {os.readlink(place)}, "
                "which is not there; remove the link, or name another folder"
            )
        if os.path.exists(place) and not os.path.isdir(place):
            return f"--workdir={path} cannot be made: {place} is not a folder; name another"
    return f"--workdir={path} cannot be made ({error.strerror}); name a folder elsewhere"


@contextlib.contextmanager
def held(workdir: str | Path) -> Iterator[None]:
    """Keeps a folder for this process; the system lets go of it when the process ends, however.

    Raises:
        ValueError: another process holds it, or it cannot be written: now or, with a full disk or
            a folder that somebody took away, as long as it is held.
    """
    path = make_folder(workdir)
    try:
        file = open(path / LOCK, "a", opener=not_through_a_link)  # noqa: SIM115
    except OSError as error:
        raise ValueError(cannot_write(workdir, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"--workdir={workdir}: another process is at work in this folder; wait for it, or "
                "name another folder"
            ) from error
        try:
            _drop_unfinished(path)
            yield
        except OSError as error:
            if error.errno in NO_MORE or not path.exists():
                raise ValueError(cannot_write(workdir, error)) from error
            raise


def _drop_unfinished(path: Path) -> None:
    """Removes what a process that was killed had begun to write; see `write_atomically`."""
    for unfinished in path.rglob(".*"):
        if re.fullmatch(r"\.(.+\.|writable-)\d+", unfinished.name) and not unfinished.is_dir():
            unfinished.unlink(missing_ok=True)


def cannot_write(workdir: str | Path, error: OSError) -> str:
    """What to say of a folder that cannot be written."""
    if error.errno == errno.ENOENT and not Path(workdir).exists():
        return f"--workdir={workdir} is gone: somebody moved or removed it while the run went on"
    return (
        f"--workdir={workdir} cannot be written ({error.strerror}); name a folder that can, or "
        "make room; what was written before is whole"
    )


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One text for each setting in which two configs differ: `name was OLD, now NEW`."""
    missing = object()
    return [
        f"{_name(name)} was {_setting(old, name)}, now {_setting(new, name)}"
        for name in sorted({*old, *new})
        if old.get(name, missing) != new.get(name, missing)
    ]


def _name(name: str) -> str:
    return name if name.isidentifier() else shown(name)


def _setting(config: Mapping[str, Any], name: str) -> str:
    return shown(config[name]) if name in config else "not set"


def load_config(workdir: str | Path) -> dict[str, Any]:
    """The config of a run; `ValueError` where there is none or it is no JSON object."""
    if not os.path.lexists(Path(workdir) / CONFIG):
        raise ValueError(f"{workdir} is not the folder of a run: there is no {CONFIG} in it")
    return read_object(Path(workdir) / CONFIG)


def clear_metrics(workdir: Path) -> None:
    """Starts metrics.jsonl anew."""
    write_atomically(workdir / METRICS, "")


def append_metrics(workdir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines to metrics.jsonl, all or none; see `json_lines`."""
    append(workdir / METRICS, json_lines(rows).encode())


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each row; a value that is not finite becomes null, which JSON has."""
    return "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }


def load_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The logged lines of a run, in order; `ValueError` names a line that is no JSON object."""
    return read_lines(Path(workdir) / METRICS)


def save_array(workdir: Path, name: str, array: Any) -> None:
    """Writes arrays/NAME.npy."""
    path = _array_path(workdir, name, ".npy")
    content = io.BytesIO()
    np.save(content, np.asarray(array), allow_pickle=False)
    write_atomically(path, content.getvalue())


def load_array(workdir: str | Path, name: str) -> np.ndarray:
    """Reads arrays/NAME.npy; `ValueError` where it is no whole array of numbers."""
    return read_npy(_array_path(workdir, name, ".npy"))


def save_tree(workdir: Path, name: str, tree: Any) -> None:
    """Writes a pytree's leaves to arrays/NAME.npz, each under its path in the tree."""
    path = _array_path(workdir, name, ".npz")
    leaves = {key: np.asarray(leaf) for key, leaf in _named_leaves(tree)}
    write_arrays(path, leaves)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to a .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **dict(arrays))
    write_atomically(path, content.getvalue())


def save_figure(workdir: Path, name: str, figure: Any) -> None:
    """Writes a Matplotlib figure to NAME.png."""
    from rnn_jax.plots.style import png  # Matplotlib, which whoever draws has already loaded

    write_atomically(workdir / f"{plain_name(name)}.png", png(figure))


def load_tree(workdir: str | Path, name: str, like: Tree) -> Tree:
    """Reads arrays/NAME.npz into a pytree of the structure of `like`.

    Raises:
        ValueError: there is no such file or it is no archive of numbers; a leaf is missing, of
            another shape or no number of the kind of that of `like`; the message names the first
            such leaf.
    """
    path = _array_path(workdir, name, ".npz")
    wanted = dict(_named_leaves(like))
    found = read_npz(path, {key: tuple(leaf.shape) for key, leaf in wanted.items()})
    for key, leaf in wanted.items():
        if found[key].dtype.kind != np.dtype(leaf.dtype).kind:
            raise ValueError(f"{path}: {key} is {found[key].dtype}, but {leaf.dtype} is wanted")
    return jax.tree.unflatten(jax.tree.structure(like), list(found.values()))


def tree_exists(workdir: str | Path, name: str) -> bool:
    """Whether arrays/NAME.npz is there, whatever it holds."""
    return os.path.lexists(_array_path(workdir, name, ".npz"))


def _array_path(workdir: str | Path, name: str, suffix: str) -> Path:
    """A file of the folder's arrays; `ValueError` for a name that leads elsewhere."""
    return inside(workdir, ARRAYS) / f"{plain_name(name)}{suffix}"


def inside(workdir: str | Path, name: str) -> Path:
    """A folder of a run's folder; `ValueError` where it is a link, which may lead anywhere."""
    path = Path(workdir) / name
    if path.is_symlink():
        raise ValueError(f"{path} is a link to another folder; put a folder in its place")
    return path


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
