"""What every training iteration of a network measured: in memory, as lines and as arrays."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.training.algorithm import SUMMANDS, Arrays
from rnn_jax.io import records


class History(NamedTuple):
    """The metrics of K iterations of one network.

    Attributes:
        loss: `[K]`.
        gradient_norm: `[K]`, before clipping.
        trace: |dL/ds_t|, `[K, T]`.
        summands: parameter -> norm of each time step's summand of its gradient, `[K, T]`; empty
            unless it was traced.
    """

    loss: np.ndarray
    gradient_norm: np.ndarray
    trace: np.ndarray
    summands: dict[str, np.ndarray]


def history_of(results: Arrays, network: int = 0) -> History:
    """One network's history, from results `name -> [N, K, ...]` of every iteration."""
    own = {name: np.asarray(values[network]) for name, values in results.items()}
    summands = {
        name.removeprefix(SUMMANDS): values
        for name, values in own.items()
        if name.startswith(SUMMANDS)
    }
    return History(own["loss"], own["gradient_norm"], own["trace"], summands)


def row_of(chunk: Arrays, done: int, seconds: float | None) -> dict[str, Any]:
    """A line of metrics.jsonl: iteration `done`, and the mean loss since the line before.

    Args:
        chunk: results of the iterations since the line before, `name -> [1, K, ...]`.
        done: iterations.
        seconds: since the run began.

    Iterations whose gradient's norm was not finite are counted where there are any.
    """
    loss, norm = chunk["loss"][0], chunk["gradient_norm"][0]
    row = {
        "step": done,
        "loss": float(loss[-1]),
        "mean_loss": float(np.mean(loss)),
        "gradient_norm": float(norm[-1]),
        "seconds": seconds,
    }
    nonfinite = int(np.count_nonzero(~np.isfinite(norm)))
    return row | ({"nonfinite_norms": nonfinite} if nonfinite else {})


def save(workdir: Path, history: History) -> None:
    """Writes the arrays of a run."""
    records.save_array(workdir, "loss", history.loss)
    records.save_array(workdir, "gradient_norm", history.gradient_norm)
    records.save_array(workdir, "trace", history.trace)
    if history.summands:
        records.save_tree(workdir, "trace_parameters", history.summands)
