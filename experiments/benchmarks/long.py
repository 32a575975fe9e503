"""One very long sequence: back-propagation by nested checkpointing beside the direct way."""

import math
from collections.abc import Iterator

from experiments.benchmarks import peak
from experiments.benchmarks.contenders import (
    TOLERANCE,
    Shape,
    agreement,
    axes_of,
    in_segments,
    ours,
    problem,
    side_of,
    steps_in_a_run,
)
from experiments.benchmarks.report import COST, Findings, Number, Row, Wanted
from experiments.benchmarks.timing import interleaved

SHAPES = tuple(
    Shape(cell, hidden_size=64, batch_size=1, num_steps=100_000) for cell in ("elman", "lstm")
)
WANTED_TIME = Wanted("<=", 1.6)
WANTED_GIGABYTES = Wanted("<=", 1)


def findings(repeats: int) -> Iterator[Findings]:
    """Difference of the gradients, ratio of times, peak memory of each way.

    Args:
        repeats: rounds.

    Raises:
        ValueError: the gradients differ.
    """
    for shape in SHAPES:
        given = problem(shape)
        length = math.isqrt(shape.num_steps)
        sides = {"direct": ours(given), "in segments": ours(in_segments(given, length))}
        told = agreement(sides, given)
        steps = steps_in_a_run(told["direct"].seconds)
        times = interleaved({name: side_of(side, steps) for name, side in sides.items()}, repeats)
        at = axes_of(shape)
        row = Row(
            f"a step, {shape}: in segments of {length} / direct",
            times["in segments"],
            times["direct"],
            COST,
            WANTED_TIME,
            at,
        )
        difference = Number(
            f"gradients, {shape}: in segments / direct, largest relative difference",
            told["in segments"].difference,
            wanted=Wanted("<=", TOLERANCE),
            at=at,
        )
        peaks = [
            peak.number("direct", "ours", shape, wanted=WANTED_GIGABYTES),
            peak.number("in segments", "ours", shape, length, WANTED_GIGABYTES),
        ]
        yield Findings([row], [], [difference, *peaks])
