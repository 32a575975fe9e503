"""The summands of dL/dtheta = sum_k (ds_k/dtheta)^T lambda_k, one for each time step."""

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import adjoint
from rnn_jax.adjoint import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.gradflow.scaled import Scaled, scaled_log, times_power
from rnn_jax.gradflow.states import LastStep, prepare, scan_adjoints
from rnn_jax.norms import state_norm
from rnn_jax.types import Array, Params, State, StepLosses


def parameter_terms(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses | LastStep,
    *,
    lengths: Array | None = None,
) -> Params:
    """ln of the norm of each time step's summand of dL/dtheta, L the mean over the batch.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`, or a `LastStep`.
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
    batch_size = 1
    common = adjoints.exponent
    if common.ndim > 1:
        # Examples are added up, so they must share a scale; what is lost lies below rounding.
        batch_size = common.shape[1]
        common = jnp.max(common, axis=1)
        shift = adjoints.exponent - jnp.broadcast_to(common[:, None], adjoints.exponent.shape)
        adjoints = Scaled(times_power(adjoints.value, shift), common)
    norms = summand_norms(cell, params, trajectory, adjoints.value)
    return jax.tree.map(lambda norm: scaled_log(norm / batch_size, common), norms)


def summand_norms(cell: Cell, params: Params, trajectory: Trajectory, adjoints: State) -> Params:
    """Norm of each step's summand of the parameter gradient.

    Args:
        cell: any `Cell`.
        params: its parameters.
        trajectory: the forward run.
        adjoints: lambda_t, leaves `[T, B, H]` (or `[T, H]`).

    Returns:
        A pytree like params of `[T]`: at k the Frobenius norm of sum_b (ds_k/dtheta)^T lambda_k.

    A summand of dL/dW is sum_b s_b delta_b^T, of rank B at most. Its squared norm is the sum over
    b, b' of (s_b . s_b')(delta_b . delta_b'), so no matrix of the shape of W is made where the
    cell names its factors. Any other cell pays for one parameter gradient a step.
    """
    previous = adjoint.previous_states(trajectory)
    if cell.affine is not None and cell.affine.factors is not None:
        cotangents = adjoint.preactivation_cotangents(cell, params, trajectory, adjoints)
        factors = cell.affine.factors(trajectory.xs, previous, *cotangents)
        return params._replace(**{name: _product_norm(*pair) for name, pair in factors.items()})

    def step_norms(step: tuple[State, Array, State]) -> Params:
        state, x, adjoint_t = step
        gradient = jax.vjp(lambda p: cell.step(p, state, x), params)[1](adjoint_t)[0]
        return jax.tree.map(lambda g: state_norm(g, 0), gradient)

    return lax.map(step_norms, (previous, trajectory.xs, adjoints))


def _product_norm(left: Array, right: Array) -> Array:
    """|sum_b left_b right_b^T| for each t: `[T, ..., M]` and `[T, ..., N]` -> `[T]`."""
    left, right = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (left, right))
    if left.shape[1] == 1:
        return state_norm(left, 1) * state_norm(right, 1)
    # Products of four factors would leave float32's range where the norm itself does not.
    sizes = [jnp.max(jnp.abs(a), axis=(1, 2)) for a in (left, right)]
    left, right = (
        a / jnp.broadcast_to(jnp.where(size > 0, size, 1)[:, None, None], a.shape)
        for a, size in zip((left, right), sizes, strict=True)
    )
    gram = jnp.einsum("tbm,tcm->tbc", left, left) * jnp.einsum("tbn,tcn->tbc", right, right)
    # Rounding may leave a sum of squares a little below zero where examples cancel.
    return jnp.sqrt(jnp.maximum(jnp.sum(gram, axis=(1, 2)), 0)) * sizes[0] * sizes[1]
