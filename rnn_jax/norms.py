"""L2 norms over the recurrent state, one for each time step and example; in float32 at least."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax.placement import batch_size, is_split, largest, total
from rnn_jax.types import Array, State


def widened(tree: Any) -> Any:
    """A pytree with its leaves of fewer than 32 bits, bfloat16 and float16, as float32."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32) if is_narrow(a) else a, tree)


def is_narrow(leaf: Any) -> bool:
    """Whether an array is of floating point with fewer than 32 bits."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def per_example(leaf: Array, batch_axes: int) -> Array:
    """A state leaf `[*batch, ...]` as `[*batch, H]`, whatever the shape of its units."""
    units = math.prod(leaf.shape[batch_axes:])
    return leaf.reshape((*leaf.shape[:batch_axes], units))


def flat_examples(state: State, batch_axes: int) -> tuple[Array, Callable[[Array], State]]:
    """A state's leaves `[*batch, ...]` as one array `[E, N]`, E examples of N numbers; and back."""
    leaves, tree = jax.tree.flatten(state)
    shapes = [leaf.shape for leaf in leaves]
    sizes = [math.prod(shape[batch_axes:]) for shape in shapes]
    count = math.prod(shapes[0][:batch_axes])
    # Units first, then examples: of a batch that a mesh splits JAX merges axes once at a time.
    parts = [
        per_example(leaf, batch_axes).reshape(count, size)
        for leaf, size in zip(leaves, sizes, strict=True)
    ]
    flat = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    types = [leaf.dtype for leaf in leaves]

    def restore(flat: Array) -> State:
        start, restored = 0, []
        for shape, size, dtype in zip(shapes, sizes, types, strict=True):
            part = flat[:, start : start + size].reshape(*shape[:batch_axes], size)
            restored.append(part.reshape(shape).astype(dtype))
            start += size
        return jax.tree.unflatten(tree, restored)

    return flat, restore


def state_norm(states: State, batch_axes: int) -> Array:
    """|s|_2 over all units of all leaves: leaves `[*batch, ...]` -> `[*batch]`.

    The largest entry is divided out before squaring, so that a norm of 1e-30 is not 0 in float32.

    Args:
        states: pytree whose leaves share their first `batch_axes` axes.
        batch_axes: how many leading axes are time and batch; the norm is over all others.
    """
    leaves = [per_example(leaf, batch_axes) for leaf in jax.tree.leaves(widened(states))]
    units = leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)
    largest = jnp.max(jnp.abs(units), axis=-1, keepdims=True)
    # XLA divides by multiplying with the inverse, which must not be a denormal: that counts as 0.
    limits = jnp.finfo(largest.dtype)
    bounded = jnp.clip(largest, 2.0 ** (limits.minexp + 6), 2.0 ** (limits.maxexp - 8))
    # A non-finite or zero entry must come out as it is, not as 0/0.
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), bounded, 1)
    squared = jnp.sum(jnp.square(units / scale), axis=-1)
    # The root's slope at 0 is infinite; of an exact zero the gradient is 0 and not NaN.
    root = jnp.where(squared == 0, 0, jnp.sqrt(jnp.where(squared == 0, 1, squared)))
    return root * scale[..., 0]


def norm_over_devices(norm: Array, axes: tuple[str, ...]) -> Array:
    """The L2 norm over all devices along these Manual mesh axes, from that of each one's part."""
    if not axes:
        return norm
    size = largest(norm, axes)
    scale = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    squared = total(jnp.square(norm / scale), axes)
    root = jnp.where(squared == 0, 0, jnp.sqrt(jnp.where(squared == 0, 1, squared)))
    return root * scale


def adjoint_norms(adjoints: State, axes: tuple[str, ...] = ()) -> Array:
    """Norm of dL_b/ds_t at each time step, as the root mean square over the examples b.

    Args:
        adjoints: gradient of the *mean* of the examples' losses, leaves `[T, B, ...]`. Example b
            has 1/B of its own gradient in it; that factor is taken out, so that the result does
            not depend on the size of the batch.
        axes: the Manual mesh axes that split the batch, inside `jax.shard_map`.

    Returns:
        `[T]`.

    Raises:
        ValueError: an empty batch.
    """
    shape = jax.tree.leaves(adjoints)[0].shape
    count = shape[1]
    if not count:
        raise ValueError(f"adjoints have shape {shape}: an empty batch; give at least one example")
    # The root of the mean of |B lambda_b|^2 is sqrt(B) times the norm over batch and units alike.
    if any(is_split(leaf) for leaf in jax.tree.leaves(adjoints)):
        norm = state_norm(state_norm(adjoints, 2), 1)
    else:
        norm = norm_over_devices(state_norm(adjoints, 1), axes)
    return math.sqrt(batch_size((count,), axes)) * norm
