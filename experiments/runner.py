"""The loop that every training experiment uses: chunks of steps, metrics to disk, a bar."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.progress import progress
from rnn_jax import objectives, records, traces, train
from rnn_jax.types import Batch, Key

NO_MATTER = {
    "workdir",
    "overwrite",
    "tensorboard",
    "compilation_cache",
    "cpu_devices",
    "lanes",
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
}
"""Settings that say where and how to compute, and nothing of what comes out."""


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


def use_compilation_cache(enabled: bool) -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run starts faster."""
    jax.config.update("jax_enable_compilation_cache", enabled)
    if not enabled:
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "rnn_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def state_norms(trace: Any) -> Any:
    """|dL/ds_t| `[..., T]` of a trace with or without parameters."""
    return trace.states if isinstance(trace, traces.ParameterTrace) else trace


def run_training(
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    state: train.TrainState,
    key: Key,
    *,
    num_steps: int,
    log_every: int,
    workdir: Path | None = None,
    trace: traces.Trace = traces.trace_states,
    clip_norm: float = 0.0,
    tell: Callable[[int, train.Metrics], None] | None = None,
) -> tuple[train.TrainState, History]:
    """Trains for `num_steps`, in chunks that end where something is logged.

    Args:
        objective, optimizer, sample, state, key, trace: as in `train.train_chunk`.
        num_steps: number of updates.
        log_every: iterations between two lines of metrics.jsonl.
        workdir: the run's folder; None writes and prints nothing.
        clip_norm: the bound in force, for the advice given when a run goes wrong; 0 for none.
        tell: called where a line is logged, with the iterations done and the metrics since the
            line before, as NumPy arrays.

    Returns:
        The final state and every step's metrics.

    Raises:
        FloatingPointError: loss or gradient stopped being finite. What was recorded up to there is
            on disk; the message says at which iteration and time step it began and what to try.
    """
    chunks: list[train.Metrics] = []
    start = time.monotonic()
    if workdir is not None:
        records.clear_metrics(workdir)

    def fetch(metrics: train.Metrics, done: int) -> str:
        host = jax.device_get(metrics)
        chunks.append(host)
        message = first_nonfinite(host, done - len(host.loss) + 1, clip_norm)
        if workdir is not None:
            row = {
                "step": done,
                "loss": float(host.loss[-1]),
                "mean_loss": float(np.mean(host.loss)),
                "gradient_norm": float(host.gradient_norm[-1]),
                "seconds": round(time.monotonic() - start, 3),
            }
            records.append_metrics(workdir, [row])
        if tell is not None:
            tell(done, host)
        if message:
            _save_history(workdir, _stack(chunks))
            raise FloatingPointError(message)
        return f"loss {host.loss[-1]:.3e}  gradient norm {host.gradient_norm[-1]:.2e}"

    with progress(num_steps) if workdir is not None else _silent() as report:
        done, waiting = 0, None
        while done < num_steps:
            size = min(log_every, num_steps - done)
            state, metrics = train.train_chunk(
                objective, optimizer, sample, state, key, size, trace
            )
            done += size
            # The device works on this chunk while the host writes the one before it.
            if waiting is not None:
                report(waiting[1], fetch(*waiting))
            waiting = (metrics, done)
        if waiting is not None:
            report(waiting[1], fetch(*waiting))
    history = _stack(chunks)
    _save_history(workdir, history)
    return state, history


def first_nonfinite(metrics: train.Metrics, first_step: int, clip_norm: float) -> str | None:
    """Where a chunk's numbers first stopped being finite, in words; None where all are finite."""
    norms = state_norms(metrics.trace)
    bad_loss = ~np.isfinite(metrics.step_losses)
    bad_gradient = ~np.isfinite(norms) | ~np.isfinite(metrics.gradient_norm)[:, None]
    bad = bad_loss.any(axis=1) | bad_gradient.any(axis=1)
    if not bad.any():
        return None
    index = int(np.argmax(bad))
    if bad_loss[index].any():
        time_step = 1 + int(np.argmax(bad_loss[index]))
        where = f"the loss is {metrics.loss[index]} from time step {time_step} on"
    else:
        nonfinite = np.flatnonzero(~np.isfinite(norms[index]))
        where = "the gradient of the parameters is not finite"
        if nonfinite.size:
            where = (
                f"|dL/ds_t| leaves the finite range at time step {nonfinite[-1] + 1}, going back"
            )
    cure = (
        "lower --clip_norm"
        if clip_norm > 0
        else "bound the gradient with --clip_norm=1, lower --learning_rate"
    )
    return (
        f"iteration {first_step + index}: {where}. Try: {cure}, or start from smaller recurrent "
        "weights. What was recorded before stays in the run's folder"
    )


def _stack(chunks: list[train.Metrics]) -> History:
    metrics = jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)
    return History(*metrics)


def _save_history(workdir: Path | None, history: History) -> None:
    if workdir is None:
        return
    records.save_array(workdir, "loss", history.loss)
    records.save_array(workdir, "gradient_norm", history.gradient_norm)
    records.save_array(workdir, "trace", state_norms(history.trace))
    if isinstance(history.trace, traces.ParameterTrace):
        records.save_tree(workdir, "trace_parameters", history.trace.parameters)


def _silent() -> Any:
    return contextlib.nullcontext(lambda done, news: None)


def open_workdir(experiment: str, config: Any) -> Path:
    """The run's folder, with the config written in it; errors are those of `records.open_run`."""
    return records.open_run(config.workdir, settings_of(experiment, config), config.overwrite)


def settings_of(experiment: str, config: Any) -> dict[str, Any]:
    """What is kept in config.json: the settings that a run's results depend on."""
    settings = {"experiment": experiment, **dataclasses.asdict(config)}
    return {name: value for name, value in settings.items() if name not in NO_MATTER}
