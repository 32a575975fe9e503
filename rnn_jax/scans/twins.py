"""Parts of a carried value that outputs are computed from beside the carry.

    h_new = step(h, x)
    h = where(valid, h_new, h)
    return h, h_new @ V

Here the output does not come from the carry h but from its twin h_new; zeros added to h alone would
miss dL/ds_t through the output. So they are added to h_new, and to what stands in its place where
it is not chosen. The same goes for a carry that is a cast, a change of shape or a concatenation of
what the output is computed from.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnn_jax.scans.equations import (
    Equation,
    Jaxpr,
    Var,
    definition,
    is_literal,
    kind_of,
    programs_of,
)
from rnn_jax.types import Array


class Piece(NamedTuple):
    """A part of a value.

    Attributes:
        var: the variable, computed by an equation.
        operand_of: numbers of an equation and of its operand, where the part is wanted for that
            equation alone; None where whatever uses the variable wants it.
        fit: a leaf's zeros -> the part's.
    """

    var: Var
    operand_of: tuple[int, int] | None
    fit: Callable[[Array], Array]


class _Source(NamedTuple):
    """What an equation's result is made of, elements of these operands."""

    operands: tuple[int, ...]
    fits: tuple[Callable[[Array], Array], ...]


RESHAPES = {"reshape", "squeeze", "expand_dims", "copy", "copy_p", "convert_element_type"}


def pieces_beside(
    jaxpr: Jaxpr, var: Var, outputs: Sequence[Var], states: Sequence[Var]
) -> list[Piece]:
    """The parts of a state that outputs depend on without depending on the state; mostly none.

    Args:
        jaxpr: of the step.
        var: the state's new value.
        outputs: the step's results that are not state.
        states: its results that are. A path through another of them counts as that one's.
    """
    number = definition(jaxpr, var)
    if number is None:
        return []
    source = _source(jaxpr.eqns[number])
    if source is None:
        return []
    eqn = jaxpr.eqns[number]
    pieces, beside = [], False
    for position, fit in zip(source.operands, source.fits, strict=True):
        operand = eqn.invars[position]
        computed = definition(jaxpr, operand) is not None
        deeper = pieces_beside(jaxpr, operand, outputs, states) if computed else []
        if deeper:
            pieces += [p._replace(fit=compose(fit, p.fit)) for p in deeper]
            beside = True
        elif computed and _reaches(jaxpr, operand, outputs, {var, *states} - {operand}):
            pieces.append(Piece(operand, None, fit))
            beside = True
        else:
            pieces.append(Piece(operand, (number, position), fit))
    return pieces if beside else []


def _source(eqn: Equation) -> _Source | None:
    name = eqn.primitive.name
    if name in RESHAPES:
        return _Source((0,), (_like(eqn.invars[0]),))
    if name == "transpose":
        back = tuple(int(n) for n in np.argsort(eqn.params["permutation"]))
        return _Source((0,), (lambda zeros: zeros.transpose(back),))
    if name == "select_n":
        return _Source(tuple(range(1, len(eqn.invars))), (_like(eqn.invars[1]),) * 2)
    if name == "concatenate":
        axis = eqn.params["dimension"]
        sizes = [v.aval.shape[axis] for v in eqn.invars]
        starts = np.cumsum([0, *sizes[:-1]])
        cuts = tuple(_cut(axis, int(a), n) for a, n in zip(starts, sizes, strict=True))
        return _Source(tuple(range(len(sizes))), cuts)
    if kind_of(eqn) == "jit" and len(eqn.outvars) == 1:
        return _source_within(eqn)
    return None


def _source_within(eqn: Equation) -> _Source | None:
    """As of `jnp.where`, which is a jit around a select."""
    body = programs_of(eqn)[0].jaxpr
    number = definition(body, body.outvars[0])
    inner = None if number is None else _source(body.eqns[number])
    if number is None or inner is None:
        return None
    operands = [body.eqns[number].invars[n] for n in inner.operands]
    inputs = list(body.invars)
    if any(is_literal(v) or v not in inputs for v in operands):
        return None
    return _Source(tuple(inputs.index(v) for v in operands), inner.fits)


def _like(atom: Any) -> Callable[[Array], Array]:
    shape, dtype = atom.aval.shape, atom.aval.dtype
    return lambda zeros: zeros.reshape(shape).astype(dtype)


def _cut(axis: int, start: int, size: int) -> Callable[[Array], Array]:
    return lambda zeros: zeros[(slice(None),) * axis + (slice(start, start + size),)]


def compose(
    first: Callable[[Array], Array], second: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    return lambda zeros: second(first(zeros))


def _reaches(jaxpr: Jaxpr, start: Var, outputs: Sequence[Var], stops: set[Var]) -> bool:
    """Whether outputs depend on a variable on a way that leads through none of `stops`."""
    reached = {start}
    for eqn in jaxpr.eqns:
        if any(not is_literal(v) and v in reached for v in eqn.invars):
            reached.update(v for v in eqn.outvars if v not in stops)
    return any(v in reached for v in outputs)
