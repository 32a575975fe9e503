"""Which leaves of a scan's carry are recurrent state.

A leaf is, if it is floating and its new value is computed from its own old one, directly or by way
of other leaves. A value that is only held, moved, overwritten, added to, or limited by a maximum
goes on as it is, and computes nothing: a counter, an accumulated loss, the last output kept, a
buffer that is filled, are no state. A leak, `0.9 * s + x`, is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rnn_jax.scans.equations import (
    Equation,
    Jaxpr,
    differentiable,
    is_literal,
    kind_of,
    programs_of,
    scan_layout,
)


class Origins(NamedTuple):
    """The carry leaves that a value comes from, as bits of two sets.

    Attributes:
        held: leaves that reach it unchanged, as a summand or as some of its elements.
        used: leaves that it is computed from.
    """

    held: int = 0
    used: int = 0


NOTHING = Origins()

MOVES = {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "copy_p",
    "max",
    "min",
    "optimization_barrier",
    "pad",
    "pvary",
    "reduce_precision",
    "reshape",
    "reshard",
    "rev",
    "sharding_constraint",
    "slice",
    "split",
    "squeeze",
    "transpose",
    "unstack",
}
"""Primitives whose results are elements of their operands, whatever operand they come from."""

INDEXED_MOVES = {"dynamic_slice": 1, "dynamic_update_slice": 2, "gather": 1}
"""Primitives that move elements of so many operands; the operands after them are indices."""

SCATTERS = {"scatter", "scatter-add", "scatter_add"}


def recurrent_leaves(body: Jaxpr, num_consts: int, num_carry: int) -> tuple[int, ...]:
    """Positions in the carry of the leaves that are recurrent state, in order."""
    nothing = [NOTHING] * len(body.invars)
    inputs = list(nothing)
    floating = [n for n in range(num_carry) if differentiable(body.invars[num_consts + n].aval)]
    for n in floating:
        inputs[num_consts + n] = Origins(held=1 << n)
    results = _flow(body, inputs)[:num_carry]
    reach = {n: results[n].held | results[n].used for n in floating}
    for middle in floating:
        for n in floating:
            if reach[n] >> middle & 1:
                reach[n] |= reach[middle]
    # On a cycle of leaves, one of which is computed from the one before.
    cyclic = {n: {m for m in floating if reach[n] >> m & 1 and reach[m] >> n & 1} for n in floating}
    return tuple(
        n for n in floating if any(results[a].used >> b & 1 for a in cyclic[n] for b in cyclic[n])
    )


def carries_state(eqn: Equation) -> bool:
    """Whether a while loop has recurrent state in its carry."""
    body = eqn.params["body_jaxpr"].jaxpr
    return bool(recurrent_leaves(body, eqn.params["body_nconsts"], len(body.outvars)))


def _used(origins: Sequence[Origins]) -> Origins:
    total = 0
    for o in origins:
        total |= o.held | o.used
    return Origins(0, total)


def _either(origins: Sequence[Origins]) -> Origins:
    held = used = 0
    for o in origins:
        held |= o.held
        used |= o.used
    return Origins(held, used)


def _flow(jaxpr: Jaxpr, inputs: Sequence[Origins]) -> list[Origins]:
    """The origins of a jaxpr's results, from those of its inputs."""
    env: dict[Any, Origins] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Origins:
        return NOTHING if is_literal(atom) else env.get(atom, NOTHING)

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if any(o != NOTHING for o in operands):
            env.update(zip(eqn.outvars, _through(eqn, operands), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _through(eqn: Equation, operands: list[Origins]) -> list[Origins]:
    name, kind, count = eqn.primitive.name, kind_of(eqn), len(eqn.outvars)
    if kind in ("jit", "remat", "call", "custom", "shard_map"):
        return _flow(programs_of(eqn)[0].jaxpr, operands)
    if kind == "cond":
        branches = [_flow(p.jaxpr, operands[1:]) for p in programs_of(eqn)]
        chosen = _used(operands[:1]).used
        results = [_either(results) for results in zip(*branches, strict=True)]
        return [Origins(r.held, r.used | chosen) for r in results]
    if kind == "scan":
        return _through_scan(eqn, operands)
    if name in MOVES:
        return [_either(operands)] * count
    if name in INDEXED_MOVES or name in SCATTERS:
        moved = INDEXED_MOVES.get(name, 1)
        values, indices = operands[:moved], operands[moved:]
        if name in SCATTERS:
            values, indices = [operands[0], operands[2]], [operands[1]]
        return [_either([*values, _used(indices)])] * count
    if name == "select_n":
        return [_either([_used(operands[:1]), *operands[1:]])]
    if name in ("add", "add_any", "sub"):
        left, right = operands
        if name == "sub":
            right = _used([right])
        twice = left.held & right.held
        return [Origins((left.held | right.held) & ~twice, left.used | right.used | twice)]
    return [_used(operands)] * count


def _through_scan(eqn: Equation, operands: list[Origins]) -> list[Origins]:
    """The carry's origins grow from step to step until they stay as they are."""
    num_consts, num_carry = scan_layout(eqn)
    end = num_consts + num_carry
    carry = operands[num_consts:end]
    while True:
        results = _flow(
            programs_of(eqn)[0].jaxpr, [*operands[:num_consts], *carry, *operands[end:]]
        )
        grown = [_either(pair) for pair in zip(carry, results[:num_carry], strict=True)]
        if grown == carry:
            return [*carry, *results[num_carry:]]
        carry = grown
