"""The forward run and the rescaled reverse scan that every function of this package stands on.

    lambda_t = e_t + J_{t+1}^T lambda_{t+1}

is scanned backward with lambda as a `Scaled` number: after each product the largest entry is
brought back to [1/2, 1) and the power of two goes into an integer; e_t is added at its own scale.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import bptt
from rnn_jax.bptt import Linearization, Trajectory
from rnn_jax.cells import Cell
from rnn_jax.checks import batch_shape_of, num_steps_of
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.arguments import checked
from rnn_jax.gradflow.fallback import with_fallback
from rnn_jax.gradflow.losses import Losses, check_losses, immediate_gradients
from rnn_jax.gradflow.scaled import NO_EXPONENT, Scaled, add, apply, is_finite, rescale
from rnn_jax.placement import filled
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import run_forward

_forward = jax.jit(run_forward, static_argnums=0)


class Prepared(NamedTuple):
    """A forward run, and what starts the reverse scan.

    Attributes:
        params: the cell's parameters, in float32 at least.
        trajectory: the forward run.
        immediate: e_t of each example's own loss, leaves `[T, B, H]`; of a `LastStep` loss e_T
            alone, leaves `[B, H]`.
    """

    params: Params
    trajectory: Trajectory
    immediate: State


def prepare(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    lengths: Array | None,
) -> Prepared:
    """Arguments checked, the cell run forward, the losses differentiated; errors of both."""
    params, state, xs, valid, batch_shape = checked(cell, params, state, xs, lengths)
    check_losses(step_losses, state, num_steps_of(xs), valid)
    trajectory = _forward(cell, params, state, xs, valid=valid)
    finite.check_states(trajectory.states)
    immediate = immediate_gradients(step_losses, trajectory.states, batch_shape, valid)
    return Prepared(params, trajectory, immediate)


def zero_scaled(like: State, batch_ndim: int) -> Scaled:
    """An exact zero, leaves like `like`, `[*batch, ...]`."""
    leaf = jax.tree.leaves(like)[0]
    return Scaled(
        jax.tree.map(jnp.zeros_like, like),
        filled(NO_EXPONENT, jnp.int32, leaf, batch_ndim),
    )


def scan_adjoints(
    cell: Cell,
    params: Params,
    trajectory: Trajectory,
    immediate: State,
    measure: Callable[[Scaled], Any],
) -> Any:
    """Runs lambda_t backward over a trajectory and returns measure(lambda_t), leaves `[T, ...]`.

    `immediate` is e_t, leaves `[T, B, H]`, or e_T alone, leaves `[B, H]`.
    """
    batch_ndim = len(batch_shape_of(cell, params, trajectory.initial, trajectory.xs))
    linearization = bptt.linearize(cell, params, trajectory)
    start = zero_scaled(trajectory.initial, batch_ndim)
    leaf, state_leaf = jax.tree.leaves(immediate)[0], jax.tree.leaves(trajectory.states)[0]
    own: State | None = immediate
    if leaf.ndim < state_leaf.ndim:
        start, own = rescale(immediate, jnp.zeros_like(start.exponent)), None
    inputs = (own, linearization.locals, trajectory.valid)

    def run(careful: bool) -> tuple[Any, Array]:
        step = functools.partial(adjoint_step, linearization, measure, careful)
        measured, held = lax.scan(step, start, inputs, reverse=True)[1]
        return measured, jnp.all(held)

    return with_fallback(lambda: run(careful=False), lambda: run(careful=True)[0])


def adjoint_step(
    linearization: Linearization,
    measure: Callable[[Scaled], Any],
    careful: bool,
    future: Scaled,
    inputs: tuple[State | None, Any, Array | None],
) -> tuple[Scaled, tuple[Any, Array]]:
    """lambda_t from what reaches it of the future, and what goes on to t - 1.

    Returns:
        What reaches t - 1; measure(lambda_t), and whether the product held (see `scaled.apply`).
    """
    immediate, local, valid = inputs
    current = future
    if immediate is not None:
        own = rescale(immediate, jnp.zeros_like(future.exponent))
        current = rescale(*add(own, future))
    past = apply(lambda value: linearization.pull(value, local), current, careful)
    held = is_finite(past)
    if valid is None:
        return past, (measure(current), held)
    nothing = zero_scaled(current.value, current.exponent.ndim)
    return (
        bptt.where_valid(valid, past, current),
        (measure(bptt.where_valid(valid, current, nothing)), held),
    )
