"""Whether a training run will fit into memory, known before anything is compiled.

An estimate is what `experiments.training.liveness` finds in the program that will run, and what the
host keeps of it; within 20 % of what processes took at their peak for cells with structure, up to a
third below it for one without (tests/footprint_test.py). Of closed loops and of small networks XLA
may hold copies that are not seen here: it planned half as much again.
"""

from typing import Any

import jax
import numpy as np

from experiments.training.algorithm import Algorithm
from experiments.training.liveness import num_bytes, peak_bytes
from experiments.training.loop import Schedule
from experiments.training.programs import network_functions
from rnn_jax import sweep


def training_bytes(algorithm: Algorithm, hparams: dict[str, float], schedule: Schedule) -> int:
    """What one network's training takes at its peak, with its results of every iteration."""
    init, train_chunk, _, _ = network_functions(algorithm)
    key = jax.eval_shape(lambda: jax.random.key(0))
    values = {name: jax.ShapeDtypeStruct((), np.float32) for name in hparams}
    state = jax.eval_shape(init, values, key)
    chunk = min(schedule.chunk_size, schedule.num_steps)
    traced = jax.jit(train_chunk(chunk)).trace((values, state), key)
    needed = peak_bytes(traced.jaxpr.jaxpr)
    if jax.default_backend() == "cpu":
        # The host keeps every step's metrics, and has them twice when they are put together.
        needed += 2 * schedule.num_steps * num_bytes(traced.out_info[1]) // chunk
    return needed


def width_bytes(fit: sweep.Fit, rows: Any, keys: Any, width: int) -> int:
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
