"""The summands of dL/dtheta = sum_k (ds_k/dtheta)^T lambda_k, one for each time step."""

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import adjoint
from rnn_jax.adjoint import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.types import Array, Params, State


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
        return jax.tree.map(lambda g: jnp.linalg.norm(g.reshape(-1)), gradient)

    return lax.map(step_norms, (previous, trajectory.xs, adjoints))


def _product_norm(left: Array, right: Array) -> Array:
    """|sum_b left_b right_b^T| for each t: `[T, ..., M]` and `[T, ..., N]` -> `[T]`."""
    left, right = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (left, right))
    if left.shape[1] == 1:
        return jnp.linalg.norm(left[:, 0], axis=-1) * jnp.linalg.norm(right[:, 0], axis=-1)
    gram = jnp.einsum("tbm,tcm->tbc", left, left) * jnp.einsum("tbn,tcn->tbc", right, right)
    # Rounding may leave a sum of squares a little below zero where examples cancel.
    return jnp.sqrt(jnp.maximum(jnp.sum(gram, axis=(1, 2)), 0))
