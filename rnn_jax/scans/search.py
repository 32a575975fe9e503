"""Every recurrence in a program, wherever it is nested."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rnn_jax.scans.equations import (
    Equation,
    Jaxpr,
    Program,
    all_programs_of,
    checks_varying,
    differentiable,
    inner_operands,
    is_literal,
    kind_of,
    mesh_sizes,
    programs_of,
    scan_layout,
)
from rnn_jax.scans.names import name_of, position, unique
from rnn_jax.scans.recurrence import carries_state, recurrent_leaves
from rnn_jax.tap import adjoint_sites_p, sited_states_p, varying_axes

Path = tuple[int, ...]
"""Numbers of equations, and of the program within each, from the outermost to the recurrence's."""


class Outer(NamedTuple):
    """What encloses a recurrence and gives its adjoints a leading axis.

    Attributes:
        size: of that axis.
        mesh_axes: of a shard_map, the axes of devices over which the state differs, here one axis;
            empty for a scan, and where the state is the same on every device.
    """

    size: int
    mesh_axes: tuple[str, ...] = ()


class Leaf(NamedTuple):
    """One leaf of s_t.

    Attributes:
        position: in the scan's carry, or among the results of `adjoint_sites`.
        same_as: the first position that holds the same variable: mostly its own.
        aval: its type.
    """

    position: int
    same_as: int
    aval: Any


class Recurrence(NamedTuple):
    """One recurrence, or the leaves of one that share their batch axes.

    Attributes:
        name: module's path or place in the user's file, unique in its program.
        path: where it is.
        leaves: of its state.
        num_steps: T.
        outer: axes before time.
    """

    name: str
    path: Path
    leaves: tuple[Leaf, ...]
    num_steps: int
    outer: tuple[Outer, ...]


class Found(NamedTuple):
    """What a program holds.

    Attributes:
        recurrences: in the order in which they run.
        stateless: places of scans without recurrent state.
        unwatchable: places of loops that cannot be watched, each with the reason.
        num_equations: how many were looked at.
    """

    recurrences: tuple[Recurrence, ...]
    stateless: tuple[str, ...]
    unwatchable: tuple[str, ...]
    num_equations: int


class _Level(NamedTuple):
    """Where the search is: the path to it, and the equations on its way."""

    path: Path = ()
    way: tuple[Equation, ...] = ()


class _Collected(NamedTuple):
    recurrences: list[Recurrence]
    stateless: list[str]
    unwatchable: list[str]
    equations: list[int]


def find_recurrences(jaxpr: Jaxpr) -> Found:
    """Every recurrence in a jaxpr whose inputs are what the loss is differentiated by."""
    collected = _Collected([], [], [], [])
    _search(jaxpr, set(jaxpr.invars), _Level(), collected)
    names = unique([r.name for r in collected.recurrences])
    recurrences = [r._replace(name=n) for r, n in zip(collected.recurrences, names, strict=True)]
    return Found(
        tuple(recurrences),
        tuple(collected.stateless),
        tuple(dict.fromkeys(collected.unwatchable)),
        sum(collected.equations),
    )


def contains_scan(program: Program) -> bool:
    """Whether anything in a program is a scan or the site of a recurrence."""
    return any(
        kind_of(eqn) == "scan"
        or eqn.primitive is adjoint_sites_p
        or any(contains_scan(p) for p in all_programs_of(eqn))
        for eqn in program.jaxpr.eqns
    )


def _search(jaxpr: Jaxpr, varied: set[Any], level: _Level, collected: _Collected) -> set[Any]:
    """Collects what a jaxpr holds.

    Args:
        jaxpr: the program.
        varied: its inputs that depend on what the loss is differentiated by.
        level: where it is.
        collected: what was found up to now.

    Returns:
        The results that depend on it, too.
    """
    collected.equations.append(len(jaxpr.eqns))
    sited: set[Any] = set()
    varied = set(varied)
    for number, eqn in enumerate(jaxpr.eqns):
        operands = {v for v in eqn.invars if not is_literal(v)}
        here = _Level((*level.path, number), (*level.way, eqn))
        if eqn.primitive is adjoint_sites_p:
            collected.recurrences.append(_sites(eqn, here))
            sited.update(eqn.outvars)
            continue
        if eqn.primitive is sited_states_p:
            varied.update(eqn.outvars)
            continue
        inner = all_programs_of(eqn)
        if operands & sited:
            # What gets the zeros returns their cotangent; what only moves them hands them on.
            if not any(contains_scan(p) for p in inner):
                sited.update(eqn.outvars)
        elif inner:
            _search_inside(eqn, operands & varied, here, collected)
        if operands & varied and eqn.primitive.name != "stop_gradient":
            varied.update(v for v in eqn.outvars if differentiable(v))
    return varied


