"""ds_t/dtheta: how much a state changes when the parameters do.

Near the edge the state's gradient neither vanishes nor explodes, yet this one can be huge: every
earlier step changes with theta too, and nothing is forgotten (Zucchet & Orvieto, "Recurrent neural
networks: vanishing and exploding gradients are not the end of the story", 2024).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from rnn_jax.bptt import where_valid
from rnn_jax.cells import Cell
from rnn_jax.gradflow.arguments import checked
from rnn_jax.gradflow.scaled import (
    Scaled,
    add,
    apply,
    headroom,
    norm_over,
    rescale,
    times_power,
    to_float,
)
from rnn_jax.norms import flat_examples, norm_over_devices, state_norm
from rnn_jax.placement import batch_axes, batch_size, beside, largest, on_its_mesh, vary, varying
from rnn_jax.types import Array, Params, State


@on_its_mesh
def parameter_sensitivity(cell: Cell, params: Params, state: State, xs: Array) -> Params:
    """Norm of ds_t/dtheta at every time step, as the root mean square over the batch.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]` or `[H]`; it does not depend on theta.
        xs: `[T, B, D]` or `[T, D]`.

    Returns:
        A pytree like params of `[T]`: the Frobenius norm of ds_t/dtheta. What is carried from step
        to step has no end of range; a norm that float32 does not hold comes out as inf, or as 0.

    Raises:
        ValueError: shapes that do not fit; a NaN or inf in the arguments.

    The forward recursion ds_t/dtheta = J_t ds_{t-1}/dtheta + direct part carries one state for
    each number in params, so it is meant for small networks. A scalar h <- a h + x has
    E (dh/da)^2 = (1 + a^2) / (1 - a^2)^3: 2.5e8 at a = 0.999, where the state gradient is 0.999.

    Differentiable; where a norm is exactly 0 (that of ds_1/dW if s_0 is 0) its derivative is 0,
    which is right for whatever leaves it there.
    """
    params, state, xs, _, batch_shape = checked(cell, params, state, xs)
    batch_ndim = len(batch_shape)
    theta, unravel = ravel_pytree(params)
    start, restore = flat_examples(state, batch_ndim)
    count, high = start.shape[0], headroom(start.dtype)
    axes = batch_axes(params, state, xs)
    theta = vary(theta, varying((state, xs)))

    def step(state: Array, theta: Array, x: Any) -> Array:
        return flat_examples(cell.step(unravel(theta), restore(state), x), batch_ndim)[0]

    def body(carry: tuple[Array, Scaled], x: Any) -> tuple[tuple[Array, Scaled], Params]:
        state, sensitivity = carry
        new, change = jax.linearize(lambda state, theta: step(state, theta, x), state, theta)
        through_state = apply(
            jax.vmap(lambda v: change(v, jnp.zeros_like(theta))), sensitivity, careful=True
        )

        def direct_part(scale: float) -> Array:
            each = beside(scale * jnp.eye(theta.size, dtype=theta.dtype), state)
            return jax.vmap(lambda v: change(jnp.zeros_like(state), v))(each)

        # As in `scaled.apply`: first made large, and small where that overflows.
        large, small = direct_part(2.0**high), direct_part(2.0**-high)
        held = jnp.all(jnp.isfinite(large), axis=-1)
        direct = rescale(where_valid(held, large, small), jnp.where(held, -high, high))
        sensitivity = rescale(*add(through_state, direct))
        return (new, sensitivity), _by_parameter(sensitivity, params)

    # Row p is ds_t/dtheta_p of each example, at a scale of its own.
    nothing = jax.vmap(lambda _: jnp.zeros_like(start))(theta)
    first = rescale(nothing, jnp.zeros_like(nothing[..., 0], jnp.int32))
    of_batch = lax.scan(body, (start, first), xs)[1]

    def root_mean_square(norm: Scaled) -> Array:
        total = norm_over(norm, axis=1)
        common = largest(total.exponent, axes)
        value = norm_over_devices(times_power(total.value, total.exponent - common), axes)
        return to_float(Scaled(value / math.sqrt(batch_size((count,), axes)), common))

    return jax.tree.map(root_mean_square, of_batch, is_leaf=_is_scaled)


def _by_parameter(sensitivity: Scaled, params: Params) -> Params:
    """Norms of the rows that belong to each parameter, a pytree like params of scaled numbers."""
    leaves, tree = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    rows = Scaled(state_norm(sensitivity.value, 2), sensitivity.exponent)
    parts = [
        jax.tree.map(lambda a, s=end - leaf.size, e=end: a[s:e], rows)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(tree, [norm_over(part, axis=0) for part in parts])


def _is_scaled(tree: Params) -> bool:
    return isinstance(tree, Scaled)
