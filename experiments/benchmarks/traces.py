"""What the traces cost: the same training with |dL/ds_t| recorded, and without."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.report import COST, Findings, Row, Wanted
from experiments.benchmarks.timing import Side, interleaved, stopwatch
from experiments.setup.sine import SineConfig, parts_of
from rnn_jax import objectives, training
from rnn_jax.model import ModelParams
from rnn_jax.tasks import sine
from rnn_jax.training import traces
from rnn_jax.types import State

WANTED = Wanted("<=", 1.03)


class Shape(NamedTuple):
    """A network and its data: H, B, T; every how many iterations of the tutorial it takes one."""

    hidden_size: int
    batch_size: int
    num_steps: int
    cost: int


SHAPES = (Shape(16, 1, 49, cost=1), Shape(128, 64, 100, cost=200))


def trace_nothing(
    objective: objectives.Objective,
    params: ModelParams,
    carry: State,
    run: objectives.Run,
    adjoints: State,
) -> tuple[()]:
    """No trace at all; XLA then drops whatever only a trace would need."""
    del objective, params, carry, run, adjoints
    return ()


def training_side(shape: Shape, trace: traces.Trace, iterations: int) -> Side:
    """`iterations` training steps on sine waves as one XLA program."""
    config = SineConfig(
        hidden_size=shape.hidden_size, batch_size=shape.batch_size, init="orthogonal"
    )
    parts = parts_of(config)
    sample = sine.sampler(shape.batch_size, shape.num_steps + 1)
    optimizer = parts.optimizer(jnp.float32(config.learning_rate))
    state = training.init_state(parts.model, optimizer, jax.random.key(0), 1, shape.batch_size)

    def work(state: training.TrainState) -> Any:
        return training.train_chunk(
            parts.objective, optimizer, sample, state, jax.random.key(1), iterations, trace
        )

    return Side(stopwatch(lambda: jax.tree.map(jnp.copy, state), work), iterations)


def findings(iterations: int, repeats: int) -> Findings:
    """Time with traces over time without, at each shape.

    Args:
        iterations: in a run of the tutorial's shape; larger shapes run fewer.
        repeats: pairs of runs.
    """
    rows = []
    for shape in SHAPES:
        count = max(1, iterations // shape.cost)
        times = interleaved(
            {
                f"traces on, H = {shape.hidden_size}": training_side(
                    shape, traces.trace_states, count
                ),
                f"traces off, H = {shape.hidden_size}": training_side(shape, trace_nothing, count),
            },
            repeats,
        )
        on, off = times.values()
        what = (
            f"traces on / off: H = {shape.hidden_size}, B = {shape.batch_size}, "
            f"T = {shape.num_steps}"
        )
        rows.append(Row(what, on, off, COST, WANTED))
    return Findings(rows, [])
