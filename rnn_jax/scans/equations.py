"""One equation of a jaxpr, read and run: all that depends on how JAX writes down its programs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core, source_info_util
from jax.extend.core import primitives

Equation = Any
Jaxpr = Any
Var = Any

KINDS = {
    primitives.scan_p: "scan",
    primitives.cond_p: "cond",
    primitives.while_p: "while",
    primitives.jit_p: "jit",
    primitives.remat_p: "remat",
    primitives.closed_call_p: "call",
    primitives.custom_jvp_call_p: "custom",
    primitives.custom_vjp_call_p: "custom",
}

PROGRAMS = {
    "scan": "jaxpr",
    "cond": "branches",
    "jit": "jaxpr",
    "remat": "jaxpr",
    "call": "call_jaxpr",
    "custom": "call_jaxpr",
    "shard_map": "jaxpr",
}
"""The parameter that holds what an equation of this kind runs."""


class Program(NamedTuple):
    """A jaxpr and its constants."""

    jaxpr: Jaxpr
    consts: Sequence[Any]


class ScanLayout(NamedTuple):
    """How many operands of a scan are constants and carry; the scanned-over come after them."""

    num_consts: int
    num_carry: int


def kind_of(eqn: Equation) -> str:
    """One of `PROGRAMS`, or "while", or "other"."""
    if eqn.primitive.name == "shard_map":
        return "shard_map"
    return KINDS.get(eqn.primitive, "other")


def program(jaxpr: Any) -> Program:
    """A jaxpr, closed or not, as a `Program`."""
    return Program(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()))


def programs_of(eqn: Equation) -> tuple[Program, ...]:
    """The programs that an equation of a known kind runs; a cond has several."""
    name = PROGRAMS.get(kind_of(eqn))
    if name is None:
        return ()
    inner = eqn.params[name]
    return tuple(program(j) for j in (inner if isinstance(inner, tuple) else (inner,)))


def all_programs_of(eqn: Equation) -> tuple[Program, ...]:
    """The programs in the parameters of any equation, of a kind unknown here too."""
    return tuple(program(j) for j in core.jaxprs_in_params(eqn.params))


def inner_operands(eqn: Equation) -> Sequence[Any]:
    """The operands of an equation that its programs get; the index of a cond's branch is not."""
    return eqn.invars[1:] if kind_of(eqn) == "cond" else eqn.invars


def scan_layout(eqn: Equation) -> ScanLayout:
    """Told from the shapes: what is scanned over has an axis more outside than in the body."""
    body = programs_of(eqn)[0].jaxpr

    def scanned(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(o.aval.shape) > len(i.aval.shape) for o, i in pairs)

    num_carry = len(eqn.outvars) - scanned(eqn.outvars, body.outvars)
    num_inputs = len(eqn.invars) - scanned(eqn.invars, body.invars)
    return ScanLayout(num_inputs - num_carry, num_carry)


def is_literal(atom: Any) -> bool:
    return isinstance(atom, core.Literal)


def is_dropped(var: Var) -> bool:
    return isinstance(var, core.DropVar)


def definition(jaxpr: Jaxpr, atom: Any) -> int | None:
    """The number of the equation that computes a variable; None for inputs and constants."""
    if is_literal(atom):
        return None
    return next((n for n, eqn in enumerate(jaxpr.eqns) if atom in eqn.outvars), None)


def differentiable(atom: Any) -> bool:
    """Whether a variable, value or type holds floating (or complex) numbers."""
    return jnp.issubdtype(getattr(atom, "aval", atom).dtype, jnp.inexact)


def mesh_sizes(eqn: Equation) -> dict[str, int]:
    """The axes that a shard_map is over, and how many devices each has."""
    mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
    return {axis: mesh.shape[axis] for axis in mesh.axis_names if axis in axes}


def checks_varying(eqn: Equation) -> bool:
    """Whether within a shard_map a value's type says over which devices it differs."""
    return eqn.params["check_vma"]


@contextmanager
def in_place_of(eqn: Equation) -> Iterator[None]:
    """What is computed here carries the equation's name, line and context."""
    info = eqn.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with source_info_util.user_context(info.traceback, name_stack=stack), eqn.ctx.manager:
        yield


def run(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """The equation's results, computed as it stands."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with in_place_of(eqn):
        results = eqn.primitive.bind(*values, **params)
    return list(results) if eqn.primitive.multiple_results else [results]
