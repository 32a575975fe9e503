"""The summands of dL/dtheta = sum_k (ds_k/dtheta)^T lambda_k, one for each time step."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import bptt
from rnn_jax.bptt import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.gradflow.backward import prepare, scan_adjoints
from rnn_jax.gradflow.losses import Losses
from rnn_jax.gradflow.scaled import Scaled, add, scaled_log
from rnn_jax.norms import state_norm
from rnn_jax.types import Array, Params, State


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
    trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    adjoints = scan_adjoints(cell, params, trajectory, immediate, lambda scaled: scaled)
    logs = summand_logs(cell, params, trajectory, adjoints)
    batch_size = math.prod(trajectory.xs.shape[1:-1])
    return jax.tree.map(lambda log: log - math.log(batch_size), logs)


def summand_logs(cell: Cell, params: Params, trajectory: Trajectory, adjoints: Scaled) -> Params:
    """ln of the norm of each step's summand of the parameter gradient.

    Args:
        cell: any `Cell`.
        params: its parameters.
        trajectory: the forward run.
        adjoints: lambda_t as scaled numbers, leaves `[T, B, H]` (or `[T, H]`).

    Returns:
        A pytree like params of `[T]`: at k ln of the Frobenius norm of
        sum_b (ds_k/dtheta)^T lambda_k.

    A summand of dL/dW is sum_b s_b delta_b^T, of rank B at most. Its squared norm is the sum over
    b, b' of (s_b . s_b')(delta_b . delta_b'), so no matrix of the shape of W is made where the
    cell names its factors. Where examples cancel to less than a thousandth of their sizes these
    inner products lose digits, in float32 the third. Any other cell pays for one parameter
    gradient a step.
    """
    previous = bptt.previous_states(trajectory)
    if cell.affine is not None and cell.affine.factors is not None:
        cotangents = bptt.preactivation_cotangents(cell, params, trajectory, adjoints.value)
        factors = cell.affine.factors(trajectory.xs, previous, *cotangents)
        logs = {
            name: _product_log(left, right, adjoints.exponent)
            for name, (left, right) in factors.items()
        }
        return params._replace(**logs)

    # Examples are added up, so they must share a scale; what is lost lies below rounding.
    flat = adjoints.exponent.reshape(adjoints.exponent.shape[0], -1)
    common = jnp.max(flat, axis=1)
    shape = (-1,) + (1,) * (adjoints.exponent.ndim - 1)
    shift = adjoints.exponent - jnp.broadcast_to(common.reshape(shape), adjoints.exponent.shape)
    total = add(
        adjoints, Scaled(jax.tree.map(jnp.zeros_like, adjoints.value), adjoints.exponent - shift)
    )

    def step_norms(step: tuple[State, Array, State]) -> Params:
        state, x, adjoint_t = step
        gradient = jax.vjp(lambda p: cell.step(p, state, x), params)[1](adjoint_t)[0]
        return jax.tree.map(lambda g: state_norm(g, 0), gradient)

    norms = lax.map(step_norms, (previous, trajectory.xs, total.value))
    return jax.tree.map(lambda norm: scaled_log(norm, common), norms)


def _product_log(left: Array, right: Array, exponent: Array) -> Array:
    """ln|sum_b left_b right_b^T 2^exponent_b| for each t.

    left `[T, ..., M]`, right `[T, ..., N]`, exponent `[T, ...]` -> `[T]`.
    """
    num_steps = left.shape[0]
    left, right = (a.reshape(num_steps, -1, a.shape[-1]) for a in (left, right))
    sizes = [state_norm(a, 2) for a in (left, right)]
    left, right = (
        a / jnp.broadcast_to(jnp.where(size > 0, size, 1)[..., None], a.shape)
        for a, size in zip((left, right), sizes, strict=True)
    )
    # Each example's product at a scale of its own, so that a loud one that adds nothing (an input
    # of 0) does not drown a quiet one.
    logs = scaled_log(sizes[0], exponent.reshape(sizes[0].shape)) + jnp.log(
        jnp.where(sizes[1] > 0, sizes[1], 1)
    )
    logs = jnp.where(sizes[1] > 0, logs, -jnp.inf)
    largest = jnp.max(logs, axis=1)
    if left.shape[1] == 1:
        return largest
    scale = jnp.where(jnp.isfinite(largest), largest, 0)
    weights = jnp.exp(logs - jnp.broadcast_to(scale[:, None], logs.shape))
    left = left * jnp.broadcast_to(weights[..., None], left.shape)
    gram = jnp.einsum("tbm,tcm->tbc", left, left) * jnp.einsum("tbn,tcn->tbc", right, right)
    # Rounding may leave a sum of squares a little below zero where examples cancel.
    total = jnp.maximum(jnp.sum(gram, axis=(1, 2)), 0)
    return scaled_log(
        jnp.sqrt(jnp.where(total > 0, total, 1)), jnp.zeros(num_steps, jnp.int32)
    ) + jnp.where(total > 0, scale, -jnp.inf)
