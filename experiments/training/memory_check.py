"""Whether a training run will fit into memory, told before anything is compiled.

An estimate is what `experiments.training.liveness` finds in the program that will run, and what the
host keeps of it; within 30 % of what processes took at their peak (tests/footprint_test.py). Of cells
without structure and of closed loops XLA may hold copies that are not seen here: of a small one it
planned half as much again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.cli.options import UsageError
from experiments.training.liveness import num_bytes, peak_bytes
from rnn_jax import sweep, training
from rnn_jax.objectives import Objective
from rnn_jax.training import traces
from rnn_jax.types import Batch, Key


def training_bytes(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    *,
    batch_size: int,
    num_steps: int,
    log_every: int,
    trace: traces.Trace,
) -> int:
    """What `runner.run_training` takes at its peak, with the arguments it has there."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    size = jax.eval_shape(sample, key).inputs.shape[-1]
    state = jax.eval_shape(
        lambda key: training.fresh_state(objective.model, optimizer, key, size, batch_size), key
    )
    chunk = min(log_every, num_steps)
    # The state is donated: its memory is that of the new one.
    traced = training.train_chunk.trace(objective, optimizer, sample, state, key, chunk, trace)
    needed = peak_bytes(traced.jaxpr.jaxpr)
    if jax.default_backend() == "cpu":
        # The host keeps every step's metrics, and has them twice when they are put together.
        needed += 2 * num_steps * num_bytes(traced.out_info[1]) // chunk
    return needed


def lanes_bytes(fit: sweep.Fit, rows: Any, keys: Key, width: int) -> int:
    """What a device takes at the peak of a sweep's program, `width` networks side by side.

    Args:
        fit: of one network, as in `rnn_jax.sweep.sweep`.
        rows: shapes of hyperparameters, leaves `[N, ...]`.
        keys: shape of the keys, `[N]`.
        width: networks in a block.
    """
    block = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape[1:]), leaf.dtype), (rows, keys)
    )
    return num_bytes(block) + peak_bytes(jax.make_jaxpr(jax.vmap(fit))(*block).jaxpr)


def available_bytes() -> int | None:
    """Memory that the default device has left; None where nobody tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if jax.default_backend() != "cpu":
        return None
    left = [found for found in (_host_bytes(), _group_bytes()) if found is not None]
    return min(left, default=None)


def _host_bytes() -> int | None:
    """What Linux says could be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return None


def _group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of a container leaves; None where there is none."""
    try:
        limit = int((folder / "memory.max").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Files that are kept in memory give way.
        return limit - int((folder / "memory.current").read_text()) + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None


def check_fits(needed: int, lower: str, available: int | None = None) -> None:
    """`UsageError` where a program needs more memory than there is.

    Args:
        needed: bytes.
        lower: the flags that make it less, as the message names them.
        available: bytes; those that are left on the default device unless given.
    """
    available = available_bytes() if available is None else available
    if available is not None and needed > available:
        raise UsageError(
            f"this takes about {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are "
            f"free: lower {lower}"
        )
