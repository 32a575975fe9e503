"""The three ways to give a loss, and the direct gradient e_t of each example from any of them."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.bptt import where_valid
from rnn_jax.gradflow import finite
from rnn_jax.placement import filled
from rnn_jax.types import Array, State, StepLosses
from rnn_jax.unroll import zero_perturbations


class LastStep(NamedTuple):
    """A loss at the last step only, given as such: it needs no e_t for the other steps.

    Attributes:
        loss: `s_T, leaves [B, H] -> [B]`.
    """

    loss: Callable[[State], Array]


class Immediate(NamedTuple):
    """The direct gradient e_t itself, where the loss is not at hand as a function of the states.

    Attributes:
        gradients: e_t, the part of dL/ds_t that does not go through the recurrence, leaves
            `[T, B, H]`. L is each example's own loss: where the loss at hand is their mean, its
            gradient times B.
    """

    gradients: State


Losses: TypeAlias = StepLosses | LastStep | Immediate
"""What `step_losses` may be: `states -> [T, B]`, a `LastStep` or an `Immediate`."""


def check_losses(losses: Losses, state: State, num_steps: int, valid: Array | None = None) -> None:
    """`ValueError` unless `losses` is one of the three; of an `Immediate` shapes and numbers too.

    Args:
        losses: as the user gave it.
        state: s_0, leaves `[B, H]`.
        num_steps: T.
        valid: `[T, B]`, False on padding, where e_t may be anything; None where there is none.
    """
    check_kind(losses, state, num_steps)
    if isinstance(losses, Immediate):
        counted = _counted(losses.gradients, valid)
        if finite.is_concrete(counted) and (where := finite.first_nonfinite(counted)):
            raise ValueError(f"Immediate is not finite: {where}; fix the loss that it comes from")


def check_kind(losses: Losses, state: State, num_steps: int) -> None:
    """`check_losses` but for NaN and inf."""
    if isinstance(losses, Immediate):
        like = jax.eval_shape(lambda s: zero_perturbations(s, num_steps), state)
        shapes, wanted = (jax.tree.map(jnp.shape, tree) for tree in (losses.gradients, like))
        if shapes != wanted:
            raise ValueError(
                f"Immediate has shape {shapes}, but the states have {wanted}: give e_t of every "
                "time step and example"
            )
    elif not isinstance(losses, LastStep) and not callable(losses):
        raise ValueError(
            f"step_losses is of type {type(losses).__name__}; give a function states -> [T, B], a "
            "gradflow.LastStep(s_T -> [B]), or e_t itself as gradflow.Immediate(e)"
        )


def loss_values(
    losses: StepLosses | LastStep,
    states: State,
    batch_shape: tuple[int, ...],
    valid: Array | None = None,
) -> Array:
    """Each example's loss of each step, `[T, B]`; 0 on padding. `[B]` for a `LastStep`.

    Args:
        losses: of two kinds; an `Immediate` has no value.
        states: s_1..s_T, leaves `[T, B, H]`; on padding each is the last true one.
        batch_shape: B.
        valid: `[T, B]`, False on padding; None where there is none.

    Raises:
        ValueError: the function returned another shape.
    """
    if isinstance(losses, LastStep):
        return _last_values(losses, jax.tree.map(lambda s: s[-1], states), batch_shape)
    if valid is not None:
        # Targets on padding may hold anything, and 0 times the derivative of it is not always 0.
        states = where_valid(valid, states, lax.stop_gradient(states))
    values = losses(states)
    finite.check_step_losses(values, batch_shape, jax.tree.leaves(states)[0].shape[0])
    return values if valid is None else jnp.where(valid, values, 0)


def immediate_gradients(
    losses: Losses,
    states: State,
    batch_shape: tuple[int, ...],
    valid: Array | None = None,
) -> State:
    """e_t of each example, leaves `[T, B, H]`, exactly 0 on padding; e_T alone of a `LastStep`.

    Arguments and errors as in `loss_values`; leaves `[B, H]` for a `LastStep`.
    """
    if isinstance(losses, LastStep):
        return last_immediate(losses, jax.tree.map(lambda s: s[-1], states), batch_shape)
    if isinstance(losses, Immediate):
        immediate = jax.tree.map(lambda e, s: jnp.asarray(e, s.dtype), losses.gradients, states)
    else:
        values, pullback = jax.vjp(
            lambda states: loss_values(losses, states, batch_shape, valid), states
        )
        (immediate,) = pullback(jnp.ones_like(values))
    return _counted(immediate, valid)


def last_immediate(last: LastStep, final: State, batch_shape: tuple[int, ...]) -> State:
    """e_T of each example, leaves `[B, H]`."""
    values, pullback = jax.vjp(lambda final: _last_values(last, final, batch_shape), final)
    return pullback(jnp.ones_like(values))[0]


def at_every_step(immediate: State, num_steps: int, valid: Array | None = None) -> State:
    """e_T, leaves `[B, H]`, as e_t of every step, leaves `[T, B, H]`: 0 but for the last true one.

    Args:
        immediate: of a `LastStep`.
        num_steps: T.
        valid: `[T, B]`, False on padding; None where there is none.
    """
    if valid is None:
        return jax.tree.map(
            lambda e: jnp.concatenate([filled(0, e.dtype, e, e.ndim, (num_steps - 1,)), e[None]]),
            immediate,
        )
    last = valid & ~jnp.concatenate([valid[1:], jnp.zeros_like(valid[:1])])
    every = jax.tree.map(lambda e: jnp.broadcast_to(e[None], (num_steps, *e.shape)), immediate)
    return where_valid(last, every, jax.tree.map(jnp.zeros_like, every))


def with_batch_axis(losses: Losses) -> Losses:
    """Losses of one example's states, as those of a batch of one."""

    def on_batch(function: Callable[[State], Array], axis: int) -> Callable[[State], Array]:
        def values(states: State) -> Array:
            single = jax.tree.map(lambda s: jnp.squeeze(s, axis), states)
            return jnp.expand_dims(function(single), axis)

        return values

    if isinstance(losses, LastStep):
        return LastStep(on_batch(losses.loss, 0))
    if isinstance(losses, Immediate):
        return Immediate(jax.tree.map(lambda e: jnp.expand_dims(e, 1), losses.gradients))
    return on_batch(losses, 1)


def _counted(immediate: State, valid: Array | None) -> State:
    return where_valid(valid, immediate, jax.tree.map(jnp.zeros_like, immediate))


def _last_values(last: LastStep, final: State, batch_shape: tuple[int, ...]) -> Array:
    values = last.loss(final)
    if jnp.shape(values) != batch_shape:
        raise ValueError(
            f"LastStep's loss returned shape {jnp.shape(values)}, but the batch has {batch_shape}: "
            "one loss for each example"
        )
    return values
