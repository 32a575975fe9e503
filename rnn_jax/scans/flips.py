"""Sequences that were reversed before they were scanned.

Flax's `RNN(reverse=True)` flips its inputs, by `jnp.flip` or, with `seq_lengths`, each example by
itself, and scans forward. Its adjoints are shown in the order of the sequence that it was given.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from rnn_jax.scans.equations import (
    Equation,
    Jaxpr,
    Var,
    differentiable,
    is_literal,
    kind_of,
    programs_of,
    scan_layout,
)
from rnn_jax.scans.names import in_function
from rnn_jax.types import Array


class Order(NamedTuple):
    """Which step of the given sequence a scan reads at each of its own steps.

    Attributes:
        flipped: the whole sequence, last step first.
        variable: that holds each example's order instead; None where there is none.
        arrange: its value -> `[T, *batch, 1, ...]`.
    """

    flipped: bool
    variable: Var | None = None
    arrange: Callable[[Array], Array] | None = None


def order_of(jaxpr: Jaxpr, number: int) -> Order | None:
    """How the inputs of a scan were flipped before it; None unless all its sequences were."""
    eqn = jaxpr.eqns[number]
    num_consts, num_carry = scan_layout(eqn)
    scanned = [v for v in eqn.invars[num_consts + num_carry :] if not is_literal(v)]
    # Keys and counters are scanned over beside the sequence, and stay in order.
    sequences = [v for v in scanned if differentiable(v)]
    orders = [_trace_back(jaxpr, v) for v in sequences]
    if not orders or any(order is None for order in orders):
        return None
    return orders[0]


def in_scan_order(order: Order, zeros: Array, index: Array | None) -> Array:
    """Zeros `[T, ...]` in the given order -> in the order in which the scan reads them."""
    if order.flipped:
        return jnp.flip(zeros, 0)
    assert index is not None
    assert order.arrange is not None
    index = order.arrange(index)
    # The examples' axes are those before the first of size 1; s_t has as many, and units after.
    batch = index.shape[: index.ndim - _trailing_ones(index.shape)]
    index = index.reshape(batch + (1,) * (zeros.ndim - len(batch)))
    return jnp.take_along_axis(zeros, index, axis=0)


def _trailing_ones(shape: tuple[int, ...]) -> int:
    count = 0
    while count < len(shape) - 1 and shape[-1 - count] == 1:
        count += 1
    return count


def _trace_back(jaxpr: Jaxpr, var: Var) -> Order | None:
    """Goes back from a scanned-over variable through changes of its layout to a flip."""
    axis, to_front = 0, list(range(len(var.aval.shape)))
    while True:
        eqn = next((e for e in jaxpr.eqns if var in e.outvars), None)
        if eqn is None:
            return None
        name = eqn.primitive.name
        if name in ("convert_element_type", "copy", "copy_p", "sharding_constraint"):
            pass
        elif name == "transpose":
            permutation = eqn.params["permutation"]
            axis = permutation[axis]
            to_front = [permutation[n] for n in to_front]
        elif _reverses(eqn, axis):
            return Order(True)
        elif _flips_each(eqn) and len(eqn.invars[1].aval.shape) == len(to_front):
            return Order(False, eqn.invars[1], _transpose(to_front))
        else:
            return None
        var = eqn.invars[0]


def _transpose(permutation: list[int]) -> Callable[[Array], Array]:
    return lambda index: index.transpose(permutation)


def _reverses(eqn: Equation, axis: int) -> bool:
    if eqn.primitive.name == "rev":
        return axis in eqn.params["dimensions"]
    if kind_of(eqn) == "jit" and len(eqn.invars) == len(eqn.outvars) == 1:
        inner = programs_of(eqn)[0].jaxpr.eqns
        return len(inner) == 1 and _reverses(inner[0], axis)
    return False


def _flips_each(eqn: Equation) -> bool:
    """The step of Flax's `flip_sequences` that applies an order of its own to each example."""
    return (
        kind_of(eqn) == "jit"
        and eqn.params["name"] == "take_along_axis"
        and in_function(eqn, "flip_sequences")
    )
