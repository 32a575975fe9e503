"""Numbers far outside float32: an array times a power of two, one exponent for each example.

The exponent is an integer, so nothing is lost by rescaling however often it is done: a product of a
million Jacobians has the relative error of its matrix products and no more. What has one exponent
shares its scale: an entry that is 2^126 (1e38) times smaller than the largest of its example counts
as 0, and so does a number below the type's smallest normal one (1.2e-38), which XLA reads as 0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.bptt import where_valid
from rnn_jax.norms import per_example, state_norm
from rnn_jax.placement import is_split, largest, varying
from rnn_jax.types import Array, State

LN2 = math.log(2)
NO_EXPONENT = -(2**30)
"""Added to the exponent of an exact zero: below any other, and far enough from int32's end to be
subtracted. A zero keeps its own exponent beneath it, at which its derivative is given."""


class Scaled(NamedTuple):
    """value * 2^exponent.

    Attributes:
        value: pytree, leaves `[*batch, ...]`, largest entry of each example in [1/2, 1) or all 0.
        exponent: int32 `[*batch]`; with NO_EXPONENT added to it where value is 0.
    """

    value: State
    exponent: Array


def is_zero(exponent: Array) -> Array:
    """Whether an exponent is that of an exact zero."""
    return exponent < NO_EXPONENT // 2


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


def _largest(value: State, exponent: Array) -> Array:
    """Each example's largest entry; what shares an exponent may lie on several devices."""

    def of_leaf(leaf: Array) -> Array:
        if is_split(leaf):
            return jnp.max(jnp.abs(leaf), axis=range(exponent.ndim, leaf.ndim))
        return jnp.max(jnp.abs(per_example(leaf, exponent.ndim)), axis=-1)

    leaves = [of_leaf(leaf) for leaf in jax.tree.leaves(value)]
    found = leaves[0] if len(leaves) == 1 else jnp.max(jnp.stack(leaves), axis=0)
    return largest(found, varying(value) - varying(exponent))


def rescale(value: State, exponent: Array) -> Scaled:
    """value * 2^exponent with each example's largest entry brought to [1/2, 1).

    Args:
        value: leaves `[*batch, ...]`.
        exponent: int32 `[*batch]`.

    A non-finite entry stays as it is. The power of two is a constant to differentiation.
    """
    size = lax.stop_gradient(_largest(value, exponent))
    usable = (size > 0) & jnp.isfinite(size)
    limits = jnp.finfo(size.dtype)
    power = jnp.where(usable, exponent_of(size), 0)
    # What is multiplied must be a power of two that the type holds.
    power = jnp.clip(power, 1 - limits.maxexp, -limits.minexp)
    of_zero = jnp.where(is_zero(exponent), exponent, exponent + NO_EXPONENT)
    return Scaled(times_power(value, -power), jnp.where(size == 0, of_zero, exponent + power))


def headroom(dtype: jnp.dtype) -> int:
    """The power of two that leaves about half of a type's range above it and all of it below."""
    return jnp.finfo(dtype).maxexp // 2 - 4


def apply(linear: Callable[[State], State], scaled: Scaled, careful: bool) -> Scaled:
    """linear(value) * 2^exponent, rescaled.

    Args:
        linear: a linear function of each example, such as the product by a Jacobian; its result's
            leaves are `[*batch, ...]`, in any tree.
        scaled: value and exponent `[*batch]`.
        careful: whether it may change an example by any factor that the type holds; else by up to
            the root of its largest number (3e20 for float32), and what is beyond is inf or NaN.

    A value of size 1 times a Jacobian of 1e38 overflows where the units are added up, and one times
    1e-38 loses its digits. So the value is first made large; where that overflows, small.
    """
    high = headroom(jax.tree.leaves(scaled.value)[0].dtype)
    power = jnp.full_like(scaled.exponent, high)
    if careful:
        probe = lax.stop_gradient(linear(times_power(scaled.value, power)))
        held = jnp.isfinite(_largest(probe, power))
        power = jnp.where(held, power, -power)
    value = linear(times_power(scaled.value, power))
    # A zero stays at its own scale, or its derivative would grow with every step.
    kept = lax.stop_gradient(_largest(value, power)) == 0
    if careful:
        value = times_power(value, jnp.where(kept, -power, 0))
    return rescale(value, scaled.exponent - jnp.where(kept, 0, power))


def is_finite(scaled: Scaled) -> Array:
    """Whether no example holds a NaN or inf, a bool scalar."""
    return jnp.all(jnp.isfinite(_largest(scaled.value, scaled.exponent)))


def add(a: Scaled, b: Scaled) -> Scaled:
    """a + b, at the scale of the larger; not brought back to [1/2, 1)."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    parts = []
    for term in (a, b):
        power = term.exponent - exponent
        power = jnp.where(is_zero(power), power - NO_EXPONENT, power)
        # Below the smallest power a term is lost in the other's rounding: it counts as 0.
        small = power < jnp.finfo(jax.tree.leaves(term.value)[0].dtype).minexp
        zero = jax.tree.map(jnp.zeros_like, term.value)
        parts.append(where_valid(~small, times_power(term.value, power), zero))
    return Scaled(jax.tree.map(jnp.add, *parts), exponent)


def norm_over(numbers: Scaled, axis: int) -> Scaled:
    """L2 norm along an axis of numbers each with an exponent of its own, value >= 0."""
    largest = jnp.max(numbers.exponent, axis, keepdims=True, initial=NO_EXPONENT)
    shift = numbers.exponent - jnp.broadcast_to(largest, numbers.exponent.shape)
    value = jnp.moveaxis(times_power(numbers.value, shift), axis, -1)
    return Scaled(state_norm(value, value.ndim - 1), jnp.squeeze(largest, axis))


def to_float(number: Scaled) -> Array:
    """value * 2^exponent as a float; inf or 0 where the type does not hold it."""
    # In two factors: the whole power may be out of range where the product is not.
    half = number.exponent // 2
    return times_power(times_power(number.value, half), number.exponent - half)


def log_norm(scaled: Scaled) -> Array:
    """ln of the L2 norm over each example's units, `[*batch]`; -inf for an exact zero."""
    norm = state_norm(scaled.value, scaled.exponent.ndim)
    return scaled_log(norm, scaled.exponent)


def scaled_log(value: Array, exponent: Array) -> Array:
    """ln(value * 2^exponent) for value >= 0; -inf at 0, where its gradient is 0 and not NaN."""
    positive = (value > 0) | jnp.isnan(value)
    logs = jnp.log(jnp.where(positive, value, 1)) + LN2 * exponent.astype(value.dtype)
    return jnp.where(positive, logs, -jnp.inf)
