"""How the networks of a run learned, out of its folder: curves of one network, or of many alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.kept_networks import (
    NETWORKS,
    Row,
    listing,
    matching,
    rows_of,
    settings_in,
)
from experiments.cli.options import UsageError
from rnn_jax.io import records

CURVE_NAMES = ("loss", "gradient_norm")
TRACE_NAMES = ("trace", "traces", "profile")
"""|dL/ds_t| of every iteration, of the last of every chunk; and its logarithm without training."""


class Kept(NamedTuple):
    """A network of a run, or the median of those that differ in nothing but their seed.

    Attributes:
        folder: the run's name.
        settings: its config.json.
        point: settings of these networks among those of the run; empty for a single one.
        loss, gradient_norm: `[K]`; empty where nothing was trained.
        trace: |dL/ds_t|, `[C, T]`.
        every, trace_every: iterations from one entry to the next.
        networks: how many.
        solved: how many of them have solved their task; None where the run does not say.
    """

    folder: str
    settings: Mapping[str, Any]
    point: Row
    loss: np.ndarray
    gradient_norm: np.ndarray
    trace: np.ndarray
    every: int = 1
    trace_every: int = 1
    networks: int = 1
    solved: int | None = None


def load_kept(folder: str, which: str = "") -> list[Kept]:
    """What is kept of a run's training, one entry for each setting of its networks.

    Args:
        folder: of the run.
        which: networks of a run of many, as `matching` takes it; all of them where it is empty.

    Raises:
        UsageError: the run has no such network; the message lists what there is.
        ValueError: the folder holds no networks that were trained or measured, in one line.
    """
    settings = records.load_config(folder)
    try:
        if (Path(folder) / NETWORKS).exists():
            return _many(folder, settings, which)
        if settings.get(records.EXPERIMENT) == "gradient_flow":
            logs = _array(folder, "log_norms", 2)
            nothing = np.zeros(0)
            return [Kept(folder, settings, {}, nothing, nothing, _median(np.exp(logs.T))[None])]
        loss, norm = (_array(folder, name, 1) for name in CURVE_NAMES)
        return [Kept(folder, settings, {}, loss, norm, _array(folder, "trace", 2))]
    except UsageError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no training run that can be compared ({error}); name folders of runs "
            "that came to their end, such as runs/sine"
        ) from error


def _many(folder: str, settings: Mapping[str, Any], which: str) -> list[Kept]:
    rows = rows_of(folder)
    wanted = matching(rows, which)
    if not wanted:
        raise UsageError(
            f"--network={which}: {folder} has no such network; there are {listing(rows)}"
        )
    points: dict[tuple[Any, ...], list[Row]] = {}
    for row in wanted:
        point = {name: value for name, value in settings_in(row).items() if name != "seed"}
        points.setdefault(tuple(point.items()), []).append(row)
    first, found = 0, {}
    for number in range(len(rows)):
        if first >= len(rows):
            break
        arrays = _group(folder, number)
        count = len(next(iter(arrays.values())))
        for key, members in points.items():
            inside = [row for row in members if first <= row["network"] < first + count]
            if inside:
                which_rows = [row["network"] - first for row in inside]
                found[key] = _point(folder, settings, dict(key), inside, arrays, which_rows)
        first += max(1, count)
    return list(found.values())


def _group(folder: str, number: int) -> dict[str, np.ndarray]:
    """The curves of a group of networks, each `[networks, ...]`."""
    arrays = {
        name: records.load_array(folder, f"{name}_{number:04d}")
        for name in (*CURVE_NAMES, *TRACE_NAMES)
        if (Path(folder) / records.ARRAYS / f"{name}_{number:04d}.npy").exists()
    }
    traces = [name for name in TRACE_NAMES if name in arrays]
    if not traces:
        raise ValueError(f"there is no trace_{number:04d}.npy or its like")
    for name, array in arrays.items():
        if array.ndim != (3 if name in TRACE_NAMES[:2] else 2) or array.dtype.kind != "f":
            raise ValueError(f"{name}_{number:04d} is {array.dtype} {array.shape}")
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError(f"the arrays of group {number} are of unequal numbers of networks")
    return arrays


def _point(
    folder: str,
    settings: Mapping[str, Any],
    point: Row,
    rows: Sequence[Row],
    arrays: Mapping[str, np.ndarray],
    which: Sequence[int],
) -> Kept:
    """The median of networks that differ in their seeds alone."""
    (name,) = [name for name in TRACE_NAMES if name in arrays][:1]
    norms = arrays[name][which]
    trace = _median(np.exp(norms.astype(np.float64))[:, None] if name == "profile" else norms)
    loss, norm = (_median(arrays[n][which]) if n in arrays else np.zeros(0) for n in CURVE_NAMES)
    solved = [row["solved"] for row in rows if isinstance(row.get("solved"), bool)]
    steps = settings.get("train_steps")
    steps = steps if isinstance(steps, int) else 0
    return Kept(
        folder,
        settings,
        point,
        loss,
        norm,
        trace,
        every=_stride(steps, len(loss)),
        trace_every=_stride(steps, len(trace)),
        networks=len(rows),
        solved=sum(solved) if len(solved) == len(rows) else None,
    )


def _stride(steps: int, entries: int) -> int:
    """Iterations from one entry of a curve to the next."""
    return max(1, -(-steps // max(1, entries)))


def _median(values: np.ndarray) -> np.ndarray:
    """Over the first axis; what is not finite counts as larger than all else."""
    return np.median(np.where(np.isfinite(values), values, np.inf), axis=0)


def _array(folder: str, name: str, axes: int) -> np.ndarray:
    array = records.load_array(folder, name)
    if array.ndim != axes or array.dtype.kind != "f":
        raise ValueError(f"{name} is {array.dtype} {array.shape}; {axes} axes are wanted")
    return array
