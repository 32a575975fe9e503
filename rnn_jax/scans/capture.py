"""The operands of an equation anywhere in a program, as they are when it runs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.scans.equations import (
    Equation,
    Program,
    in_place_of,
    is_literal,
    kind_of,
    programs_of,
    run,
    scan_layout,
)
from rnn_jax.scans.evaluate import evaluate
from rnn_jax.scans.plan import Plan
from rnn_jax.types import Array

Read = Callable[[Equation, list[Any]], Any]
"""`(equation, its operands) -> what is wanted of them`, a pytree of arrays."""


def capture(
    program: Program, path: Sequence[int], args: Sequence[Any], read: Read
) -> tuple[Array, Any]:
    """What `read` returns at an equation, and whether it ran at all.

    Args:
        program: a jaxpr and its constants.
        path: to the equation, as of `Recurrence`; not through a shard_map.
        args: the program's.
        read: of the equation and its operands.

    Returns:
        A bool, False where a cond took another branch, with zeros beside it; and the result. Both
        have an axis in front for every scan around the equation.
    """
    jaxpr, (number, *rest) = program.jaxpr, path
    env = dict(zip(jaxpr.constvars, program.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns[:number]:
        results = run(eqn, [v.val if is_literal(v) else env[v] for v in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
    eqn = jaxpr.eqns[number]
    values = [v.val if is_literal(v) else env[v] for v in eqn.invars]
    if not rest:
        return jnp.ones((), bool), read(eqn, values)
    which, *deeper = rest
    inner = programs_of(eqn)[which]

    def within(*operands: Any) -> tuple[Array, Any]:
        return capture(inner, deeper, operands, read)

    with in_place_of(eqn):
        if kind_of(eqn) == "scan":
            return _every_step(eqn, inner, within, values)
        if kind_of(eqn) == "cond":
            return _if_taken(eqn, which, within, values)
        return within(*values)


def _every_step(
    eqn: Equation, inner: Program, within: Callable[..., Any], values: list[Any]
) -> tuple[Array, Any]:
    num_consts, num_carry = scan_layout(eqn)
    end = num_consts + num_carry

    def step(carry: list[Any], scanned: list[Any]) -> tuple[list[Any], Any]:
        operands = [*values[:num_consts], *carry, *scanned]
        return evaluate(inner, Plan(), {}, operands)[:num_carry], within(*operands)

    length, reverse = eqn.params["length"], eqn.params["reverse"]
    carry = values[num_consts:end]
    return lax.scan(step, carry, values[end:], length=length, reverse=reverse)[1]


def _if_taken(
    eqn: Equation, which: int, within: Callable[..., Any], values: list[Any]
) -> tuple[Array, Any]:
    index, *operands = values
    like = jax.eval_shape(within, *operands)

    def elsewhere(*operands: Any) -> tuple[Array, Any]:
        del operands
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    count = len(programs_of(eqn))
    branches = [within if n == which else elsewhere for n in range(count)]
    return lax.switch(index, branches, *operands)
