"""ds_t/dtheta: how much a state changes when the parameters do.

Near the edge the state's gradient neither vanishes nor explodes, yet this one can be huge: every
earlier step changes with theta too, and nothing is forgotten (Zucchet & Orvieto, "Recurrent neural
networks: vanishing and exploding gradients are not the end of the story", 2024).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from rnn_jax.cells import Cell
from rnn_jax.checks import check_fit
from rnn_jax.gradflow import finite
from rnn_jax.types import Array, Params, State


def parameter_sensitivity(cell: Cell, params: Params, state: State, xs: Array) -> Params:
    """Norm of ds_t/dtheta at every time step, as the root mean square over the batch.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]` or `[H]`; it does not depend on theta.
        xs: `[T, B, D]` or `[T, D]`.

    Returns:
        A pytree like params of `[T]`: the Frobenius norm of ds_t/dtheta.

    Raises:
        ValueError: shapes that do not fit; a NaN or inf in the arguments.

    The forward recursion ds_t/dtheta = J_t ds_{t-1}/dtheta + direct part carries one state for
    each number in params, so it is meant for small networks. A scalar h <- a h + x has
    E (dh/da)^2 = (1 + a^2) / (1 - a^2)^3: 2.5e8 at a = 0.999, where the state gradient is 0.999.
    """
    xs = check_fit(cell, params, state, xs)
    finite.check_finite(params, state, xs)
    theta, unravel = ravel_pytree(params)

    def squares(initial: State, xs: Array) -> Params:
        """Squared norms `[T]` of one example."""
        start, unravel_state = ravel_pytree(initial)

        def step(state: Array, theta: Array, x: Array) -> Array:
            return ravel_pytree(cell.step(unravel(theta), unravel_state(state), x))[0]

        def body(carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Params]:
            state, sensitivity = carry
            jacobian, direct = jax.jacfwd(step, (0, 1))(state, theta, x)
            sensitivity = jacobian @ sensitivity + direct
            columns = unravel(jnp.sum(jnp.square(sensitivity), axis=0))
            return (step(state, theta, x), sensitivity), jax.tree.map(jnp.sum, columns)

        return lax.scan(body, (start, jnp.zeros((start.size, theta.size), start.dtype)), xs)[1]

    if xs.ndim == 2:
        return jax.tree.map(jnp.sqrt, squares(state, xs))
    of_batch = jax.vmap(squares, in_axes=(0, 1))(state, xs)
    return jax.tree.map(lambda square: jnp.sqrt(jnp.mean(square, axis=0)), of_batch)
