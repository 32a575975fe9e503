"""Whether a training run will fit into memory, told before anything is compiled.

An estimate is what `experiments.liveness` finds in the program that will run, and what the host
keeps of it; within 30 % of what processes took at their peak (tests/footprint_test.py). Of cells
without structure and of closed loops XLA may hold copies that are not seen here: of a small one it
planned half as much again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.liveness import num_bytes as num_bytes
from experiments.liveness import peak_bytes
from experiments.options import UsageError
from rnn_jax import sweep, traces, train
from rnn_jax.objectives import Objective
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
        lambda key: train.fresh_state(objective.model, optimizer, key, size, batch_size), key
    )
    chunk = min(log_every, num_steps)
    # The state is donated: its memory is that of the new one.
    traced = train.train_chunk.trace(objective, optimizer, sample, state, key, chunk, trace)
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


def check_lanes(fit: sweep.Fit, rows: Any, keys: Key, width: int, lower: str) -> None:
    """`UsageError` where a sweep's program does not fit; see `lanes_bytes` and `check_fits`."""
    # The devices made of a CPU share its memory.
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    check_fits(devices * lanes_bytes(fit, rows, keys, width), lower)


def available_bytes() -> int | None:
    """Memory that the default device has left; None where nobody tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if jax.default_backend() != "cpu":
        return None
    return host_bytes()


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


def host_bytes() -> int | None:
    """Memory that this process can still have on its host; None where nobody tells."""
    return min((n for n in (_host_bytes(), _group_bytes()) if n is not None), default=None)


LINE_BYTES = 4000
"""A network's line of networks.jsonl once it is read: measured 4,040 with training."""
MAX_GROUPS = 10_000
"""Groups of networks of one command: each is compiled, a second or more."""


def check_networks(count: int, arrays: int, lower: str) -> None:
    """`UsageError` where the lines and arrays of so many networks do not fit on the host.

    Args:
        count: networks.
        arrays: bytes that are kept of each. When they are gathered, they are there three times.
        lower: as in `check_fits`.
    """
    available = host_bytes()
    if available is not None:
        words = f"{lower}: {count:,} networks are asked for"
        check_fits(count * (LINE_BYTES + 3 * arrays), words, available)


def check_groups(count: int, lower: str) -> None:
    """`UsageError` where more programs are asked for than anybody waits for."""
    if count > MAX_GROUPS:
        raise UsageError(
            f"this asks for {count:,} programs, each compiled; at most {MAX_GROUPS:,} are: give "
            f"fewer values of {lower}"
        )


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
