"""Inputs checked before anything is measured: shapes, and where the first NaN or inf is."""

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.checks import check_examples
from rnn_jax.types import Array, Params, State


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
            place = list(index) if index else ""
            return f"{name}{place}".lstrip(".") + f" is {values[index]}"
    return None


def check_finite(params: Params, state: State, xs: Array) -> None:
    """`ValueError` for an empty batch, and naming the first NaN or inf, inputs before weights.

    Under `jit` or `vmap` there are no numbers to look at: there a NaN goes through to the result.
    """
    check_examples(xs)
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
    if (step := first_step(states)) is not None:
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


def first_step(tree: State) -> int | None:
    """First index from 1 along the time axis with a NaN or inf in any leaf."""
    bad = [
        ~np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
        for leaf in jax.tree.leaves(tree)
    ]
    steps = np.any(bad, axis=0)
    return 1 + int(np.argmax(steps)) if steps.any() else None
