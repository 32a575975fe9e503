"""A program run with zeros in its recurrences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec, Sharding

from rnn_jax.scans.equations import (
    Equation,
    Program,
    differentiable,
    in_place_of,
    is_literal,
    kind_of,
    mesh_sizes,
    programs_of,
    run,
    scan_layout,
)
from rnn_jax.scans.flips import in_scan_order
from rnn_jax.scans.plan import Plan, Slot, Tap, slots_within
from rnn_jax.tap import tap
from rnn_jax.types import Array

Zeros = Mapping[Slot, Array]
Body = Callable[..., list[Any]]


def evaluate(program: Program, plan: Plan, zeros: Zeros, args: Sequence[Any]) -> list[Any]:
    """The results of a program: to the last bit what they are, with derivatives by the zeros.

    Args:
        program: a jaxpr and its constants.
        plan: of that jaxpr.
        zeros: those that the plan wants.
        args: the program's.
    """
    jaxpr = program.jaxpr
    env = dict(zip(jaxpr.constvars, program.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if is_literal(atom) else env[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        values = [read(v) for v in eqn.invars]
        for n in range(len(values)):
            values[n] = _tapped(values[n], plan.operands.get((number, n), ()), zeros)
        results = _run(eqn, number, plan, zeros, values, read)
        for var, value in zip(eqn.outvars, results, strict=True):
            env[var] = _tapped(value, plan.values.get(var, ()), zeros)
    return [_tapped(read(v), plan.results.get(n, ()), zeros) for n, v in enumerate(jaxpr.outvars)]


def _tapped(value: Any, taps: Sequence[Tap], zeros: Zeros) -> Any:
    for slot, fit, put in taps:
        value = put(value, fit(zeros[slot]))
    return value


def _run(
    eqn: Equation,
    number: int,
    plan: Plan,
    zeros: Zeros,
    values: list[Any],
    read: Callable[[Any], Any],
) -> list[Any]:
    if number in plan.sites:
        results = run(eqn, values)
        for position, slot in plan.sites[number].items():
            results[position] = zeros[slot]
        return results
    if number not in plan.inner:
        return run(eqn, values)
    plans = plan.inner[number]
    own = {slot: zeros[slot] for slot in sorted(set().union(*map(slots_within, plans)))}
    if number in plan.orders:
        order = plan.orders[number]
        index = None if order.variable is None else read(order.variable)
        own = {slot: in_scan_order(order, z, index) for slot, z in own.items()}
    bodies = [
        lambda z, *args, p=p, inner=inner: evaluate(p, inner, z, args)
        for p, inner in zip(programs_of(eqn), plans, strict=True)
    ]
    kind = kind_of(eqn)
    if kind == "custom":
        return _run_custom(eqn, bodies[0], own, values)
    with in_place_of(eqn):
        if kind == "shard_map":
            return _run_shard_map(eqn, bodies[0], own, values, plan.devices[number])
        if kind == "cond":
            return lax.switch(values[0], bodies, own, *values[1:])
        return RUN[kind](eqn, bodies[0], own, values)


def _run_scan(eqn: Equation, body: Body, zeros: Zeros, values: list[Any]) -> list[Any]:
    num_consts, num_carry = scan_layout(eqn)
    end = num_consts + num_carry

    def step(carry: list[Any], scanned: tuple[Zeros, list[Any]]) -> tuple[list[Any], list[Any]]:
        results = body(scanned[0], *values[:num_consts], *carry, *scanned[1])
        return results[:num_carry], results[num_carry:]

    carry, stacked = lax.scan(
        step,
        values[num_consts:end],
        (zeros, values[end:]),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return [*carry, *stacked]


def _run_jit(eqn: Equation, body: Body, zeros: Zeros, values: list[Any]) -> list[Any]:
    def constrained(z: Zeros, *args: Any) -> list[Any]:
        results = body(z, *map(_constrain, args, eqn.params["in_shardings"]))
        return [*map(_constrain, results, eqn.params["out_shardings"])]

    constrained.__name__ = eqn.params["name"]
    return jax.jit(constrained, inline=eqn.params["inline"])(zeros, *values)


def _constrain(value: Any, sharding: Any) -> Any:
    """A jit's sharding of an operand or result, where it names one."""
    return (
        lax.with_sharding_constraint(value, sharding) if isinstance(sharding, Sharding) else value
    )


def _run_remat(eqn: Equation, body: Body, zeros: Zeros, values: list[Any]) -> list[Any]:
    again = jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return again(zeros, *values)


def _run_call(eqn: Equation, body: Body, zeros: Zeros, values: list[Any]) -> list[Any]:
    del eqn
    return body(zeros, *values)


RUN = {"scan": _run_scan, "jit": _run_jit, "remat": _run_remat, "call": _run_call}


def _run_custom(eqn: Equation, body: Body, zeros: Zeros, values: list[Any]) -> list[Any]:
    """A function with a derivative of its own keeps it; the zeros get that of the function itself.

    What its rule computes cannot be looked into. So the function runs a second time, of which only
    the derivative by the zeros is used: that of its results by its states.
    """
    results = run(eqn, values)
    fixed = [lax.stop_gradient(v) if differentiable(jax.typeof(v)) else v for v in values]
    with in_place_of(eqn):
        watched = body(zeros, *fixed)
    return [
        tap(r, w) if differentiable(jax.typeof(r)) else r
        for r, w in zip(results, watched, strict=True)
    ]


def _run_shard_map(
    eqn: Equation,
    body: Body,
    zeros: Zeros,
    values: list[Any],
    devices: Mapping[Slot, tuple[str, ...]],
) -> list[Any]:
    """Every device has its own zeros where the state differs between devices."""
    params = eqn.params
    specs = {slot: PartitionSpec(devices[slot] or None) for slot in zeros}

    def local(z: Zeros, *args: Any) -> tuple[Any, ...]:
        return tuple(body({slot: zero[0] for slot, zero in z.items()}, *args))

    mapped = jax.shard_map(
        local,
        mesh=params["mesh"],
        in_specs=(specs, *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=set(mesh_sizes(eqn)),
    )
    return list(mapped(zeros, *values))
