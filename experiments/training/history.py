"""What every training step told: in memory, as lines and as arrays."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rnn_jax import training
from rnn_jax.io import records
from rnn_jax.training import traces


class History(NamedTuple):
    """Every training step's metrics, stacked.

    Attributes:
        loss: `[K]`.
        step_losses: `[K, T]`.
        gradient_norm: `[K]`, before clipping.
        trace: pytree of `[K, T]`: |dL/ds_t|, with `--trace_parameters` the summands' norms too.
    """

    loss: np.ndarray
    step_losses: np.ndarray
    gradient_norm: np.ndarray
    trace: Any


def state_norms(trace: Any) -> Any:
    """|dL/ds_t| `[..., T]` of a trace with or without parameters."""
    return trace.states if isinstance(trace, traces.ParameterTrace) else trace


def row_of(chunk: training.Metrics, done: int, seconds: float | None) -> dict[str, Any]:
    """A line of metrics.jsonl: where iteration `done` is, and the mean loss since the one before.

    Iterations whose gradient's norm was not finite are counted where there are any.
    """
    row = {
        "step": done,
        "loss": float(chunk.loss[-1]),
        "mean_loss": float(np.mean(chunk.loss)),
        "gradient_norm": float(chunk.gradient_norm[-1]),
        "seconds": seconds,
    }
    nonfinite = int(np.count_nonzero(~np.isfinite(chunk.gradient_norm)))
    return row | ({"nonfinite_norms": nonfinite} if nonfinite else {})


def stacked(parts: list[training.Metrics]) -> History:
    """The parts of a run as one."""
    return History(*jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def save(workdir: Path, history: History) -> None:
    """Writes the arrays of a run."""
    records.save_array(workdir, "loss", history.loss)
    records.save_array(workdir, "gradient_norm", history.gradient_norm)
    records.save_array(workdir, "trace", state_norms(history.trace))
    if isinstance(history.trace, traces.ParameterTrace):
        records.save_tree(workdir, "trace_parameters", history.trace.parameters)
