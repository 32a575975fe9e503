"""How much each loss depends on each state: dL_t/ds_k for every pair (t, k)."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import adjoint
from rnn_jax.adjoint import Linearization
from rnn_jax.cells import Cell
from rnn_jax.gradflow.scaled import NO_EXPONENT, Scaled, exponent_of, scaled_log, times_power
from rnn_jax.gradflow.states import LastStep, prepare
from rnn_jax.norms import per_example, state_norm
from rnn_jax.types import Array, Params, State, StepLosses


def credit_matrix(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses,
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
        step_losses: `states -> [T, B]`; L_t must depend on s_t alone.
        lengths: `[B]`; what lies on padding counts as zero.
        max_rows: how many rows are carried at once; memory is about 4 * max_rows states of the
            batch. A quarter of T unless given, which is near the fastest.

    Returns:
        `[T, T]` in nats; -inf exactly where k > t, and where the derivative is exactly zero.

    Raises:
        ValueError: as in `state_gradients`.

    All rows of a block go back together, `max_rows * B` at a time, so T backward passes cost few
    large matrix products. Summed over t as vectors, dL_t/ds_k is lambda_k (`state_gradients`).
    """
    if isinstance(step_losses, LastStep):
        raise ValueError(
            "credit_matrix wants the losses of all steps, but got a LastStep; its one row is "
            "state_gradients"
        )
    num_steps = xs.shape[0]
    rows = math.ceil(num_steps / 4) if max_rows is None else max_rows
    if rows < 1:
        raise ValueError(f"max_rows is {max_rows}; give at least 1")
    trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    linearization = adjoint.linearize(cell, params, trajectory)
    valid = trajectory.valid
    if valid is not None:
        immediate = adjoint.where_valid(valid, immediate, jax.tree.map(jnp.zeros_like, immediate))
    # L_t cannot depend on a later state, so a block of rows ends at its own last step.
    blocks = [
        _block_rows(
            linearization, immediate, valid, xs.ndim - 2, first, min(first + rows, num_steps)
        )
        for first in range(0, num_steps, rows)
    ]
    logs = jnp.concatenate(
        [
            jnp.pad(
                block,
                [(0, 0), (0, num_steps - block.shape[1])] + [(0, 0)] * (block.ndim - 2),
                constant_values=-jnp.inf,
            )
            for block in blocks
        ]
    )
    return _log_root_mean_square(logs.reshape(num_steps, num_steps, -1))


def _block_rows(
    linearization: Linearization,
    immediate: State,
    valid: Array | None,
    batch_ndim: int,
    first: int,
    stop: int,
) -> Array:
    """ln|dL_t/ds_k| `[stop - first, stop, *batch]` for first <= t < stop and k < stop.

    Norms are taken in one pass, squares summed as they are. Only where one left the range (a step
    that changes a vector by a factor of 1e15 at once) is everything done again with care.
    """
    own = jax.tree.map(lambda e: e[first:stop], immediate)
    run = functools.partial(_run_back, linearization, own, valid, batch_ndim, first, stop)
    norm, exponent = run(_plain_norm)
    limits = jnp.finfo(norm.dtype)
    low, high = 2.0 ** (limits.minexp // 4), 2.0 ** (limits.maxexp // 4)
    safe = ((norm > low) & (norm < high)) | (exponent == NO_EXPONENT)
    logs = lax.cond(
        jnp.all(safe),
        lambda: scaled_log(norm, exponent),
        lambda: scaled_log(*run(state_norm)),
    )
    if valid is not None:
        logs = jnp.where(jnp.broadcast_to(valid[:stop, None], logs.shape), logs, -jnp.inf)
    return jnp.swapaxes(logs, 0, 1)


def _run_back(
    linearization: Linearization,
    own: State,
    valid: Array | None,
    batch_ndim: int,
    first: int,
    stop: int,
    norm_of: Callable[[State, int], Array],
) -> tuple[Array, Array]:
    """Norm and exponent, `[stop, stop - first, *batch]`, of every row at every step k < stop."""
    pull = jax.vmap(linearization.pull, in_axes=(0, None))

    def back(rows: Scaled, inputs: Any) -> tuple[Scaled, tuple[Array, Array]]:
        local, valid_k = inputs
        norm = norm_of(rows.value, batch_ndim + 1)
        usable = (norm > 0) & jnp.isfinite(norm)
        scale = lax.stop_gradient(jnp.where(usable, exponent_of(norm), 0))
        exponent = jnp.where(norm == 0, NO_EXPONENT, rows.exponent)
        past = Scaled(pull(times_power(rows.value, -scale), local), exponent + scale)
        if valid_k is not None:
            past = adjoint.where_valid(jnp.broadcast_to(valid_k[None], norm.shape), past, rows)
        return past, (norm, exponent)

    def start_row(rows: Scaled, inputs: Any) -> tuple[Scaled, tuple[Array, Array]]:
        row, *inputs = inputs

        def put(into: Array, new: Array) -> Array:
            return lax.dynamic_update_index_in_dim(into, new[row], row, 0)

        value = jax.tree.map(put, rows.value, own)
        return back(Scaled(value, put(rows.exponent, jnp.zeros_like(rows.exponent))), inputs)

    leading = jax.tree.leaves(own)[0].shape[: 1 + batch_ndim]
    rows = Scaled(jax.tree.map(jnp.zeros_like, own), jnp.full(leading, NO_EXPONENT, jnp.int32))
    steps = linearization.locals, valid
    inside = jax.tree.map(lambda a: a[first:stop], steps)
    before = jax.tree.map(lambda a: a[:first], steps)
    rows, late = lax.scan(start_row, rows, (jnp.arange(stop - first), *inside), reverse=True)
    _, early = lax.scan(back, rows, before, reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)


def _plain_norm(value: State, batch_axes: int) -> Array:
    leaves = (per_example(leaf, batch_axes) for leaf in jax.tree.leaves(value))
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), axis=-1) for leaf in leaves))


def _log_root_mean_square(logs: Array) -> Array:
    """ln sqrt(mean exp(2 logs)) over the last axis; -inf where all are."""
    return 0.5 * (jax.nn.logsumexp(2 * logs, axis=-1) - math.log(logs.shape[-1]))
