"""Checkpoints with Orbax, each with a manifest that says whether it is whole.

FOLDER/000000001200/        what Orbax wrote
FOLDER/000000001200.json    step, score, notes, shapes of the leaves, and of every file its size and
                            SHA-256, and its own; written last, so that a checkpoint without one
                            does not count
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rnn_jax.io import records
from rnn_jax.io.reading import opened, read_bytes

MANIFEST_BYTES = 2**26
"""No manifest of ours is larger; a larger file is none."""
MAX_FILE_BYTES = 2**40
ROOM = 2**18
"""Bytes that a checkpoint may take beside its arrays: some thirty small files."""


class Checkpoint(NamedTuple):
    """A checkpoint as it is loaded.

    Attributes:
        step: where the run stood.
        tree: its state, leaves NumPy arrays.
        notes: what else was kept, JSON values.
        beside: name -> digest of the files that belong to it without being in it.
    """

    step: int
    tree: Any
    notes: dict[str, Any]
    beside: dict[str, Any]


class _Manifest(NamedTuple):
    step: int
    score: float | None
    notes: dict[str, Any]
    leaves: dict[str, Any]
    files: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tree: Any,
    *,
    score: float | None = None,
    notes: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
    keep: int = 3,
) -> None:
    """Writes a checkpoint, then drops the ones that are no longer kept.

    Args:
        folder: for all checkpoints of a run.
        step: where the run stands; a checkpoint of the same step is replaced.
        tree: arrays.
        score: the smaller the better; of all checkpoints the best is kept, however old.
        notes: JSON values to find again.
        beside: name -> `digest` of files in `folder` that belong to it, written before. None of
            them is read again here, nor ever dropped.
        keep: how many of the newest stay.

    Raises:
        OSError: the folder cannot be written, or that in which it lies is gone; older checkpoints
            are whole.

    Checkpoints of later steps are dropped: a run that comes by here has gone back behind them.
    """
    import orbax.checkpoint as ocp  # half a second, which a short run need not wait

    folder.mkdir(exist_ok=True)
    _check_room(folder, tree)
    place = folder / f"{step:012d}"
    _manifest_path(place).unlink(missing_ok=True)
    try:
        with _its_own_words_kept_back(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(place.absolute(), tree, force=True)
            checkpointer.wait_until_finished()
    except Exception as error:  # a full disk is a ValueError of Orbax', in many words
        for unfinished in folder.glob(f"{place.name}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise _os_error(error, place) from error
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    manifest = _Manifest(
        step=step,
        score=score if score is not None and np.isfinite(score) else None,
        notes=dict(notes or {}),
        leaves=_shapes(tree),
        files={str(path.relative_to(folder)): digest(path) for path in files} | dict(beside or {}),
    )
    fields = manifest._asdict() | {"sha256": _own_digest(manifest)}
    records.write_atomically(_manifest_path(place), json.dumps(fields, indent=1))
    _drop_old(folder, step, keep)


def drop(folder: Path, step: int) -> None:
    """Removes the checkpoint of a step, if there is one."""
    place = folder / f"{step:012d}"
    _manifest_path(place).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def load(folder: Path, like: Any = None) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there never was one.

    Args:
        folder: for all checkpoints of a run.
        like: a tree of the same structure, of arrays or `jax.ShapeDtypeStruct`, or a function that
            makes it of a checkpoint's notes. Without it the tree is made of what was saved: dicts
            come back as they were.

    Raises:
        ValueError: checkpoints are there, but none is whole, and the message names what is wrong
            with each; or the newest whole one is of another network, and the message names the
            first leaf that differs and both shapes.

    One that was cut short or changed is passed over with a warning.
    """
    broken = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            manifest = _read_manifest(path)
            _check_files(folder, manifest)
        except ValueError as error:
            broken.append(str(error))
            logging.warning("%s; the checkpoint before it is used", error)
            continue
        wanted = like(manifest.notes) if callable(like) else like
        if wanted is not None:
            _check_leaves(path, manifest, wanted)
        import orbax.checkpoint as ocp  # here, where there is something to load

        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(path.with_suffix("").absolute(), target)
        except Exception as error:  # Orbax says what is wrong with a file in many ways
            broken.append(f"{path.with_suffix('')}: {str(error).splitlines()[0]}")
            logging.warning("%s; the checkpoint before it is used", broken[-1])
            continue
        inside = f"{manifest.step:012d}/"
        beside = {name: d for name, d in manifest.files.items() if not name.startswith(inside)}
        return Checkpoint(manifest.step, tree, manifest.notes, beside)
    if broken:
        raise ValueError(
            f"no checkpoint in {folder} is whole: {'; '.join(broken)}. Give --overwrite to start "
            "afresh"
        )
    return None


