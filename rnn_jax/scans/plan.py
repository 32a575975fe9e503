"""Where in a program each recurrence's zeros go.

A zero is added (by `rnn_jax.tap.tap`) to a leaf of the carry at the equation that computes it, so
that all that is computed from the leaf afterwards, the step's own output included, depends on it.
The equation may lie deeper: in a jit, a checkpoint, the branches of a cond within the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rnn_jax.scans.equations import (
    Equation,
    Jaxpr,
    Var,
    definition,
    is_dropped,
    is_literal,
    kind_of,
    programs_of,
)
from rnn_jax.scans.flips import Order, order_of
from rnn_jax.scans.search import Recurrence
from rnn_jax.scans.twins import Piece, compose, pieces_beside
from rnn_jax.tap import adjoint_sites_p, sited_states_p, tap
from rnn_jax.types import Array

Slot = int
"""Number of an array of zeros."""
Put = Callable[[Array, Array], Array]
"""`(value, zeros) -> value`: `rnn_jax.tap.tap`, or one that cuts the recurrence."""


class Tap(NamedTuple):
    """Zeros for a value: which, how a leaf's zeros become the value's, and how they meet it."""

    slot: Slot
    fit: Callable[[Array], Array]
    put: Put


@dataclass
class Plan:
    """What to do in one jaxpr, besides running its equations.

    Attributes:
        values: taps on a variable, as soon as it is computed.
        operands: taps on an operand of an equation, for that equation alone.
        results: taps on a result that no equation computes: an input that is handed on.
        inner: the plans of an equation's programs.
        sites: of an `adjoint_sites` equation, the zeros that are its results.
        orders: of a scan whose inputs were flipped for it, how.
        devices: of a shard_map, the mesh axes of each slot within.
    """

    values: dict[Var, list[Tap]] = field(default_factory=dict)
    operands: dict[tuple[int, int], list[Tap]] = field(default_factory=dict)
    results: dict[int, list[Tap]] = field(default_factory=dict)
    inner: dict[int, tuple["Plan", ...]] = field(default_factory=dict)
    sites: dict[int, dict[int, Slot]] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    devices: dict[int, dict[Slot, tuple[str, ...]]] = field(default_factory=dict)

    def within(self, number: int, eqn: Equation) -> tuple["Plan", ...]:
        """The plans of the programs of equation `number`, made where there are none."""
        return self.inner.setdefault(number, tuple(Plan() for _ in programs_of(eqn)))


class Slots(NamedTuple):
    """A recurrence and the number of the zeros of each of its leaves."""

    recurrence: Recurrence
    slots: tuple[Slot, ...]


def number_slots(recurrences: Sequence[Recurrence]) -> list[Slots]:
    """A number for each leaf; leaves that are the same variable have the same."""
    numbers: dict[Any, Slot] = {}
    return [
        Slots(r, tuple(numbers.setdefault((r.path, x.same_as), len(numbers)) for x in r.leaves))
        for r in recurrences
    ]


def make_plan(jaxpr: Jaxpr, numbered: Sequence[Slots]) -> Plan:
    """Where the zeros of these recurrences go."""
    plan = Plan()
    for recurrence, slots in numbered:
        _plan_recurrence(plan, jaxpr, recurrence, slots, tap, ordered=True)
    return plan


def make_cut(jaxpr: Jaxpr, slots: Slots, put: Put) -> Plan:
    """Where one recurrence is cut, in the scan's own order: each s_t from what it is computed from.

    Args:
        jaxpr: the program.
        slots: the recurrence; all state of its scan.
        put: what is done with each value and its zeros.
    """
    plan = Plan()
    _plan_recurrence(plan, jaxpr, *slots, put, ordered=False)
    return plan


def slots_within(plan: Plan) -> set[Slot]:
    """All zeros that a plan wants."""
    found: set[Slot] = set()
    for taps in (plan.values, plan.operands, plan.results):
        found |= {tap.slot for some in taps.values() for tap in some}
    for sites in plan.sites.values():
        found |= set(sites.values())
    for plans in plan.inner.values():
        found |= {slot for inner in plans for slot in slots_within(inner)}
    return found


def _plan_recurrence(
    plan: Plan,
    jaxpr: Jaxpr,
    recurrence: Recurrence,
    slots: tuple[Slot, ...],
    put: Put,
    ordered: bool,
) -> None:
    *way, number = recurrence.path
    depth = 0
    for at, which in zip(way[::2], way[1::2], strict=True):
        eqn = jaxpr.eqns[at]
        if kind_of(eqn) == "shard_map":
            axes = recurrence.outer[depth].mesh_axes
            plan.devices.setdefault(at, {}).update(dict.fromkeys(slots, axes))
        if kind_of(eqn) == "scan" and ordered:
            _plan_order(plan, jaxpr, at)
        depth += kind_of(eqn) in ("scan", "shard_map")
        plan, jaxpr = plan.within(at, eqn)[which], programs_of(eqn)[which].jaxpr
    eqn = jaxpr.eqns[number]
    positions = [leaf.position for leaf in recurrence.leaves]
    if eqn.primitive is adjoint_sites_p and not ordered:
        marked = marked_states(jaxpr, eqn)
        for n, slot in zip(positions, slots, strict=True):
            plan.values.setdefault(marked[n], []).append(Tap(slot, _as_it_is, put))
        return
    if eqn.primitive is adjoint_sites_p:
        plan.sites[number] = dict(zip(positions, slots, strict=True))
        return
    if ordered:
        _plan_order(plan, jaxpr, number)
    body = programs_of(eqn)[0].jaxpr
    (inner,) = plan.within(number, eqn)
    for slot in dict.fromkeys(slots):
        position = positions[slots.index(slot)]
        _tap_result(inner, body, position, Tap(slot, _as_it_is, put), positions)


def marked_states(jaxpr: Jaxpr, sites: Equation) -> list[Var]:
    """The states that an unrolled cell returned, of the equation of its sites."""
    return next(
        list(eqn.outvars)
        for eqn in jaxpr.eqns
        if eqn.primitive is sited_states_p and sites.outvars[0] in eqn.invars
    )


def _plan_order(plan: Plan, jaxpr: Jaxpr, number: int) -> None:
    order = order_of(jaxpr, number)
    if order is not None:
        plan.orders[number] = order


def _as_it_is(zeros: Array) -> Array:
    return zeros


def _tap_result(plan: Plan, jaxpr: Jaxpr, position: int, tap: Tap, states: Sequence[int]) -> None:
    """Plans a tap on one result of a jaxpr, where it is computed.

    Args:
        plan: of the jaxpr.
        jaxpr: the program.
        position: of the result.
        tap: the zeros.
        states: positions of all results that are recurrent state.
    """
    var = jaxpr.outvars[position]
    number = definition(jaxpr, var)
    if number is None:
        plan.results.setdefault(position, []).append(tap)
        return
    others = [v for n, v in enumerate(jaxpr.outvars) if n not in states and not is_literal(v)]
    stops = [jaxpr.outvars[n] for n in states]
    pieces = pieces_beside(jaxpr, var, others, stops)
    for piece in pieces or [Piece(var, None, _as_it_is)]:
        fitted = tap._replace(fit=compose(tap.fit, piece.fit))
        if piece.operand_of is not None:
            plan.operands.setdefault(piece.operand_of, []).append(fitted)
        else:
            _tap_value(plan, jaxpr, piece.var, fitted, stops)


def _tap_value(plan: Plan, jaxpr: Jaxpr, var: Var, tap: Tap, states: Sequence[Var]) -> None:
    number = definition(jaxpr, var)
    assert number is not None
    eqn = jaxpr.eqns[number]
    several = sum(not is_dropped(v) for v in eqn.outvars) > 1
    if not several or kind_of(eqn) not in ("jit", "remat", "call", "cond", "custom"):
        plan.values.setdefault(var, []).append(tap)
        return
    position = eqn.outvars.index(var)
    inner_states = [n for n, v in enumerate(eqn.outvars) if v in states or v is var]
    for inner, program in zip(plan.within(number, eqn), programs_of(eqn), strict=True):
        _tap_result(inner, program.jaxpr, position, tap, inner_states)
