"""What truncating back-propagation throws away."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rnn_jax import bptt
from rnn_jax.cells import Cell
from rnn_jax.gradflow.backward import prepare, zero_scaled
from rnn_jax.gradflow.losses import LastStep, Losses, at_every_step
from rnn_jax.gradflow.scaled import Scaled, add, rescale, scaled_log
from rnn_jax.norms import state_norm
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
        A `TruncationBias`; at window T both numbers are 1.

    Raises:
        ValueError: as in `state_gradients`, and for windows outside 1..T.

    With v_k the part of lambda_k that comes from exactly `lag` steps ahead, the next lag's is
    J_{k+1}^T v_{k+1}: one batched product over all k for each lag. Costs as much as
    `credit_matrix` and one weight gradient a lag.
    """
    trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    num_steps = trajectory.xs.shape[0]
    if isinstance(step_losses, LastStep):
        immediate = at_every_step(immediate, num_steps, trajectory.valid)
    chosen = jnp.asarray(np.arange(1, num_steps + 1) if windows is None else windows)
    _check_windows(chosen, num_steps)
    linearization = bptt.linearize(cell, params, trajectory)
    pull = jax.vmap(linearization.pull)

    def next_lag(carry: tuple[Scaled, Scaled], _: None) -> tuple[tuple[Scaled, Scaled], Scaled]:
        part, total = carry
        gradient = bptt.parameter_gradients(cell, params, trajectory, part.value)[0]
        total = rescale(*add(total, rescale(gradient, part.exponent)))
        pulled = pull(part.value, linearization.locals)
        shifted = jax.tree.map(lambda p: jnp.concatenate([p[1:], jnp.zeros_like(p[:1])]), pulled)
        return (rescale(shifted, part.exponent), total), total

    # One scale for the whole batch: what is added up must share it.
    part = rescale(immediate, jnp.zeros((), jnp.int32))
    (_, full), totals = lax.scan(next_lag, (part, zero_scaled(params, 0)), length=num_steps)
    full_norm = state_norm(full.value, 0)
    norms = state_norm(totals.value, 1)
    products = jax.vmap(lambda total: optax.tree.vdot(total, full.value))(totals.value)
    shares = scaled_log(norms, totals.exponent) - scaled_log(full_norm, full.exponent)
    rows = chosen - 1
    return TruncationBias(chosen, jnp.exp(shares)[rows], (products / (norms * full_norm))[rows])


def _check_windows(windows: Array, num_steps: int) -> None:
    whole = windows.ndim == 1 and windows.size > 0 and jnp.issubdtype(windows.dtype, jnp.integer)
    if whole and not isinstance(windows, jax.core.Tracer):
        whole = int(windows.min()) >= 1 and int(windows.max()) <= num_steps
    if not whole:
        raise ValueError(
            f"windows are {windows}, but a list of whole numbers in 1..{num_steps} is wanted"
        )
