"""The summands of dL/dtheta = sum_k (ds_k/dtheta)^T lambda_k, one for each time step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.bptt import Trajectory, preactivation_cotangents, previous_states, where_valid
from rnn_jax.cells import Cell
from rnn_jax.checks import batch_shape_of
from rnn_jax.gradflow.backward import prepare, scan_adjoints
from rnn_jax.gradflow.fallback import with_fallback
from rnn_jax.gradflow.losses import Losses
from rnn_jax.gradflow.scaled import (
    NO_EXPONENT,
    Scaled,
    apply,
    headroom,
    is_finite,
    is_zero,
    log_norm,
    rescale,
    scaled_log,
    times_power,
)
from rnn_jax.norms import state_norm
from rnn_jax.placement import (
    batch_axes,
    batch_size,
    filled,
    gather_batch,
    largest,
    on_its_mesh,
    total,
    vary,
    varying,
)
from rnn_jax.types import Array, Params, State


@on_its_mesh
def parameter_terms(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    *,
    lengths: Array | None = None,
) -> Params:
    """ln of the norm of each time step's summand of dL/dtheta, L the mean over the batch.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`, a `LastStep` or an `Immediate`.
        lengths: `[B]`; padding adds nothing.

    Returns:
        A pytree like params of `[T]` in nats: at k the Frobenius norm of
        sum_b (ds_k/dtheta)^T lambda_k / B. -inf means exactly zero. The sum of the summands
        themselves over k is the gradient.

    Raises:
        ValueError: as in `state_gradients`.
    """
    params, trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    adjoints = scan_adjoints(cell, params, trajectory, immediate, lambda scaled: scaled)

    def run(careful: bool) -> tuple[Params, Array]:
        return summand_logs(cell, params, trajectory, adjoints, careful)

    logs = with_fallback(lambda: run(careful=False), lambda: run(careful=True)[0])
    batch_shape = batch_shape_of(cell, params, trajectory.initial, trajectory.xs)
    count = batch_size(batch_shape, batch_axes(params, trajectory.initial, trajectory.xs))
    return jax.tree.map(lambda log: log - math.log(count), logs)


def summand_logs(
    cell: Cell, params: Params, trajectory: Trajectory, adjoints: Scaled, careful: bool
) -> tuple[Params, Array]:
    """ln of the norm of each step's summand of the parameter gradient, and whether they held.

    Args:
        cell: any `Cell`.
        params: its parameters.
        trajectory: the forward run.
        adjoints: lambda_t as scaled numbers, leaves `[T, B, H]` (or `[T, H]`).
        careful: whether ds_k/dtheta may use the type's whole range; else up to 3e20 in float32.

    Returns:
        A pytree like params of `[T]`: at k ln of the Frobenius norm of
        sum_b (ds_k/dtheta)^T lambda_k; and a bool scalar.

    A summand of dL/dW is sum_b s_b delta_b^T, of rank B at most. Its squared norm is the sum over
    b, b' of (s_b . s_b')(delta_b . delta_b'), so no matrix of the shape of W is made where the
    cell names its factors. Where examples cancel to less than a thousandth of their sizes these
    inner products lose digits, in float32 the third. Any other cell pays for one parameter
    gradient a step.
    """
    by_factors = cell.affine is not None and cell.affine.factors is not None
    measure = _logs_by_factors if by_factors else _logs_by_gradients
    return measure(cell, params, trajectory, adjoints, careful)


def _logs_by_factors(
    cell: Cell, params: Params, trajectory: Trajectory, adjoints: Scaled, careful: bool
) -> tuple[Params, Array]:
    """The logarithms from inner products of the examples' factors, and whether they held."""
    assert cell.affine is not None
    assert cell.affine.factors is not None

    def cotangents(adjoint: State) -> tuple[Any, Any]:
        return preactivation_cotangents(cell, params, trajectory, adjoint)

    deltas = apply(cotangents, adjoints, careful)
    factors = cell.affine.factors(trajectory.xs, previous_states(trajectory), *deltas.value)
    axes = batch_axes(params, trajectory.initial, trajectory.xs)
    logs = {
        name: _product_log(left, Scaled(right, deltas.exponent), axes)
        for name, (left, right) in factors.items()
    }
    return params._replace(**logs), is_finite(deltas)


def _product_log(left: Array, right: Scaled, axes: tuple[str, ...]) -> Array:
    """ln|sum_b left_b right_b^T| for each t; left `[T, ..., M]`, right `[T, ..., N]` -> `[T]`.

    The sum goes over the devices along the mesh's `axes` too.
    """
    num_steps = left.shape[0]

    def by_example(value: Array, exponent: Array) -> Scaled:
        """Examples side by side, each at a scale of its own: `[T, B, M]` and `[T, B]`."""
        exponent = exponent.reshape(num_steps, -1)
        return rescale(value.reshape(*exponent.shape, value.shape[-1]), exponent)

    a = by_example(left, filled(0, jnp.int32, left, left.ndim - 1))
    b = by_example(right.value, right.exponent)
    # A loud example that adds nothing (an input of 0) must not drown a quiet one.
    nothing = is_zero(a.exponent) | is_zero(b.exponent)
    exponent = jnp.where(nothing, NO_EXPONENT, a.exponent + b.exponent)
    common = largest(jnp.max(exponent, axis=1), axes)
    shared = times_power(a.value, exponent - jnp.broadcast_to(common[:, None], exponent.shape))
    if batch_size(exponent.shape[1:], axes) == 1:
        return scaled_log((state_norm(shared, 2) * state_norm(b.value, 2))[:, 0], common)

    def inner_products(value: Array) -> Array:
        """Of each of this device's examples with every example."""
        return jnp.einsum("tbm,tcm->tbc", value, gather_batch(value, 1, axes))

    gram = inner_products(shared) * inner_products(b.value)
    # Rounding may leave a sum of squares a little below zero where examples cancel.
    squared = jnp.maximum(total(jnp.sum(gram, axis=(1, 2)), axes), 0)
    root = jnp.sqrt(jnp.where(squared > 0, squared, 1))
    return scaled_log(jnp.where(squared > 0, root, 0), common)


def _logs_by_gradients(
    cell: Cell, params: Params, trajectory: Trajectory, adjoints: Scaled, careful: bool
) -> tuple[Params, Array]:
    """The logarithms from the gradient of each step, and whether they held.

    Fast, the examples share a scale and are added up in one product, which loses a quiet example
    where a loud one adds nothing. With care each has a gradient of its own.
    """
    limits = jnp.finfo(jax.tree.leaves(adjoints.value)[0].dtype)
    high = headroom(limits.dtype)
    axes = batch_axes(params, trajectory.initial, trajectory.xs)

    def gradient(params: Params, state: State, x: Array, value: State) -> Params:
        return jax.vjp(lambda p: cell.step(p, state, x), params)[1](value)[0]

    def together(step: tuple[State, Array, Scaled]) -> tuple[Params, Array]:
        state, x, (value, exponent) = step
        common = largest(jnp.max(exponent), axes)
        shift = exponent - jnp.broadcast_to(common, exponent.shape)
        summand = jax.tree.map(
            lambda leaf: rescale(leaf, common - high),
            gradient(params, state, x, times_power(value, shift + high)),
        )
        # Digits below the type's smallest number are gone; without quiet examples there were none.
        quiet = jnp.any(~is_zero(exponent) & (shift < -limits.nmant))
        lowest = common - high + limits.minexp + limits.nmant
        held = [is_finite(leaf) & (~quiet | (leaf.exponent > lowest)) for leaf in _scaled(summand)]
        return _logs(summand), jnp.all(jnp.stack(held))

    def of_one(state: State, x: Any, value: State, exponent: Array) -> Params:
        """The gradient from an adjoint with one exponent for all that is in it."""

        def choose(large: Array, small: Array) -> Scaled:
            held = jnp.all(jnp.isfinite(large))
            power = jnp.where(held, high, -high).astype(jnp.int32)
            return rescale(jnp.where(held, large, small), exponent - power)

        scales = jnp.asarray([2.0**high, 2.0**-high], limits.dtype)
        scaled = [jax.tree.map(lambda v, s=s: v * s, value) for s in scales]
        # A device's own copy: an example's gradient is not to be added up over the devices.
        own = vary(params, varying((state, x, value)))
        return jax.tree.map(choose, *(gradient(own, state, x, v) for v in scaled))

    def one_by_one(step: tuple[State, Any, Scaled]) -> tuple[Params, Array]:
        def add_up(leaf: Scaled) -> Scaled:
            common = largest(jnp.max(leaf.exponent), axes)
            shift = leaf.exponent - jnp.broadcast_to(common, leaf.exponent.shape)
            return rescale(total(jnp.sum(times_power(leaf.value, shift), axis=0), axes), common)

        state, x, (value, exponent) = step
        if alone:
            examples = jax.vmap(of_one)(state, x, value, exponent)
        else:
            # A step of the whole batch, of which one example's adjoint is not zero.
            nothing = jax.tree.map(jnp.zeros_like, value)
            examples = lax.map(
                lambda n: of_one(
                    state,
                    x,
                    where_valid(numbers == n, value, nothing),
                    jnp.max(jnp.where(numbers == n, exponent, 2 * NO_EXPONENT)),
                ),
                jnp.arange(count),
            )
        summand = jax.tree.map(add_up, examples, is_leaf=lambda tree: isinstance(tree, Scaled))
        return _logs(summand), jnp.ones((), bool)

    steps = (previous_states(trajectory), trajectory.xs, adjoints)
    if not careful:
        logs, held = lax.map(together, steps)
        return logs, jnp.all(held)
    leading = adjoints.exponent.ndim
    count = math.prod(adjoints.exponent.shape[1:])
    numbers = jnp.arange(count).reshape(adjoints.exponent.shape[1:])
    alone = _takes_one_example(cell, params, steps, leading)
    if alone:
        steps = jax.tree.map(lambda a: a.reshape(a.shape[0], count, *a.shape[leading:]), steps)
    logs, held = lax.map(jax.checkpoint(one_by_one), steps)
    return logs, jnp.all(held)


def _takes_one_example(cell: Cell, params: Params, steps: Any, axes: int) -> bool:
    """Whether the cell steps from one example's state; one found in a model has its batch."""
    if not isinstance(steps[1], jax.Array):
        return False

    def first(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype)

    state, x = jax.tree.map(first, steps[:2])
    try:
        new = jax.eval_shape(cell.step, params, state, x)
    except (TypeError, ValueError):
        return False
    return jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)


def _scaled(tree: Params) -> list[Scaled]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Scaled))


def _logs(tree: Params) -> Params:
    return jax.tree.map(log_norm, tree, is_leaf=lambda leaf: isinstance(leaf, Scaled))