def _search_inside(eqn: Equation, varied: set[Any], level: _Level, collected: _Collected) -> None:
    kind = kind_of(eqn)
    if kind == "while":
        if varied and carries_state(eqn):
            collected.unwatchable.append(
                f"the while_loop at {position(level.way)}, whose number of steps is not known"
            )
        return
    if kind == "other":
        if any(contains_scan(p) for p in all_programs_of(eqn)):
            collected.unwatchable.append(
                f"a scan within {eqn.primitive.name} at {position(level.way)}"
            )
        return
    if kind == "scan":
        found = _recurrences_of(eqn, level)
        collected.recurrences.extend(found)
        if not found:
            collected.stateless.append(position(level.way))
    for number, program in enumerate(programs_of(eqn)):
        inputs = {
            i
            for i, o in zip(program.jaxpr.invars, inner_operands(eqn), strict=True)
            if not is_literal(o) and o in varied
        }
        if kind == "scan" and inputs:
            num_consts, num_carry = scan_layout(eqn)
            inputs.update(program.jaxpr.invars[num_consts : num_consts + num_carry])
        _search(program.jaxpr, inputs, _Level((*level.path, number), level.way), collected)


def _recurrences_of(eqn: Equation, level: _Level) -> list[Recurrence]:
    body = programs_of(eqn)[0].jaxpr
    num_consts, num_carry = scan_layout(eqn)
    positions = recurrent_leaves(body, num_consts, num_carry)
    leaves = [
        Leaf(
            n,
            next(m for m in positions if body.outvars[m] is body.outvars[n]),
            body.invars[num_consts + n].aval,
        )
        for n in positions
    ]
    name = name_of(level.way)
    return [
        Recurrence(
            name if n == 0 else f"{name}/carry_{group[0].position}",
            level.path,
            group,
            eqn.params["length"],
            _outer_axes(level, group),
        )
        for n, group in enumerate(_by_batch_axes(leaves))
    ]


def _by_batch_axes(leaves: Sequence[Leaf]) -> list[tuple[Leaf, ...]]:
    """Leaves that share all axes but the last; the group with most numbers comes first."""
    groups: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault((leaf.aval.shape[:-1], varying_axes(leaf.aval)), []).append(leaf)
    return sorted(map(tuple, groups.values()), key=lambda group: -sum(x.aval.size for x in group))


def _outer_axes(level: _Level, leaves: Sequence[Leaf]) -> tuple[Outer, ...]:
    varying = frozenset().union(*(varying_axes(leaf.aval) for leaf in leaves))
    outer = []
    for eqn in level.way[:-1]:
        if kind_of(eqn) == "scan":
            outer.append(Outer(eqn.params["length"]))
        elif kind_of(eqn) == "shard_map":
            sizes = mesh_sizes(eqn)
            axes = tuple(axis for axis in sizes if axis in varying or not checks_varying(eqn))
            outer.append(Outer(math.prod(sizes[axis] for axis in axes), axes))
    return tuple(outer)


def _sites(eqn: Equation, level: _Level) -> Recurrence:
    num_states, label = eqn.params["num_states"], eqn.params["label"]
    name = name_of(level.way)
    pairs = zip(eqn.invars[:num_states], eqn.outvars, strict=True)
    leaves = tuple(
        Leaf(n, n, state.aval.update(manual_axis_type=zeros.aval.manual_axis_type))
        for n, (state, zeros) in enumerate(pairs)
    )
    return Recurrence(
        f"{name}/{label}" if label else name,
        level.path,
        leaves,
        eqn.params["num_steps"],
        _outer_axes(level, leaves),
    )
