"""Nested checkpointing: the gradient's way back where the states of all steps do not fit."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import bptt
from rnn_jax.bptt import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.backward import LastStep, adjoint_step, last_immediate
from rnn_jax.gradflow.scaled import Scaled, rescale
from rnn_jax.types import Array, Params, State, StepLosses
from rnn_jax.unroll import check_fit, run_forward, valid_steps


def segmented(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses | LastStep,
    lengths: Array | None,
    segment_length: int,
    measure: Callable[[Scaled], Any],
) -> Array:
    """Nested checkpointing: only the states between segments are kept on the way forward."""
    if not isinstance(step_losses, LastStep):
        raise ValueError(
            "segment_length wants a loss of the last step, but step_losses is a function of all "
            "states; wrap it as gradflow.LastStep(loss of s_T)"
        )
    check_fit(cell, params, state, xs)
    num_steps = xs.shape[0]
    if not 1 <= segment_length <= num_steps:
        raise ValueError(
            f"segment_length is {segment_length}, but must be in 1..{num_steps}, the steps in xs"
        )
    finite.check_finite(params, state, xs)
    valid = None if lengths is None else valid_steps(lengths, xs)
    # What does not fill a segment comes first, as a segment of its own.
    head = num_steps % segment_length

    def forward(start: State, inputs: tuple[Array, Array | None]) -> Trajectory:
        return run_forward(cell, params, start, inputs[0], valid=inputs[1])

    def skip(start: State, inputs: tuple[Array, Array | None]) -> tuple[State, State]:
        states = forward(start, inputs).states
        return jax.tree.map(lambda s: s[-1], states), start

    def split(a: Array) -> Array:
        return a[head:].reshape(-1, segment_length, *a.shape[1:])

    def back(future: Scaled, segment: Any) -> tuple[Scaled, Array]:
        start, inputs = segment
        trajectory = forward(start, inputs)
        linearization = bptt.linearize(cell, params, trajectory)
        step = functools.partial(adjoint_step, linearization, measure)
        return lax.scan(step, future, (None, linearization.locals, trajectory.valid), reverse=True)

    first = jax.tree.map(lambda a: a[:head], (xs, valid))
    rest = jax.tree.map(split, (xs, valid))
    after_head = skip(state, first)[0] if head else state
    final, starts = lax.scan(skip, after_head, rest)
    if finite.is_concrete(final) and finite.first_nonfinite(final):
        # Only now are the states looked at one by one, a segment at a time.
        if head:
            finite.check_states(forward(state, first).states, 0, num_steps)
        for index in range(num_steps // segment_length):
            start, inputs = jax.tree.map(lambda a, i=index: a[i], (starts, rest))
            before = head + index * segment_length
            finite.check_states(forward(start, inputs).states, before, num_steps)
    immediate = last_immediate(step_losses, final, xs.shape[1:-1])
    adjoint_now = rescale(immediate, jnp.zeros(xs.shape[1:-1], jnp.int32))
    adjoint_now, logs = lax.scan(back, adjoint_now, (starts, rest), reverse=True)
    logs = logs.reshape(-1, *logs.shape[2:])
    if not head:
        return logs
    return jnp.concatenate([back(adjoint_now, (state, first))[1], logs])
