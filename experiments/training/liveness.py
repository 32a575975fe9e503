"""The most that the values of a jaxpr take at once: a program's memory, before it is compiled.

A program is traced, and its values are followed from where they are made to where they are read
last. The estimate is the largest sum of the values alive at once, where, as XLA does it,

- elementwise operations take nothing where only others of their kind, or sums, read them;
- what is computed twice is computed once;
- an elementwise operation writes over an operand that nobody reads any more;
- numbers that are the same everywhere, such as zero perturbations, are not written at all;
- a loop keeps what it reads, what it stacks, and the values of one pass.

Nothing is known here of recurrent networks, so it holds for any cell, task, trace or regularizer.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

LOOPS = {"scan", "while", "cond"}
ABSORBING = {
    "argmax",
    "argmin",
    "concatenate",
    "dynamic_update_slice",
    "reduce_and",
    "reduce_max",
    "reduce_min",
    "reduce_or",
    "reduce_sum",
}
"""Operations that are written to memory, and compute elementwise operands as they read them."""
WRITTEN = ABSORBING | {
    "cholesky",
    "conv_general_dilated",
    "cumsum",
    "dot_general",
    "dynamic_slice",
    "eigh",
    "gather",
    "householder_product",
    "geqrf",
    "optimization_barrier",
    "pad",
    "qr",
    "random_bits",
    "scatter",
    "scatter-add",
    "shard_map",
    "sort",
    "svd",
    "threefry2x32",
    "triangular_solve",
    *LOOPS,
}
"""Operations whose operands and results are in memory; all others are taken for elementwise."""
COSTLY = {"cos", "div", "erf", "exp", "expm1", "log", "log1p", "logistic", "pow", "sin", "tanh"}
"""Elementwise operations that are not repeated for each reader."""


class Operation(NamedTuple):
    """One equation of a jaxpr, its values numbered.

    Attributes:
        name: of the primitive.
        reads, writes: numbers of values.
        inner: bytes that it takes while it runs, beside both.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inner: int


class Program(NamedTuple):
    """A jaxpr as one row of operations, those of inner functions in the place of their calls.

    Attributes:
        operations: in order.
        sizes: bytes of each value; 0 for what is given, since its caller counts it.
        given: numbers of the arguments.
        results: numbers of the values that are returned.
    """

    operations: list[Operation]
    sizes: list[int]
    given: list[int]
    results: set[int]


def num_bytes(tree: Any) -> int:
    """Bytes of a pytree's arrays, or of their shapes."""
    return sum(_array_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _array_bytes(aval: Any) -> int:
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(aval.shape)
    return np.dtype(aval.dtype).itemsize * math.prod(aval.shape)


def peak_bytes(jaxpr: core.Jaxpr) -> int:
    """Most bytes that the values made by a jaxpr take at once; its arguments are not counted."""
    program = _flattened(jaxpr)
    operations = _fused(program)
    last = {value: when for when, op in enumerate(operations) for value in op.reads}
    alive: set[int] = set()
    live = largest = 0
    for when, op in enumerate(operations):
        dying = {value for value in alive.intersection(op.reads) if last[value] == when}
        dying -= program.results
        freed = sum(program.sizes[value] for value in dying)
        made = sum(program.sizes[value] for value in op.writes)
        in_place = op.name not in WRITTEN
        largest = max(largest, live + made + op.inner - (freed if in_place else 0))
        unread = {value for value in op.writes if value not in last} - program.results
        live += made - freed - sum(program.sizes[value] for value in unread)
        alive = (alive | set(op.writes)) - dying - unread
    return largest


def _flattened(jaxpr: core.Jaxpr) -> Program:
    operations: list[Operation] = []
    sizes: list[int] = []
    computed: dict[Any, tuple[int, ...]] = {}

    def number(aval: Any, size: int | None = None) -> int:
        sizes.append(_array_bytes(aval) if size is None else size)
        return len(sizes) - 1

    def walk(jaxpr: core.Jaxpr, known: dict[core.Var, int]) -> list[int | None]:
        """The numbers of a jaxpr's results, given those of its arguments."""

        def look(atom: Any) -> int | None:
            return None if isinstance(atom, core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            inner, name = list(_inner_jaxprs(eqn)), eqn.primitive.name
            reads = [look(atom) for atom in eqn.invars]
            if inner and name not in WRITTEN:
                called = inner[0]
                arguments = {
                    # A rule's own arguments come first, those of the function after them.
                    var: number(var.aval, 0) if value is None else value
                    for var, value in zip(
                        called.invars, reads[len(reads) - len(called.invars) :], strict=True
                    )
                }
                constants = {var: number(var.aval, 0) for var in called.constvars}
                for var, value in zip(
                    eqn.outvars, walk(called, constants | arguments), strict=True
                ):
                    known[var] = number(var.aval, 0) if value is None else value
                continue
            # A loop is not compared: two are hardly ever the same, and its text is long.
            what = repr(eqn.params) if not inner else id(eqn)
            same = (name, what, *(_operand(atom, known) for atom in eqn.invars))
            if same in computed:
                known.update(zip(eqn.outvars, computed[same], strict=True))
                continue
            writes = tuple(number(var.aval) for var in eqn.outvars)
            computed[same] = writes
            known.update(zip(eqn.outvars, writes, strict=True))
            taken = max((peak_bytes(body) for body in inner), default=0)
            operations.append(
                Operation(name, tuple(value for value in reads if value is not None), writes, taken)
            )
        return [look(atom) for atom in jaxpr.outvars]

    known = {var: number(var.aval, 0) for var in (*jaxpr.constvars, *jaxpr.invars)}
    given = list(known.values())
    results = {value for value in walk(jaxpr, known) if value is not None}
    return Program(operations, sizes, given, results)


def _operand(atom: Any, known: dict[core.Var, int]) -> Any:
    """What an operand is, so that two operations on the same ones are known to be the same."""
    return repr(atom) if isinstance(atom, core.Literal) else known[atom]


def _inner_jaxprs(eqn: Any) -> Iterator[core.Jaxpr]:
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield item.jaxpr if isinstance(item, core.ClosedJaxpr) else item


def _fused(program: Program) -> list[Operation]:
    """The operations that write to memory, each reading what those fused into it would read."""
    readers: list[list[str]] = [[] for _ in program.sizes]
    for op in program.operations:
        for value in op.reads:
            readers[value].append(op.name)
    sources = {value: {value} for value in range(len(program.sizes))}
    written = []
    for op in program.operations:
        through = set().union(*(sources[value] for value in op.reads))
        fused = op.name not in WRITTEN and all(
            value not in program.results
            and all(reader not in WRITTEN or reader in ABSORBING for reader in readers[value])
            and (op.name not in COSTLY or len(readers[value]) == 1)
            for value in op.writes
        )
        constant = not through and op.name not in WRITTEN
        if (fused or constant) and not program.results.intersection(op.writes):
            sources.update(dict.fromkeys(op.writes, through))
        else:
            written.append(op._replace(reads=tuple(through)))
    return written
