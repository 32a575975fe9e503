"""Inputs checked before anything is measured: shapes, and where the first NaN or inf is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import Cell
from rnn_jax.types import Array, Params, State, StepLosses
from rnn_jax.unroll import unroll, zero_perturbations


def is_concrete(tree: State) -> bool:
    """Whether the arrays hold numbers, not the tracers of `jit`, `vmap` or `grad`."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def first_nonfinite(tree: State) -> str | None:
    """Path and index of the first NaN or inf in a pytree of numbers; None if all are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            continue
        bad = ~np.isfinite(values)
        if bad.any():
            index = tuple(int(i) for i in np.unravel_index(np.argmax(bad), values.shape))
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return f"{name}{list(index)}".lstrip(".") + f" is {values[index]}"
    return None


def check_finite(params: Params, state: State, xs: Array) -> None:
    """`ValueError` naming the first NaN or inf, inputs before weights.

    Under `jit` or `vmap` there are no numbers to look at: there a NaN goes through to the result.
    """
    for name, tree in (("xs", xs), ("state", state), ("params", params)):
        if is_concrete(tree) and (where := first_nonfinite(tree)):
            raise ValueError(f"{name} is not finite: {where}; mend it before measuring gradients")


def check_states(states: State, before: int = 0, num_steps: int | None = None) -> None:
    """`ValueError` naming the time step at which states first leave the finite range.

    Args:
        states: leaves `[N, ...]`.
        before: number of steps that came before these.
        num_steps: T, if these states are only a part of the sequence.
    """
    if not is_concrete(states):
        return
    if (step := _first_step(states)) is not None:
        step += before
        num_steps = num_steps or jax.tree.leaves(states)[0].shape[0]
        raise ValueError(
            f"the states leave the finite range at time step {step} of {num_steps}: the forward "
            "pass explodes before any gradient; lower the weights or the inputs, or shorten xs"
        )


def check_step_losses(losses: Array, batch_shape: tuple[int, ...], num_steps: int) -> None:
    """`ValueError` naming both shapes unless step_losses returned `[T, B]`."""
    wanted = (num_steps, *batch_shape)
    if jnp.shape(losses) != wanted:
        raise ValueError(
            f"step_losses returned shape {jnp.shape(losses)}, but the states want {wanted}: one "
            "loss for each time step and example, averaged over neither"
        )


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


def origin_of_nonfinite(
    cell: Cell, params: Params, state: State, xs: Array, step_losses: StepLosses
) -> Origin:
    """ "My loss became NaN: where did it start?": inputs first, then forward, then backward.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`.

    Returns:
        An `Origin`. Not for `jit`: it looks at the numbers.
    """
    for name, tree in (("xs", xs), ("state", state), ("params", params)):
        if where := first_nonfinite(tree):
            step = _first_step(tree) if name == "xs" else None
            return Origin(name, step or 0, f"{name} is not finite before anything runs: {where}")
    states = unroll(cell, params, state, xs)
    if (step := _first_step(states)) is not None:
        return Origin("states", step, f"the states leave the finite range at time step {step}")
    losses = step_losses(states)
    check_step_losses(losses, xs.shape[1:-1], xs.shape[0])
    if (step := _first_step(losses)) is not None:
        return Origin("losses", step, f"the loss of time step {step} is not finite, its states are")

    def total(params: Params, perturbations: State) -> Array:
        return jnp.sum(step_losses(unroll(cell, params, state, xs, perturbations=perturbations)))

    gradients, adjoints = jax.grad(total, (0, 1))(params, zero_perturbations(state, xs.shape[0]))
    backward = jax.tree.map(lambda a: a[::-1], adjoints)
    if (reverse_step := _first_step(backward)) is not None:
        step = xs.shape[0] + 1 - reverse_step
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


def _first_step(tree: State) -> int | None:
    """First index from 1 along the time axis with a NaN or inf in any leaf."""
    bad = [
        ~np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
        for leaf in jax.tree.leaves(tree)
    ]
    steps = np.any(bad, axis=0)
    return 1 + int(np.argmax(steps)) if steps.any() else None
