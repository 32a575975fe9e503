"""Full training steps of elman, lstm and gru at any size: ours, plain JAX's, Flax's, PyTorch's.

A step is a pass over a fixed batch, the gradient, and Adam; ours records |dL/ds_t| as well. The
JAX sides run several steps as one program, PyTorch one after the other; all from the same weights.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

import rnn_jax
from experiments.benchmarks.timing import Side, pace, stopwatch
from rnn_jax import bridge, losses, objectives, training
from rnn_jax.model import Model, ModelParams
from rnn_jax.training import optim
from rnn_jax.types import Array, Batch, State

INPUT_SIZE = 16
LEARNING_RATE = 1e-3
RUN_SECONDS = 0.05
"""What a timed run takes at least, about."""
FEWEST_STEPS, MOST_STEPS = 4, 500
"""In a run."""
LONG_STEP = 1.0
"""Seconds: of steps that take longer, one is a run."""
TOLERANCE = 1e-4
"""Largest difference of two gradients, relative to the largest entry of a parameter's."""

CELLS: dict[str, Callable[[int], rnn_jax.Cell]] = {
    "elman": rnn_jax.elman,
    "lstm": rnn_jax.lstm,
    "gru": rnn_jax.gru,
}
FLAX = {"elman": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


class Shape(NamedTuple):
    """What is trained: the cell's name, H, B and T."""

    cell: str
    hidden_size: int
    batch_size: int
    num_steps: int

    def __str__(self) -> str:
        return f"{self.cell}, H {self.hidden_size}, B {self.batch_size}, T {self.num_steps:,}"


def axes_of(shape: Shape) -> dict[str, Any]:
    """A shape in the letters of the field, for results.json."""
    return dict(zip(("cell", "H", "B", "T"), shape, strict=True))


class Problem(NamedTuple):
    """What every side works on.

    Attributes:
        shape: of the network and its data.
        model: ours.
        params: of ours, from which all start.
        batch: inputs `[T, B, D]`, targets `[T, B, 1]`.
    """

    shape: Shape
    model: Model
    params: ModelParams
    batch: Batch


def problem(shape: Shape) -> Problem:
    """Random weights and random data."""
    model = rnn_jax.sequence_model(CELLS[shape.cell](shape.hidden_size), 1)
    weights_key, inputs_key, targets_key = jax.random.split(jax.random.key(0), 3)
    steps = (shape.num_steps, shape.batch_size)
    batch = Batch(
        jax.random.normal(inputs_key, (*steps, INPUT_SIZE)),
        jax.random.normal(targets_key, (*steps, 1)),
    )
    return Problem(
        shape, model, jax.jit(model.init, static_argnums=1)(weights_key, INPUT_SIZE), batch
    )


def in_segments(given: Problem, segment_length: int) -> Problem:
    """The same work by nested checkpointing: weights and gradients are those of `given`."""
    cell = rnn_jax.segmented(given.model.cell, segment_length)
    return given._replace(model=rnn_jax.sequence_model(cell, 1))


def steps_in_a_run(seconds: float) -> int:
    """So many steps, of so many seconds each, that a run takes about `RUN_SECONDS`."""
    if seconds > LONG_STEP:
        return 1
    return max(FEWEST_STEPS, min(MOST_STEPS, round(RUN_SECONDS / seconds)))


class Contender(NamedTuple):
    """A side of the benchmark in JAX.

    Attributes:
        params: its own.
        step: `(params, opt_state) -> (params, opt_state, what it tells)`.
        gradients: `params -> ModelParams`, in our layout.
        optimizer: whose state `step` carries.
    """

    params: Any
    step: Callable[[Any, Any], tuple[Any, Any, Any]]
    gradients: Callable[[Any], ModelParams]
    optimizer: optax.GradientTransformation


def ours(given: Problem) -> Contender:
    """The library's training step, traces on."""
    objective = objectives.next_step_objective(given.model, losses.squared_error)
    optimizer = optim.recorded(optax.adam(LEARNING_RATE))
    carry = given.model.cell.initial_state(given.params.cell, (given.shape.batch_size,))

    def step(params: ModelParams, opt_state: Any) -> tuple[ModelParams, Any, Any]:
        state = training.TrainState(jnp.zeros((), jnp.int32), params, opt_state, carry)
        new, metrics = training.train_step(objective, optimizer, state, given.batch)
        return new.params, new.opt_state, (metrics.loss, metrics.trace)

    def gradients(params: ModelParams) -> ModelParams:
        zeros = rnn_jax.zero_perturbations(carry, given.shape.num_steps)

        def loss(params: ModelParams) -> Array:
            return objectives.mean_loss(objective.run(params, carry, given.batch, zeros))

        return jax.grad(loss)(params)

    return Contender(given.params, step, gradients, optimizer)


def _contender(
    given: Problem,
    params: Any,
    outputs: Callable[[Any], Array],
    renamed: Callable[[Any], ModelParams],
) -> Contender:
    """A side that JAX differentiates by itself."""
    optimizer = optax.adam(LEARNING_RATE)

    def loss(params: Any) -> Array:
        return jnp.mean(losses.squared_error(outputs(params), given.batch.targets))

    def step(params: Any, opt_state: Any) -> tuple[Any, Any, Any]:
        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return Contender(params, step, lambda params: renamed(jax.grad(loss)(params)), optimizer)


def plain(given: Problem) -> Contender:
    """`jax.grad` of a `lax.scan` over our own step."""
    model, size = given.model, given.shape.batch_size

    def outputs(params: ModelParams) -> Array:
        start = model.cell.initial_state(params.cell, (size,))
        states = rnn_jax.plain_unroll(model.cell, params.cell, start, given.batch.inputs)
        return model.readout(params.readout, model.cell.emit(states))

    return _contender(given, given.params, outputs, lambda gradients: gradients)


def flax(given: Problem) -> Contender:
    """`flax.linen.RNN` with the matching cell, and our readout."""
    layer = nn.RNN(FLAX[given.shape.cell](given.shape.hidden_size), time_major=True)
    like = jax.jit(layer.init)(jax.random.key(0), given.batch.inputs)["params"]["cell"]
    params = ModelParams(bridge.to_flax(given.params.cell, like), given.params.readout)

    def outputs(params: ModelParams) -> Array:
        states: Any = layer.apply({"params": {"cell": params.cell}}, given.batch.inputs)
        return given.model.readout(params.readout, states)

    return _contender(
        given, params, outputs, lambda g: ModelParams(bridge.from_flax(g.cell), g.readout)
    )


def side_of(contender: Contender, steps: int) -> Side:
    """`steps` training steps as one program, compiled here: no run holds its compilation."""

    def run(start: tuple[Any, State]) -> Any:
        def body(now: tuple[Any, State], _: None) -> tuple[tuple[Any, State], Any]:
            params, opt_state, told = contender.step(*now)
            return (params, opt_state), told

        return lax.scan(body, start, length=steps)

    start = (contender.params, jax.jit(contender.optimizer.init)(contender.params))
    return Side(stopwatch(lambda: start, jax.jit(run).lower(start).compile()), steps)


def torch_side(torch: Any, given: Problem, steps: int) -> Side:
    """`steps` training steps of PyTorch's, on all cores; `torch` is `benchmarks.pytorch`."""
    shape = given.shape
    arrays = [np.asarray(leaf) for leaf in (given.batch.inputs, given.batch.targets)]
    run = torch.layer_run(
        shape.cell, shape.hidden_size, *arrays, LEARNING_RATE, steps, os.cpu_count()
    )
    return Side(run, steps)


def worst_difference(found: ModelParams, wanted: ModelParams) -> float:
    """Largest difference of any parameter's gradient, relative to its largest entry."""
    # In NumPy: JAX would compile every operation anew at every point of a grid.
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (found, wanted))
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(*leaves, strict=True)
    )


