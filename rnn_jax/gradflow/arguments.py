"""What is measured: arguments checked once, and carried in float32 at least."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.bptt import where_valid
from rnn_jax.cells import Cell
from rnn_jax.checks import batch_shape_of, check_fit
from rnn_jax.gradflow import finite
from rnn_jax.norms import is_narrow, widened
from rnn_jax.placement import align
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import fill_padding, run_forward, valid_steps


class Arguments(NamedTuple):
    """A network on a batch, ready to be measured.

    Attributes:
        params: the cell's parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`, or a pytree of arrays `[T, ...]`; padding holds nothing of what was there.
        valid: `[T, B]`, False on padding; None where there is none.
        batch_shape: B.
    """

    params: Params
    state: State
    xs: Any
    valid: Array | None
    batch_shape: tuple[int, ...]


def checked(
    cell: Cell, params: Params, state: State, xs: Any, lengths: Array | None = None
) -> Arguments:
    """The arguments of a measurement; `ValueError` for what does not fit, and for a NaN or inf.

    bfloat16 and float16 are taken at their values and everything is computed in float32: a
    logarithm with three digits, of adjoints with three digits, would measure the type.
    """
    xs = check_fit(cell, params, state, xs)
    batch_shape = batch_shape_of(cell, params, state, xs)
    valid = None if lengths is None else valid_steps(lengths, xs, batch_shape)
    own, xs, state, valid = align(params, len(batch_shape), (xs, 1), (state, 0), (valid, 1))
    # On a mesh parameters are one network's, and what is summed over the batch is over all devices.
    # A sequence without a batch axis (under `vmap`, say) is measured by itself.
    params = params if batch_shape else own
    xs = fill_padding(xs, valid)
    finite.check_finite(params, state, xs)
    if any(is_narrow(leaf) for leaf in jax.tree.leaves((params, state, xs))):
        # Types that do not go together, and states beyond float16, are errors as in `unroll`.
        jax.eval_shape(lambda: run_forward(cell, params, state, xs, valid=valid))
        finite.check_states(_zero_or_nan(cell, params, state, xs, valid))
    params, state, xs = widened((params, state, xs))
    return Arguments(params, state, xs, valid, batch_shape)


@functools.partial(jax.jit, static_argnums=0)
def _zero_or_nan(cell: Cell, params: Params, state: State, xs: Any, valid: Array | None) -> Array:
    """`[T]`: 0 where the state of that step is finite, in its own type; no state is kept."""

    def step(state: State, inputs: tuple[Array, Array | None]) -> tuple[State, Array]:
        x, valid_t = inputs
        state = where_valid(valid_t, cell.step(params, state, x), state)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]
        return state, jnp.where(jnp.all(jnp.stack(finite)), 0, jnp.nan)

    return lax.scan(step, state, (xs, valid))[1]
