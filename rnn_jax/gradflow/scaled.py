"""Numbers far outside float32: an array times a power of two, one exponent for each example.

The exponent is an integer, so nothing is lost by rescaling however often it is done: a product of a
million Jacobians has the relative error of its matrix products and no more.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.bptt import where_valid
from rnn_jax.norms import per_example, state_norm
from rnn_jax.types import Array, State

LN2 = math.log(2)
NO_EXPONENT = -(2**30)
"""Exponent of an exact zero: below any other, and far enough from int32's end to be subtracted."""


class Scaled(NamedTuple):
    """value * 2^exponent.

    Attributes:
        value: pytree, leaves `[*batch, ...]`, largest entry of each example in [1/2, 1) or all 0.
        exponent: int32 `[*batch]`.
    """

    value: State
    exponent: Array


def exponent_of(values: Array) -> Array:
    """int32 n with 2^(n-1) <= value < 2^n, read off the bits; for positive normal floats."""
    limits = jnp.finfo(values.dtype)
    bits = lax.bitcast_convert_type(values, f"int{limits.bits}")
    return (bits >> limits.nmant).astype(jnp.int32) + limits.minexp


def power_of_two(power: Array, dtype: jnp.dtype) -> Array:
    """2^power as a float, written as bits: in a fused loop a call of exp2 for each entry is slow.

    Powers that the type cannot hold as normal numbers are cut to those that it can.
    """
    limits = jnp.finfo(dtype)
    biased = jnp.clip(power, limits.minexp, limits.maxexp - 1) + (1 - limits.minexp)
    return lax.bitcast_convert_type(
        biased.astype(f"int{limits.bits}") << limits.nmant, limits.dtype
    )


def times_power(value: State, power: Array) -> State:
    """Multiplies each example by 2^power; value leaves `[*batch, ...]`, power int32 `[*batch]`."""

    def multiply(leaf: Array) -> Array:
        factor = power_of_two(power, leaf.dtype)
        factor = factor.reshape(power.shape + (1,) * (leaf.ndim - power.ndim))
        return leaf * jnp.broadcast_to(factor, leaf.shape)

    return jax.tree.map(multiply, value)


def _largest(value: State, batch_axes: int) -> Array:
    leaves = [
        jnp.max(jnp.abs(per_example(leaf, batch_axes)), axis=-1) for leaf in jax.tree.leaves(value)
    ]
    return leaves[0] if len(leaves) == 1 else jnp.max(jnp.stack(leaves), axis=0)


def rescale(value: State, exponent: Array) -> Scaled:
    """value * 2^exponent with each example's largest entry brought to [1/2, 1).

    Args:
        value: leaves `[*batch, ...]`.
        exponent: int32 `[*batch]`.

    A non-finite entry stays as it is. The power of two is a constant to differentiation.
    """
    largest = lax.stop_gradient(_largest(value, exponent.ndim))
    usable = (largest > 0) & jnp.isfinite(largest)
    limits = jnp.finfo(largest.dtype)
    power = jnp.where(usable, exponent_of(largest), 0)
    # What is multiplied must be a power of two that the type holds.
    power = jnp.clip(power, 1 - limits.maxexp, -limits.minexp)
    new = jnp.where(largest == 0, NO_EXPONENT, exponent + power)
    return Scaled(times_power(value, -power), new)


def add(a: Scaled, b: Scaled) -> Scaled:
    """a + b, at the scale of the larger; not brought back to [1/2, 1)."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    parts = []
    for term in (a, b):
        power = term.exponent - exponent
        # Below the smallest power a term is lost in the other's rounding: it counts as 0.
        small = power < jnp.finfo(jax.tree.leaves(term.value)[0].dtype).minexp
        zero = jax.tree.map(jnp.zeros_like, term.value)
        parts.append(where_valid(~small, times_power(term.value, power), zero))
    return Scaled(jax.tree.map(jnp.add, *parts), exponent)


def log_norm(scaled: Scaled) -> Array:
    """ln of the L2 norm over each example's units, `[*batch]`; -inf for an exact zero."""
    norm = state_norm(scaled.value, scaled.exponent.ndim)
    return scaled_log(norm, scaled.exponent)


def scaled_log(value: Array, exponent: Array) -> Array:
    """ln(value * 2^exponent) for value >= 0; -inf at 0, where its gradient is 0 and not NaN."""
    positive = (value > 0) | jnp.isnan(value)
    logs = jnp.log(jnp.where(positive, value, 1)) + LN2 * exponent.astype(value.dtype)
    return jnp.where(positive, logs, -jnp.inf)
