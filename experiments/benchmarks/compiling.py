"""What a training step takes to compile: ours beside a plain scan's."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.benchmarks.contenders import CELLS, Contender, Problem, Shape, axes_of
from experiments.benchmarks.contenders import ours as our_step
from experiments.benchmarks.contenders import plain as plain_step
from experiments.benchmarks.contenders import problem as problem_of
from experiments.benchmarks.report import COST, Findings, Row, Wanted
from experiments.benchmarks.timing import Side, interleaved, stopwatch

SHAPES = tuple(Shape(cell, hidden_size=128, batch_size=32, num_steps=200) for cell in CELLS)
WANTED = Wanted("<=", 1.3)


def compilation(make: Callable[[Problem], Contender], given: Problem) -> Side:
    """Traces, lowers and compiles one step; every program and trace of before is forgotten."""

    def prepare() -> tuple[Contender, Any]:
        contender = make(given)
        start = jax.jit(contender.optimizer.init)(contender.params)
        jax.clear_caches()
        return contender, start

    def work(prepared: tuple[Contender, Any]) -> None:
        contender, start = prepared
        jax.jit(contender.step).lower(contender.params, start).compile()

    return Side(stopwatch(prepare, work))


def findings(repeats: int) -> Iterator[Findings]:
    """Seconds to compile a step of each cell.

    Args:
        repeats: rounds.
    """
    for shape in SHAPES:
        given = problem_of(shape)
        sides = {
            "compiling ours": compilation(our_step, given),
            "compiling a plain scan": compilation(plain_step, given),
        }
        ours, plain = interleaved(sides, repeats).values()
        what = f"compiling a step, {shape}: ours / plain scan"
        yield Findings([Row(what, ours, plain, COST, WANTED, axes_of(shape))], [])