class Agreement(NamedTuple):
    """What a comparison of gradients tells of a side.

    Attributes:
        seconds: that its gradient takes, compilation apart.
        difference: from the first side's, relative to the largest entry of a parameter.
    """

    seconds: float
    difference: float


def agreement(
    contenders: Mapping[str, Contender], given: Problem, torch: Any = None
) -> dict[str, Agreement]:
    """Compares the gradients of all sides with the first one's.

    Args:
        contenders: name -> side.
        given: what they work on.
        torch: `experiments.benchmarks.pytorch`, compared too; or None.

    Raises:
        ValueError: two sides differ: their times would be of different work.
    """
    ways: dict[str, Callable[[], ModelParams]] = {
        name: functools.partial(jax.jit(side.gradients).lower(side.params).compile(), side.params)
        for name, side in contenders.items()
    }
    if torch:
        ways["PyTorch"] = lambda: torch.layer_gradients(given.shape.cell, given.params, given.batch)
    first = next(iter(ways))
    found = {name: pace(way) for name, way in ways.items()}
    told = {
        name: Agreement(seconds, worst_difference(gradients, found[first][1]))
        for name, (seconds, gradients) in found.items()
    }
    for name, side in told.items():
        if not side.difference <= TOLERANCE:
            raise ValueError(
                f"{given.shape}: the gradients of {name} differ from those of {first} by "
                f"{side.difference:.2g}, relative; nothing is timed beyond {TOLERANCE:g}"
            )
    return told
