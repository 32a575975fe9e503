"""How much each loss depends on each state: dL_t/ds_k for every pair (t, k)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import bptt
from rnn_jax.bptt import Linearization
from rnn_jax.cells import Cell
from rnn_jax.checks import batch_shape_of, check_fit, num_steps_of
from rnn_jax.gradflow.backward import prepare, zero_scaled
from rnn_jax.gradflow.fallback import with_fallback
from rnn_jax.gradflow.losses import LastStep, Losses
from rnn_jax.gradflow.scaled import (
    NO_EXPONENT,
    Scaled,
    apply,
    exponent_of,
    is_zero,
    rescale,
    scaled_log,
    times_power,
)
from rnn_jax.norms import per_example, state_norm
from rnn_jax.placement import batch_axes, filled, largest, mean, on_its_mesh
from rnn_jax.types import Array, Params, State


@on_its_mesh
def credit_matrix(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    *,
    lengths: Array | None = None,
    max_rows: int | None = None,
) -> Array:
    """Row t, column k: ln of the root mean square over the batch of |dL_t/ds_k|.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`; L_t must depend on s_t alone. Or an `Immediate`.
        lengths: `[B]`; losses on padding do not count.
        max_rows: how many rows are carried at once; memory is about 4 * max_rows states of the
            batch. A quarter of T unless given, which is near the fastest.

    Returns:
        `[T, T]` in nats; -inf exactly where k > t, and where the derivative is exactly zero.

    Raises:
        ValueError: as in `state_gradients`, and for a `LastStep`.

    All rows of a block go back together, `max_rows * B` at a time, so T backward passes cost few
    large matrix products. Summed over t as vectors, dL_t/ds_k is lambda_k (`state_gradients`).
    """
    if isinstance(step_losses, LastStep):
        raise ValueError(
            "credit_matrix wants the losses of all steps, but got a LastStep; its one row is "
            "state_gradients"
        )
    xs = check_fit(cell, params, state, xs)
    num_steps = num_steps_of(xs)
    batch_ndim = len(batch_shape_of(cell, params, state, xs))
    rows = math.ceil(num_steps / 4) if max_rows is None else max_rows
    if rows < 1:
        raise ValueError(f"max_rows is {max_rows}; give at least 1")
    params, trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    linearization = bptt.linearize(cell, params, trajectory)
    valid = trajectory.valid
    logs = _row_logs(linearization, immediate, valid, batch_ndim, rows)
    axes = batch_axes(params, trajectory.initial, trajectory.xs)
    return _log_root_mean_square(logs.reshape(num_steps, num_steps, -1), axes)


def _row_logs(
    linearization: Linearization, immediate: State, valid: Array | None, batch_ndim: int, rows: int
) -> Array:
    """ln|dL_t/ds_k| `[T, T, *batch]`, `rows` of them at a time.

    Norms are taken in one pass, squares summed as they are. Only where one left the range (a step
    that changes a vector by a factor of 1e9 at once) is everything done again with care.
    """
    num_steps = jax.tree.leaves(immediate)[0].shape[0]
    run = functools.partial(_rows_back, linearization, valid, batch_ndim)

    def padded(block: Array) -> Array:
        """Columns up to T for rows that ended before."""
        width = [(0, 0), (0, num_steps - block.shape[1])] + [(0, 0)] * batch_ndim
        return jnp.pad(block, width, constant_values=-jnp.inf)

    def fast() -> tuple[Array, Array]:
        blocks, held = [], []
        for first in range(0, num_steps, rows):
            # L_t cannot depend on a later state, so a block of rows ends at its own last step.
            stop = min(first + rows, num_steps)
            own = jax.tree.map(lambda e, f=first, s=stop: e[f:s], immediate)
            logs, in_range = run(own, first, stop, careful=False)
            blocks.append(padded(logs))
            held.append(in_range)
        return jnp.concatenate(blocks), jnp.all(jnp.stack(held))

    def careful() -> Array:
        count = math.ceil(num_steps / rows)

        def split(e: Array) -> Array:
            missing = [(0, count * rows - num_steps)] + [(0, 0)] * (e.ndim - 1)
            return jnp.pad(e, missing).reshape(count, rows, *e.shape[1:])

        logs = lax.map(
            lambda block: run(block[0], block[1], num_steps, careful=True)[0],
            (jax.tree.map(split, immediate), rows * jnp.arange(count)),
        )
        return logs.reshape(-1, *logs.shape[2:])[:num_steps]

    return with_fallback(fast, careful)


def _rows_back(
    linearization: Linearization,
    valid: Array | None,
    batch_ndim: int,
    own: State,
    first: int | Array,
    stop: int,
    careful: bool,
) -> tuple[Array, Array]:
    """ln|dL_t/ds_k| `[R, stop, *batch]` of the rows t = first + 0..R-1, and whether all norms held.

    `own` is e_t of those rows, leaves `[R, *batch, ...]`.
    """
    pull = jax.vmap(linearization.pull, in_axes=(0, None))
    leading = jax.tree.leaves(own)[0].shape[: 1 + batch_ndim]
    leaf = jax.tree.leaves(own)[0]
    start = rescale(own, filled(0, jnp.int32, leaf, 1 + batch_ndim))

    def back(rows: Scaled, inputs: Any) -> tuple[Scaled, tuple[Array, Array]]:
        k, local, valid_k = inputs
        starts = (k >= first) & (k < first + leading[0])
        row = jnp.clip(k - first, 0, leading[0] - 1)

        def put(into: Array, new: Array) -> Array:
            kept = lax.dynamic_index_in_dim(into, row, 0, keepdims=False)
            mine = lax.dynamic_index_in_dim(new, row, 0, keepdims=False)
            return lax.dynamic_update_index_in_dim(into, jnp.where(starts, mine, kept), row, 0)

        value = jax.tree.map(put, rows.value, start.value)
        exponent = put(rows.exponent, start.exponent)
        norm = (state_norm if careful else _plain_norm)(value, batch_ndim + 1)
        usable = (norm > 0) & jnp.isfinite(norm)
        scale = lax.stop_gradient(jnp.where(usable, exponent_of(norm), 0))
        known = jnp.where((norm == 0) & ~is_zero(exponent), exponent + NO_EXPONENT, exponent)
        if careful:
            past = apply(lambda v: pull(v, local), Scaled(value, exponent), careful)
        else:
            past = Scaled(pull(times_power(value, -scale), local), known + scale)
        if valid_k is not None:
            running = jnp.broadcast_to(valid_k[None], norm.shape)
            past = bptt.where_valid(running, past, Scaled(value, exponent))
        return past, (norm, exponent)

    idle = zero_scaled(own, 1 + batch_ndim)
    steps = jax.tree.map(lambda a: a[:stop], (linearization.locals, valid))
    _, (norm, exponent) = lax.scan(back, idle, (jnp.arange(stop), *steps), reverse=True)
    limits = jnp.finfo(norm.dtype)
    low, high = 2.0 ** (limits.minexp // 4), 2.0 ** (limits.maxexp // 4)
    # Rows that have not started, or have died, are known to be exact zeros.
    in_range = jnp.all(((norm > low) & (norm < high)) | is_zero(exponent))
    logs = scaled_log(norm, exponent)
    if valid is not None:
        logs = jnp.where(jnp.broadcast_to(valid[:stop, None], logs.shape), logs, -jnp.inf)
    return jnp.swapaxes(logs, 0, 1), in_range


def _plain_norm(value: State, batch_axes: int) -> Array:
    leaves = (per_example(leaf, batch_axes) for leaf in jax.tree.leaves(value))
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), axis=-1) for leaf in leaves))


def _log_root_mean_square(logs: Array, axes: tuple[str, ...]) -> Array:
    """ln sqrt(mean exp(2 logs)) over the last axis and the mesh's `axes`; -inf where all are."""
    most = largest(lax.stop_gradient(jnp.max(logs, axis=-1)), axes)
    scale = jnp.where(jnp.isfinite(most), most, 0)
    shares = jnp.exp(2 * (logs - jnp.broadcast_to(scale[..., None], logs.shape)))
    square = mean(shares, axes, axis=-1)
    # Of an exact zero the derivative is 0 and not NaN; a NaN stays one.
    return jnp.where(square == 0, -jnp.inf, scale + jnp.log(jnp.where(square == 0, 1, square)) / 2)
