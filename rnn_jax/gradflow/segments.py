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
from rnn_jax.checks import num_steps_of
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.arguments import checked
from rnn_jax.gradflow.backward import adjoint_step, zero_scaled
from rnn_jax.gradflow.fallback import with_fallback
from rnn_jax.gradflow.losses import (
    Immediate,
    LastStep,
    Losses,
    check_losses,
    last_immediate,
)
from rnn_jax.gradflow.scaled import Scaled, rescale
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import run_forward


def segmented(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    lengths: Array | None,
    segment_length: int,
    measure: Callable[[Scaled], Any],
) -> Array:
    """Nested checkpointing: only the states between segments are kept on the way forward."""
    params, state, xs, valid, batch_shape = checked(cell, params, state, xs, lengths)
    num_steps = num_steps_of(xs)
    check_losses(step_losses, state, num_steps, valid)
    if not isinstance(step_losses, LastStep | Immediate):
        raise ValueError(
            "segment_length wants a loss of the last step, but step_losses is a function of all "
            "states; wrap it as gradflow.LastStep(loss of s_T)"
        )
    if not 1 <= segment_length <= num_steps:
        raise ValueError(
            f"segment_length is {segment_length}, but must be in 1..{num_steps}, the steps in xs"
        )
    # What does not fill a segment comes first, as a segment of its own.
    head = num_steps % segment_length

    # e_t of every step, or None where e_T alone starts the reverse scan.
    immediate = None
    if isinstance(step_losses, Immediate):
        immediate = jax.tree.map(lambda e, s: jnp.asarray(e, s.dtype), step_losses.gradients, state)
        nothing = jax.tree.map(jnp.zeros_like, immediate)
        immediate = bptt.where_valid(valid, immediate, nothing)

    def forward(start: State, inputs: tuple[Array, Array | None]) -> Trajectory:
        return run_forward(cell, params, start, inputs[0], valid=inputs[1])

    def skip(start: State, inputs: tuple[Array, Array | None]) -> tuple[State, State]:
        states = forward(start, inputs).states
        return jax.tree.map(lambda s: s[-1], states), start

    def split(a: Array) -> Array:
        return a[head:].reshape(-1, segment_length, *a.shape[1:])

    def back(careful: bool, future: Scaled, segment: Any) -> tuple[Scaled, tuple[Any, Array]]:
        start, inputs, own = segment
        trajectory = forward(start, inputs)
        linearization = bptt.linearize(cell, params, trajectory)
        step = functools.partial(adjoint_step, linearization, measure, careful)
        return lax.scan(step, future, (own, linearization.locals, trajectory.valid), reverse=True)

    first, first_own = jax.tree.map(lambda a: a[:head], ((xs, valid), immediate))
    rest, rest_own = jax.tree.map(split, ((xs, valid), immediate))
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
    adjoint_now = zero_scaled(final, len(batch_shape))
    if isinstance(step_losses, LastStep):
        last = last_immediate(step_losses, final, batch_shape)
        adjoint_now = rescale(last, jnp.zeros_like(adjoint_now.exponent))

    def run(careful: bool) -> tuple[Any, Array]:
        step = functools.partial(back, careful)
        first_adjoint, (logs, held) = lax.scan(
            step, adjoint_now, (starts, rest, rest_own), reverse=True
        )
        logs, held = logs.reshape(-1, *logs.shape[2:]), jnp.all(held)
        if head:
            _, (first_logs, first_held) = step(first_adjoint, (state, first, first_own))
            logs, held = jnp.concatenate([first_logs, logs]), held & jnp.all(first_held)
        return logs, held

    return with_fallback(lambda: run(careful=False), lambda: run(careful=True)[0])
