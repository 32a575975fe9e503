"""The forward run and the rescaled reverse scan that every function of this package stands on.

    lambda_t = e_t + J_{t+1}^T lambda_{t+1}

is scanned backward with lambda as a `Scaled` number: after each product the largest entry is
brought back to [1/2, 1) and the power of two goes into an integer; e_t is added at its own scale.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import bptt
from rnn_jax.bptt import Linearization, Trajectory
from rnn_jax.cells import Cell
from rnn_jax.checks import check_fit
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.losses import Losses, check_losses, immediate_gradients
from rnn_jax.gradflow.scaled import NO_EXPONENT, Scaled, add, rescale
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import fill_padding, run_forward, valid_steps

_forward = jax.jit(run_forward, static_argnums=0)


def prepare(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    lengths: Array | None,
) -> tuple[Trajectory, State]:
    """The forward run, and e_t of each example's own loss: leaves `[T, B, H]`.

    For a `LastStep` loss e_T alone, leaves `[B, H]`. Errors are those of `state_gradients`.
    """
    xs = check_fit(cell, params, state, xs)
    valid = None if lengths is None else valid_steps(lengths, xs)
    xs = fill_padding(xs, valid)
    check_losses(step_losses, state, xs.shape[0], valid)
    finite.check_finite(params, state, xs)
    trajectory = _forward(cell, params, state, xs, valid=valid)
    finite.check_states(trajectory.states)
    return trajectory, immediate_gradients(step_losses, trajectory.states, xs.shape[1:-1], valid)


def zero_scaled(like: State, batch_ndim: int) -> Scaled:
    """An exact zero, leaves like `like`, `[*batch, ...]`."""
    leaf = jax.tree.leaves(like)[0]
    return Scaled(
        jax.tree.map(jnp.zeros_like, like),
        jnp.full(leaf.shape[:batch_ndim], NO_EXPONENT, jnp.int32),
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
    batch_ndim = trajectory.xs.ndim - 2
    linearization = bptt.linearize(cell, params, trajectory)
    start = zero_scaled(trajectory.initial, batch_ndim)
    leaf, state_leaf = jax.tree.leaves(immediate)[0], jax.tree.leaves(trajectory.states)[0]
    if leaf.ndim < state_leaf.ndim:
        start, immediate = rescale(immediate, jnp.zeros_like(start.exponent)), None
    step = functools.partial(adjoint_step, linearization, measure)
    inputs = (immediate, linearization.locals, trajectory.valid)
    return lax.scan(step, start, inputs, reverse=True)[1]


def adjoint_step(
    linearization: Linearization,
    measure: Callable[[Scaled], Any],
    future: Scaled,
    inputs: tuple[State | None, Any, Array | None],
) -> tuple[Scaled, Any]:
    """lambda_t from what reaches it of the future, and what goes on to t - 1."""
    immediate, local, valid = inputs
    current = future
    if immediate is not None:
        own = rescale(immediate, jnp.zeros_like(future.exponent))
        current = rescale(*add(own, future))
    past = rescale(linearization.pull(current.value, local), current.exponent)
    if valid is None:
        return past, measure(current)
    nothing = zero_scaled(current.value, current.exponent.ndim)
    return (
        bptt.where_valid(valid, past, current),
        measure(bptt.where_valid(valid, current, nothing)),
    )
