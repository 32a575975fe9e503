"""Many networks in one program: lanes of a vmap, in blocks, spread over devices and hosts.

A network is a lane: one row of the hyperparameters and one key. Lanes are computed in blocks of a
fixed width, whatever number of them is asked for at once and on however many devices, so that a
network's numbers are the same bits in any company.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from rnn_jax import sharding
from rnn_jax.types import Array, Key

WIDTH = 16
"""Networks in a block."""
BLOCKS = 8
"""Blocks that a device is given at once."""

Fit = Callable[[Any, Key], Any]
"""`(hyperparameters, key) -> results`, pure: one network, its leaves without a lane axis."""


class Lanes(NamedTuple):
    """Results of some of a sweep's networks.

    Attributes:
        indices: `[N]`, which networks.
        results: what `fit` returned of each, leaves `[N, ...]`, NumPy arrays.
    """

    indices: np.ndarray
    results: Any


def sweep(
    fit: Fit,
    hparams: Any,
    keys: Key,
    *,
    width: int = WIDTH,
    lanes: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Runs `fit` once for each row of hyperparameters and keys, many rows at a time.

    Args:
        fit: one network, from its hyperparameters and its key. Pure; it is traced once.
        hparams: pytree of arrays `[N, ...]`.
        keys: `[N]`.
        width: networks computed side by side by one device. On a CPU 16 to 32 are best at every
            size measured (H 16 to 256): 2 to 4 times as fast as one by one, and as 64 and more.
        lanes: networks asked for at once, a multiple of width times devices; 8 blocks a device
            unless given.
        mesh: devices to use, made by `sharding.lanes_mesh`; all devices of all processes unless
            given. `sharding.use_cpu_devices` makes several of a CPU.

    Returns:
        What `fit` returns, leaves `[N, ...]`: NumPy arrays, the same in every process.

    Raises:
        ValueError: hyperparameters or keys of different numbers of rows, none at all, or a number
            of lanes that does not split into blocks.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow, initializers, sweep
    >>> def last_exponent(gain, key):
    ...     cell = rnn_jax.elman(8, recurrent_init=initializers.orthogonal(gain))
    ...     params = cell.init(key, 1)
    ...     return gradflow.lyapunov_spectrum(cell, params, jnp.zeros(8), jnp.zeros((50, 1)), 1)[0]
    >>> gains = jnp.array([0.5, 0.8, 1.0])
    >>> slopes = sweep.sweep(last_exponent, gains, jax.random.split(jax.random.key(0), 3), width=4)
    >>> bool(jnp.allclose(slopes, jnp.log(gains), atol=1e-4))
    True
    """
    parts = list(batches(fit, hparams, keys, width=width, lanes=lanes, mesh=mesh))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.results for part in parts))


def batches(
    fit: Fit,
    hparams: Any,
    keys: Key,
    *,
    width: int = WIDTH,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    indices: np.ndarray | None = None,
) -> Iterator[Lanes]:
    """`sweep`, batch by batch, each as soon as it is done; the device works on the next meanwhile.

    Args:
        indices: which rows to run, in this order; all of them unless given.

    The other arguments and the errors are those of `sweep`.
    """
    mesh = sharding.lanes_mesh() if mesh is None else mesh
    # On the host: a row is picked there, and every process hands its own part to its devices.
    rows = jax.tree.map(np.asarray, (hparams, jax.random.key_data(keys)))
    count = _count(rows)
    lanes = default_lanes(width, mesh) if lanes is None else lanes
    check_lanes(width, lanes, mesh)
    indices = np.arange(count) if indices is None else np.asarray(indices)
    # No more lanes than blocks that hold a network.
    block = width * mesh.size
    lanes = min(lanes, -(-len(indices) // block) * block)
    program = _program(fit, mesh, width, jax.random.key_impl(keys))
    waiting = None
    for start in range(0, len(indices), lanes):
        chosen = indices[start : start + lanes]
        # The last batch is filled up with copies of its last network: one program fits all.
        filled = np.concatenate([chosen, np.full(lanes - len(chosen), chosen[-1])])
        part = sharding.spread(jax.tree.map(lambda leaf, i=filled: leaf[i], rows), mesh)
        running = (chosen, program(*part))
        if waiting is not None:
            yield _fetched(*waiting)
        waiting = running
    if waiting is not None:
        yield _fetched(*waiting)


def default_lanes(width: int, mesh: Mesh) -> int:
    """Networks asked for at once unless somebody says otherwise."""
    return BLOCKS * width * mesh.size


def check_lanes(width: int, lanes: int, mesh: Mesh) -> None:
    """`ValueError` unless so many lanes split into blocks on every device."""
    if width < 1:
        raise ValueError(f"width is {width}; give at least 1 network")
    block = width * mesh.size
    if lanes < 1 or lanes % block:
        raise ValueError(
            f"lanes is {lanes}, but {mesh.size} devices with blocks of {width} networks want a "
            f"multiple of {block}"
        )


def block_bytes(fit: Fit, hparams: Any, keys: Key, width: int) -> int:
    """Memory that one device needs for a block of `width` networks, as XLA plans it, in bytes."""
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape[1:]), leaf.dtype), (hparams, keys)
    )
    planned = jax.jit(jax.vmap(fit)).lower(*rows).compile().memory_analysis()
    if planned is None:
        raise ValueError("this backend does not tell how much memory a program needs")
    return int(
        planned.temp_size_in_bytes + planned.output_size_in_bytes + planned.argument_size_in_bytes
    )


def _count(rows: Any) -> int:
    counts = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(rows)}
    if len(counts) != 1 or None in counts or 0 in counts:
        shapes = jax.tree.map(np.shape, rows[0])
        raise ValueError(
            f"hparams have shapes {shapes} and there are {len(rows[1])} keys; give each the same "
            "number of rows, one for each network and at least one"
        )
    return len(rows[1])


def _fetched(chosen: np.ndarray, results: Any) -> Lanes:
    count = len(chosen)
    return Lanes(chosen, jax.tree.map(lambda leaf: leaf[:count], sharding.gather(results)))


@functools.lru_cache(maxsize=8)
def _program(fit: Fit, mesh: Mesh, width: int, key_impl: Any) -> Callable[..., Any]:
    """The compiled sweep: each device runs its lanes in blocks of one width."""

    def block(hparams: Any, key_data: Array) -> Any:
        return jax.vmap(fit)(hparams, jax.random.wrap_key_data(key_data, impl=key_impl))

    def blocks(hparams: Any, key_data: Array) -> Any:
        def rows(index: Array) -> Any:
            return jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, index * width, width),
                (hparams, key_data),
            )

        def body(index: Array, results: Any) -> Any:
            return jax.tree.map(
                lambda all_lanes, new: lax.dynamic_update_slice_in_dim(
                    all_lanes, new, index * width, 0
                ),
                results,
                block(*rows(index)),
            )

        count = key_data.shape[0] // width
        shapes = jax.eval_shape(lambda: block(*rows(jnp.zeros((), jnp.int32))))
        empty = jax.tree.map(
            lambda leaf: jnp.zeros((count * width, *leaf.shape[1:]), leaf.dtype), shapes
        )
        # Where XLA can see that there is one pass only, it takes the loop apart and rounds
        # differently: a network's bits would depend on how many are computed at once.
        passes = lax.optimization_barrier(jnp.asarray(count, jnp.int32))
        return lax.fori_loop(0, passes, body, empty)

    spec = PartitionSpec(sharding.LANES)
    return jax.jit(
        jax.shard_map(blocks, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    )
