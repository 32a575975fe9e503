"""What truncating back-propagation throws away."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rnn_jax import bptt
from rnn_jax.cells import Cell
from rnn_jax.checks import num_steps_of
from rnn_jax.gradflow.backward import prepare, zero_scaled
from rnn_jax.gradflow.fallback import with_fallback
from rnn_jax.gradflow.losses import LastStep, Losses, at_every_step
from rnn_jax.gradflow.scaled import Scaled, add, apply, is_finite, log_norm, rescale
from rnn_jax.norms import state_norm
from rnn_jax.placement import on_its_mesh
from rnn_jax.types import Array, Params, State


class TruncationBias(NamedTuple):
    """The gradient of the cell's parameters cut to a window, against the whole one.

    Attributes:
        windows: `[N]`, number of steps that each loss is followed back (1: its own step alone).
        norm_ratio: `[N]`, |truncated| / |full|.
        cosine: `[N]`, of the angle between the two.
    """

    windows: Array
    norm_ratio: Array
    cosine: Array


@on_its_mesh
def truncation_bias(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    windows: Array | None = None,
    *,
    lengths: Array | None = None,
) -> TruncationBias:
    """How much of dL/dtheta comes from lags within a window, in norm and in direction.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`, a `LastStep` or an `Immediate`; L is their sum over t,
            averaged over the batch.
        windows: whole numbers in 1..T; all of them unless given.
        lengths: `[B]`; padding adds nothing.

    Returns:
        A `TruncationBias`; at window T both numbers are 1. NaN where the gradient is exactly zero,
        which has no direction, and the cosine of a window whose own part is.

    Raises:
        ValueError: as in `state_gradients`, and for windows outside 1..T.

    With v_k the part of lambda_k that comes from exactly `lag` steps ahead, the next lag's is
    J_{k+1}^T v_{k+1}: one batched product over all k for each lag. Costs as much as
    `credit_matrix` and one weight gradient a lag.
    """
    params, trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    num_steps = num_steps_of(trajectory.xs)
    if isinstance(step_losses, LastStep):
        immediate = at_every_step(immediate, num_steps, trajectory.valid)
    chosen = jnp.asarray(np.arange(1, num_steps + 1) if windows is None else windows)
    _check_windows(chosen, num_steps)
    linearization = bptt.linearize(cell, params, trajectory)
    pull = jax.vmap(linearization.pull)

    def previous_step(value: State) -> State:
        """J_{k+1}^T v_{k+1} for all k at once."""
        pulled = pull(value, linearization.locals)
        return jax.tree.map(lambda p: jnp.concatenate([p[1:], jnp.zeros_like(p[:1])]), pulled)

    def gradient(value: State) -> Params:
        return bptt.parameter_gradients(cell, params, trajectory, value)[0]

    def run(careful: bool) -> tuple[tuple[Array, Array], Array]:
        def next_lag(carry: tuple[Scaled, Scaled], _: None) -> tuple[tuple[Scaled, Scaled], Any]:
            part, total = carry
            total = rescale(*add(total, apply(gradient, part, careful)))
            part = apply(previous_step, part, careful)
            return (part, total), (total, is_finite(part) & is_finite(total))

        # One scale for the whole batch: what is added up must share it.
        start = (rescale(immediate, jnp.zeros((), jnp.int32)), zero_scaled(params, 0))
        (_, full), (totals, held) = lax.scan(next_lag, start, length=num_steps)
        shares = log_norm(totals) - log_norm(full)
        products = jax.vmap(lambda total: optax.tree.vdot(total, full.value))(totals.value)
        cosines = products / (state_norm(totals.value, 1) * state_norm(full.value, 0))
        return (shares, cosines), jnp.all(held)

    shares, cosines = with_fallback(lambda: run(careful=False), lambda: run(careful=True)[0])
    return TruncationBias(chosen, jnp.exp(shares)[chosen - 1], cosines[chosen - 1])


def _check_windows(windows: Array, num_steps: int) -> None:
    whole = windows.ndim == 1 and windows.size > 0 and jnp.issubdtype(windows.dtype, jnp.integer)
    if whole and not isinstance(windows, jax.core.Tracer):
        whole = int(windows.min()) >= 1 and int(windows.max()) <= num_steps
    if not whole:
        raise ValueError(
            f"windows are {windows}, but a list of whole numbers in 1..{num_steps} is wanted"
        )
