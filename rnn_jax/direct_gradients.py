"""The direct gradient e_t of a recurrence in any loss: what does not go through the next state."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.scans import Program, Slots, capture, evaluate, make_cut
from rnn_jax.tap import cut, tap
from rnn_jax.traced_loss import TracedLoss
from rnn_jax.types import Array


def direct_gradients(
    traced: TracedLoss, slots: Slots, read: Callable[..., Any]
) -> tuple[tuple[Array, Any], list[Array]]:
    """e_t of a recurrence in a loss: its gradient with every state cut from the next one's.

    Args:
        traced: the loss.
        slots: of the recurrence.
        read: `(eqn, values) -> pytree`, what to take along from where it runs.

    Returns:
        What `read` returned, and e_t of each leaf, `[*outer, T, ...]`.
    """
    jaxpr, consts = traced.program
    recurrence = slots.recurrence
    sizes = tuple(outer.size for outer in recurrence.outer)
    count = math.prod(sizes)
    plan = make_cut(jaxpr, slots, cut if sizes else _cut_everywhere)
    types = dict(zip(slots.slots, (leaf.aval for leaf in recurrence.leaves), strict=True))

    @jax.jit
    def both(consts: Any, leaves: Any) -> Any:
        program = Program(jaxpr, consts)

        def loss(marks: Any) -> Array:
            return evaluate(program, plan, marks, leaves)[0]

        def of_instance(number: Array) -> dict[int, Array]:
            """One instance is cut, and those of later steps of the outer scans are not."""
            here = (jnp.arange(count) == number).reshape(*sizes, 1)
            marks = {
                slot: jnp.broadcast_to(
                    here.reshape(*sizes, *(1,) * (1 + len(aval.shape))),
                    (*sizes, recurrence.num_steps, *aval.shape),
                ).astype(aval.dtype)
                for slot, aval in types.items()
            }
            flat = jax.tree.map(
                lambda g: g.reshape(count, *g.shape[len(sizes) :]), jax.grad(loss)(marks)
            )
            return jax.tree.map(lambda g: g[number], flat)

        gradients = lax.map(of_instance, jnp.arange(count))
        gradients = jax.tree.map(lambda g: g.reshape(*sizes, *g.shape[1:]), gradients)
        return capture(program, recurrence.path, leaves, read), gradients

    captured, by_slot = both(list(consts), traced.leaves)
    # Leaves that are one variable share their e_t: it counts once.
    first = {slot: n for n, slot in reversed([*enumerate(slots.slots)])}
    gradients = [
        by_slot[slot] if first[slot] == n else jnp.zeros_like(by_slot[slot])
        for n, slot in enumerate(slots.slots)
    ]
    return captured, gradients


def _cut_everywhere(value: Array, mark: Array) -> Array:
    return tap(lax.stop_gradient(value), mark)


def on_valid_steps(gradient: Array, valid: Array | None) -> Array:
    """e_t of a state that stays as it was on padding: what reaches it there is its last step's."""
    if valid is None:
        return gradient
    mask = jnp.broadcast_to(
        valid.reshape(*valid.shape, *(1,) * (gradient.ndim - valid.ndim)), gradient.shape
    )
    padding = jnp.sum(jnp.where(mask, 0, gradient), axis=0, keepdims=True)
    last = mask & ~jnp.concatenate([mask[1:], jnp.zeros_like(mask[:1])])
    return jnp.where(mask, gradient, 0) + jnp.where(last, padding, 0)
