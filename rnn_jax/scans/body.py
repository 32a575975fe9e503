"""A scan's body as the step of a recurrence: which state it has, and what it reads besides."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.interpreters import partial_eval

from rnn_jax.scans.equations import (
    Equation,
    Jaxpr,
    Program,
    definition,
    differentiable,
    is_literal,
    kind_of,
    programs_of,
    scan_layout,
)
from rnn_jax.scans.evaluate import evaluate
from rnn_jax.scans.plan import Plan
from rnn_jax.scans.search import Leaf, Recurrence


class Body(NamedTuple):
    """The part of a scan's body that computes its recurrent state.

    Numbers are those of the operands of the scan, which are those of its body.

    Attributes:
        program: `*used operands -> new state`.
        used: the operands that it reads, in order.
        constants: those of them that stay the same at each step.
        state: the carry's leaves that are the state, in order.
        recorded: leaves of the carry that are no state, such as a counter or a key: inputs.
        scanned: inputs proper.
        output: which leaf of the state the step also returns; the last one where none is.
    """

    program: Program
    used: tuple[int, ...]
    constants: tuple[int, ...]
    state: tuple[int, ...]
    recorded: tuple[int, ...]
    scanned: tuple[int, ...]
    output: int


def body_of(eqn: Equation, positions: Sequence[int]) -> Body:
    """The body of a scan as the step of these leaves of its carry, and of all they depend on.

    Other leaves are state too where they feed these and are fed by them.
    """
    program = programs_of(eqn)[0]
    jaxpr = program.jaxpr
    num_consts, num_carry = scan_layout(eqn)
    end = num_consts + num_carry
    held = {n for n in range(num_carry) if jaxpr.outvars[n] is jaxpr.invars[num_consts + n]} - set(
        positions
    )
    state = _closed(jaxpr, positions, num_consts, num_carry)
    own, read = partial_eval.dce_jaxpr(
        jaxpr, [n in state for n in range(len(jaxpr.outvars))], instantiate=False
    )
    used = [n for n, is_read in enumerate(read) if is_read]
    others = [n - num_consts for n in used if num_consts <= n < end and n - num_consts not in state]
    outputs = [n for n, v in enumerate(state) if jaxpr.outvars[v] in jaxpr.outvars[num_carry:]]
    return Body(
        Program(own, program.consts),
        tuple(used),
        (
            *(n for n in used if n < num_consts),
            *(num_consts + n for n in others if n in held),
        ),
        tuple(num_consts + n for n in state),
        tuple(num_consts + n for n in others if n not in held),
        tuple(n for n in used if n >= end),
        outputs[0] if outputs else len(state) - 1,
    )


def _closed(
    jaxpr: Jaxpr, positions: Sequence[int], num_consts: int, num_carry: int
) -> tuple[int, ...]:
    """The positions, and those of floating leaves that feed them and are fed by them."""
    reads = {}
    for n in range(num_carry):
        chosen = [m == n for m in range(len(jaxpr.outvars))]
        _, read = partial_eval.dce_jaxpr(jaxpr, chosen, instantiate=False)
        reads[n] = {m for m in range(num_carry) if read[num_consts + m]}
    for middle in range(num_carry):
        for n in range(num_carry):
            if middle in reads[n]:
                reads[n] |= reads[middle]
    inner = jaxpr.invars[num_consts : num_consts + num_carry]
    return tuple(
        n
        for n in range(num_carry)
        if n in positions
        or (
            differentiable(inner[n])
            and any(n in reads[p] and p in reads[n] for p in positions)
            and jaxpr.outvars[n] is not inner[n]
        )
    )


def equation_at(jaxpr: Jaxpr, path: Sequence[int]) -> tuple[Jaxpr, Equation]:
    """The equation at a path, and the jaxpr that it stands in."""
    return levels_of(jaxpr, path)[-1]


def levels_of(jaxpr: Jaxpr, path: Sequence[int]) -> list[tuple[Jaxpr, Equation]]:
    """Every equation on the way to a path, that itself included, each with its jaxpr."""
    levels = [(jaxpr, jaxpr.eqns[path[0]])]
    for which, number in zip(path[1::2], path[2::2], strict=True):
        inner = programs_of(levels[-1][1])[which].jaxpr
        levels.append((inner, inner.eqns[number]))
    return levels


class Operands(NamedTuple):
    """The values of a scan's operands, in the order in which it runs.

    Attributes:
        constants: of `Body.constants`.
        state: s_0, of `Body.state`.
        inputs: `[T, ...]`, of `Body.recorded` and `Body.scanned`.
    """

    constants: list[Any]
    state: list[Any]
    inputs: list[Any]


def read_scan(eqn: Equation, values: Sequence[Any], body: Body) -> Operands:
    """What a scan's body reads, of the scan's operands; what is in its carry by running it."""
    program = programs_of(eqn)[0]
    num_consts, num_carry = scan_layout(eqn)
    end = num_consts + num_carry
    length, reverse = eqn.params["length"], eqn.params["reverse"]

    def step(carry: list[Any], scanned: list[Any]) -> tuple[list[Any], list[Any]]:
        new = evaluate(program, Plan(), {}, [*values[:num_consts], *carry, *scanned])
        return new[:num_carry], [carry[n - num_consts] for n in body.recorded]

    recorded: list[Any] = []
    if body.recorded:
        carry = list(values[num_consts:end])
        recorded = lax.scan(step, carry, list(values[end:]), length=length, reverse=reverse)[1]
    inputs = [*recorded, *(values[n] for n in body.scanned)]
    return Operands(
        [values[n] for n in body.constants],
        [values[n] for n in body.state],
        [x[::-1] for x in inputs] if reverse else inputs,
    )


def whole_state(recurrence: Recurrence, eqn: Equation, body: Body) -> Recurrence:
    """The recurrence with all the state of its body."""
    jaxpr = programs_of(eqn)[0].jaxpr
    num_consts, _ = scan_layout(eqn)
    positions = [n - num_consts for n in body.state]
    leaves = [
        Leaf(
            n,
            next(m for m in positions if jaxpr.outvars[m] is jaxpr.outvars[n]),
            jaxpr.invars[num_consts + n].aval,
        )
        for n in positions
    ]
    return recurrence._replace(leaves=tuple(leaves))


class Origin(NamedTuple):
    """Where a constant of a scan comes from.

    Attributes:
        argument: number of the program's argument.
        layout: equations that change its layout or type alone, first to last.
    """

    argument: int
    layout: tuple[Equation, ...]


def varied_operands(jaxpr: Jaxpr, path: Sequence[int]) -> set[int]:
    """The operands of an equation that depend on the program's arguments."""
    varied = set(jaxpr.invars)
    for depth, (inside, eqn) in enumerate(levels := levels_of(jaxpr, path)):
        for before in inside.eqns[: inside.eqns.index(eqn)]:
            if before.primitive.name != "stop_gradient" and any(
                not is_literal(v) and v in varied for v in before.invars
            ):
                varied.update(v for v in before.outvars if differentiable(v))
        found = {n for n, v in enumerate(eqn.invars) if not is_literal(v) and v in varied}
        if depth + 1 < len(levels):
            shift = kind_of(eqn) == "cond"
            inner = levels[depth + 1][0]
            varied = {inner.invars[n - shift] for n in found if n >= shift}
            if kind_of(eqn) == "scan" and found:
                num_consts, num_carry = scan_layout(eqn)
                carry = inner.invars[num_consts : num_consts + num_carry]
                varied.update(v for v in carry if differentiable(v))
    return found


LAYOUTS = {
    "convert_element_type",
    "copy",
    "copy_p",
    "expand_dims",
    "reshape",
    "squeeze",
    "transpose",
}


def origin_of(jaxpr: Jaxpr, path: Sequence[int], operand: int) -> Origin | None:
    """The program's argument that an equation's operand is, wherever the equation is nested."""
    levels = levels_of(jaxpr, path)
    layout: list[Equation] = []
    atom = levels[-1][1].invars[operand]
    for depth in reversed(range(len(levels))):
        inside = levels[depth][0]
        while (number_of := definition(inside, atom)) is not None:
            eqn = inside.eqns[number_of]
            if eqn.primitive.name not in LAYOUTS or len(eqn.invars) != 1:
                return None
            layout.insert(0, eqn)
            atom = eqn.invars[0]
        if is_literal(atom) or atom not in inside.invars:
            return None
        place = inside.invars.index(atom)
        if depth == 0:
            return Origin(place, tuple(layout))
        around = levels[depth - 1][1]
        kind = kind_of(around)
        if kind == "scan" and place >= scan_layout(around).num_consts:
            return None
        atom = around.invars[place + (kind == "cond")]
    return None
