"""How much memory a program will take, told from its jaxpr before anything is compiled.

A program is traced, not compiled, and its values are followed from where they are made to where
they are read last. The estimate is the largest sum of the values alive at once, where

- elementwise operations cost nothing as long as only others of their kind or sums read them: XLA
  computes them where they are read;
- a scan keeps what it reads and what it stacks, and one step's own values;
- an elementwise operation writes over an operand that nobody reads any more.

So it holds for any cell, task, trace or regularizer: nothing is known here of recurrent networks.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

LOOPS = {"scan", "while", "cond"}
READ_IN_PLACE = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin",
    "dynamic_update_slice", "concatenate",
}
SERIAL = LOOPS | READ_IN_PLACE | {
    "dot_general", "conv_general_dilated", "sort", "cumsum", "scatter", "scatter-add", "gather",
    "random_bits", "threefry2x32", "random_fold_in", "random_wrap", "random_unwrap", "random_seed",
    "optimization_barrier", "qr", "cholesky", "eig", "triangular_solve", "cumlogsumexp", "cummax",
    "random_split", "rng_bit_generator", "dynamic_slice",
}
"""Operations whose results are written to memory."""
DEAR = {"tanh", "exp", "log", "logistic", "erf", "erf_inv", "sin", "cos", "pow", "expm1", "log1p", "div", "sqrt", "rsqrt"}
"""Elementwise operations that XLA does not repeat for each reader."""


class Op(NamedTuple):
    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inner: int


class Flow(NamedTuple):
    """A jaxpr as operations on numbered values."""
    ops: list[Op]
    sizes: list[int]


def num_bytes(aval: Any) -> int:
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return math.prod(aval.shape) * 8
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _subjaxprs(eqn) -> list[Any]:
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def jaxpr_peak(jaxpr) -> int:
    """Largest number of bytes that the values made inside take at once."""
    ops, sizes = [], []

    def new(aval):
        sizes.append(num_bytes(aval))
        return len(sizes) - 1

    def walk(jaxpr, env):
        for eqn in jaxpr.eqns:
            reads = tuple(env[v] for v in eqn.invars if not isinstance(v, core.Literal))
            inner = _subjaxprs(eqn)
            name = eqn.primitive.name
            if inner and name not in LOOPS:
                sub = inner[0]
                inenv = {v: new(v.aval) for v in sub.constvars}
                for v, outer in zip(sub.invars, eqn.invars[len(eqn.invars)-len(sub.invars):], strict=True):
                    if isinstance(outer, core.Literal):
                        inenv[v] = new(v.aval); sizes[inenv[v]] = 0
                    else:
                        inenv[v] = env[outer]
                walk(sub, inenv)
                for v, outer in zip(eqn.outvars, sub.outvars, strict=True):
                    if isinstance(outer, core.Literal):
                        env[v] = new(v.aval)
                    else:
                        env[v] = inenv[outer]
                continue
            writes = tuple(new(v.aval) for v in eqn.outvars)
            env.update(zip(eqn.outvars, writes, strict=True))
            ops.append(Op(name, reads, writes, max(map(jaxpr_peak, inner), default=0)))

    env = {v: new(v.aval) for v in (*jaxpr.invars, *jaxpr.constvars)}
    given = set(range(len(sizes)))
    walk(jaxpr, env)
    results = {env[v] for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    return peak(ops, sizes, given, results)


def peak(ops, sizes, given, results, log=None):
    users = [[] for _ in sizes]
    for op in ops:
        for v in op.reads:
            users[v].append(op.name)
    roots: dict[int, frozenset] = {}
    def roots_of(v):
        return roots.get(v, frozenset([v]))
    real = []
    for op in ops:
        through = frozenset().union(*(roots_of(v) for v in op.reads))
        fused = op.name not in SERIAL and all(
            v not in results
            and all(u not in SERIAL or u in READ_IN_PLACE for u in users[v])
            and (op.name not in DEAR or len(users[v]) <= 1)
            for v in op.writes
        )
        if fused:
            for v in op.writes:
                roots[v] = through
        else:
            real.append((op, through))
    last = {}
    for i, (op, through) in enumerate(real):
        for v in through:
            last[v] = i
    live = largest = 0
    alive = set()
    for i, (op, through) in enumerate(real):
        dying = {v for v in through if last[v] == i and v in alive and v not in results}
        early = op.name not in SERIAL
        if early:
            live -= sum(sizes[v] for v in dying); alive -= dying
        made = sum(sizes[v] for v in op.writes)
        live += made
        alive |= set(op.writes)
        if live + op.inner > largest:
            largest = live + op.inner
            if log is not None:
                log[:] = [(op.name, op.inner, sorted((sizes[v] for v in alive), reverse=True)[:12])]
        if not early:
            live -= sum(sizes[v] for v in dying); alive -= dying
        dead = {v for v in op.writes if v not in last and v not in results}
        live -= sum(sizes[v] for v in dead); alive -= dead
    return largest
