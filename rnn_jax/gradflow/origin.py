"""Where a NaN or inf began, for who finds one: inputs first, then forward, then backward."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rnn_jax.cells import Cell
from rnn_jax.checks import batch_shape_of, check_fit, num_steps_of
from rnn_jax.gradflow.finite import first_nonfinite, first_step
from rnn_jax.gradflow.losses import (
    Immediate,
    LastStep,
    Losses,
    check_kind,
    immediate_gradients,
    loss_values,
)
from rnn_jax.placement import on_its_mesh
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import fill_padding, unroll, valid_steps, zero_perturbations


class Origin(NamedTuple):
    """Where a NaN or inf began.

    Attributes:
        where: "xs", "state", "params", "states", "losses", "adjoints", "gradients"
            or "" if all is finite.
        step: time step (from 1) at which it began; in the adjoints the last such step, since they
            run backward. 0 where time plays no part.
        what: one line for the user.
    """

    where: str
    step: int
    what: str


@on_its_mesh
def origin_of_nonfinite(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    *,
    lengths: Array | None = None,
) -> Origin:
    """ "My loss became NaN: where did it start?": inputs first, then forward, then backward.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`, a `LastStep` or an `Immediate`, whose e_t is then looked
            at in the loss's place.
        lengths: `[B]`; inputs and losses on padding do not count.

    Returns:
        An `Origin`. Not for `jit`: it looks at the numbers.

    Raises:
        ValueError: shapes that do not fit.
    """
    xs = check_fit(cell, params, state, xs)
    num_steps, batch_shape = num_steps_of(xs), batch_shape_of(cell, params, state, xs)
    check_kind(step_losses, state, num_steps)
    valid = None if lengths is None else valid_steps(lengths, xs, batch_shape)
    xs = fill_padding(xs, valid)
    for name, tree in (("xs", xs), ("state", state), ("params", params)):
        if where := first_nonfinite(tree):
            step = first_step(tree) if name == "xs" else None
            return Origin(name, step or 0, f"{name} is not finite before anything runs: {where}")
    states = unroll(cell, params, state, xs, lengths=lengths)
    if (step := first_step(states)) is not None:
        return Origin("states", step, f"the states leave the finite range at time step {step}")
    if isinstance(step_losses, Immediate):
        # Its e_t stands for the loss in what follows: the gradient of sum_t e_t . s_t is the same.
        immediate = immediate_gradients(step_losses, states, batch_shape, valid)
        if (step := first_step(immediate)) is not None:
            return Origin("losses", step, f"e_t is not finite at time step {step}, the states are")
    else:
        losses = loss_values(step_losses, states, batch_shape, valid)
        every = losses[None] if isinstance(step_losses, LastStep) else losses
        if (step := first_step(every)) is not None:
            step = num_steps if isinstance(step_losses, LastStep) else step
            return Origin(
                "losses", step, f"the loss of time step {step} is not finite, its states are"
            )

    def total(params: Params, perturbations: State) -> Array:
        states = unroll(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
        if isinstance(step_losses, Immediate):
            return optax.tree.vdot(immediate, states)
        return jnp.sum(loss_values(step_losses, states, batch_shape, valid))

    gradients, adjoints = jax.grad(total, (0, 1))(params, zero_perturbations(state, num_steps))
    backward = jax.tree.map(lambda a: a[::-1], adjoints)
    if (reverse_step := first_step(backward)) is not None:
        step = num_steps + 1 - reverse_step
        return Origin(
            "adjoints",
            step,
            f"going back, |dL/ds_t| leaves the finite range at time step {step}: it explodes, or "
            "that step's loss has no finite derivative",
        )
    if where := first_nonfinite(gradients):
        return Origin(
            "gradients", 0, f"dL/ds_t is finite at every step, but dL/dtheta is not: {where}"
        )
    return Origin("", 0, "all is finite: inputs, states, losses and gradients")