def notes(folder: Path) -> dict[int, dict[str, Any]]:
    """step -> notes of the checkpoints whose manifest can be read, oldest first."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            manifest = _read_manifest(path)
        except ValueError:
            continue
        found[manifest.step] = manifest.notes
    return found


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that have a manifest, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal())


def _manifest_path(place: Path) -> Path:
    return place.with_suffix(".json")


def digest(path: Path) -> list[Any]:
    """Size and SHA-256 of a file, as a manifest holds them; errors are those of `opened`."""
    with opened(path, MAX_FILE_BYTES) as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _own_digest(manifest: _Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest._asdict(), sort_keys=True).encode()).hexdigest()


def _shapes(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _read_manifest(path: Path) -> _Manifest:
    """`ValueError` unless the file is a manifest, all its fields of the types they must have."""
    try:
        fields = json.loads(read_bytes(path, MANIFEST_BYTES))
        own = fields.pop("sha256", None)
        manifest = _Manifest(**fields)
        kinds = (int, float | int | None, dict, dict, dict)
        if not all(isinstance(value, kind) for value, kind in zip(manifest, kinds, strict=True)):
            raise TypeError("a field of another type")
        if f"{manifest.step:012d}" != path.stem:
            raise TypeError(f"it is of step {manifest.step}")
        if own != _own_digest(manifest):
            raise ValueError("it was changed")
    except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a checkpoint's manifest: {error}") from error
    return manifest


def _check_files(folder: Path, manifest: _Manifest) -> None:
    """`ValueError` naming the first file that is not as it was written."""
    inside = folder.resolve()
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(inside):
            raise ValueError(f"{path} lies outside of {folder}")
        if digest(path) != wanted:
            raise ValueError(f"{path} is not what was written: cut short or changed")
    kept = {path for path in (folder / f"{manifest.step:012d}").rglob("*") if path.is_file()}
    extra = sorted(kept - {folder / name for name in manifest.files})
    if extra:
        raise ValueError(f"{extra[0]} was not there when the checkpoint was written")


def _check_leaves(path: Path, manifest: _Manifest, like: Any) -> None:
    """`ValueError` naming the first leaf of another shape."""
    wanted = _shapes(like)
    for name in sorted({*wanted, *manifest.leaves}):
        found, asked = manifest.leaves.get(name, "missing"), wanted.get(name, "none")
        if found != asked:
            raise ValueError(
                f"{path.with_suffix('')} is of another network: {name} is {_said(found)} there, "
                f"but {_said(asked)} is wanted; give the settings it was made with, or another "
                "folder"
            )


def _said(leaf: Any) -> str:
    return leaf if isinstance(leaf, str) else f"{tuple(leaf[0])} {leaf[1]}"


def _check_room(folder: Path, tree: Any) -> None:
    """`OSError` where a checkpoint cannot fit: Orbax, once it writes, is loud about a full disk."""
    needed = ROOM + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def _its_own_words_kept_back() -> Iterator[None]:
    """Orbax logs a failed write with pages of traceback, and raises the same error."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _os_error(error: Exception, place: Path) -> OSError:
    """What a write of Orbax failed of, as the system would say it."""
    if isinstance(error, OSError) and error.strerror:
        return OSError(error.errno, error.strerror, str(place))
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else errno.EIO
    return OSError(number, os.strerror(number), str(place))


def _drop_old(folder: Path, step: int, keep: int) -> None:
    """Leaves the newest up to this step and the best, and nothing that has no whole manifest."""
    manifests = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError):
            manifest = _read_manifest(path)
            if manifest.step <= step:
                manifests[path] = manifest
    scored = [path for path, manifest in manifests.items() if manifest.score is not None]
    best = min(scored, key=lambda path: manifests[path].score or 0.0) if scored else None
    kept = {*list(manifests)[-keep:], *([best] if best else [])}
    for path in set(folder.glob("*.json")) - kept:
        path.unlink()
    stems = {path.stem for path in kept}
    for place in folder.iterdir():
        if place.is_dir() and place.name[:12].isdecimal() and place.name not in stems:
            shutil.rmtree(place, ignore_errors=True)
