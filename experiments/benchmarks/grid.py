"""Full training steps of elman, lstm and gru at every size, beside plain JAX, Flax and PyTorch.

A step is a pass over a fixed batch, the gradient, and Adam; ours records |dL/ds_t| as well. The
JAX sides run several steps as one program, PyTorch one after the other; all from the same weights,
and only where their gradients agree.
"""

import itertools
import math
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
from experiments.benchmarks.report import Findings, Row, Wanted, ratios
from experiments.benchmarks.timing import Side, interleaved, stopwatch
from rnn_jax import bridge, losses, objectives, optim, train
from rnn_jax.model import Model, ModelParams
from rnn_jax.types import Array, Batch, State

INPUT_SIZE = 16
LEARNING_RATE = 1e-3
RUN_SECONDS = 0.05
"""What a timed run takes at least, about."""
TOLERANCE = 1e-4
"""Largest difference of two gradients, relative to the largest entry of a parameter's."""

CELLS: dict[str, Callable[[int], rnn_jax.Cell]] = {
    "elman": rnn_jax.elman,
    "lstm": rnn_jax.lstm,
    "gru": rnn_jax.gru,
}
FLAX = {"elman": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}
GATES = {"elman": 1, "lstm": 4, "gru": 3}


class Shape(NamedTuple):
    """One point of the grid: the cell's name, H, B and T."""

    cell: str
    hidden_size: int
    batch_size: int
    num_steps: int


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


def steps_in_a_run(shape: Shape) -> int:
    """A run takes about `RUN_SECONDS`, at 2e10 operations and 1e6 time steps a second."""
    size = shape.hidden_size * (shape.hidden_size + INPUT_SIZE)
    work = 6 * GATES[shape.cell] * shape.num_steps * shape.batch_size * size
    return max(4, min(500, round(RUN_SECONDS / (work / 2e10 + shape.num_steps / 1e6))))


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
        state = train.TrainState(jnp.zeros((), jnp.int32), params, opt_state, carry)
        new, metrics = train.train_step(objective, optimizer, state, given.batch)
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
    """`steps` training steps as one program."""

    @jax.jit
    def run(start: tuple[Any, State]) -> Any:
        def body(now: tuple[Any, State], _: None) -> tuple[tuple[Any, State], Any]:
            params, opt_state, told = contender.step(*now)
            return (params, opt_state), told

        return lax.scan(body, start, length=steps)

    start = (contender.params, jax.jit(contender.optimizer.init)(contender.params))
    return Side(stopwatch(lambda: start, run), steps)


def worst_difference(found: ModelParams, wanted: ModelParams) -> float:
    """Largest difference of any parameter's gradient, relative to its largest entry."""
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    )


def check_agreement(contenders: Mapping[str, Contender], given: Problem, torch: Any) -> None:
    """`ValueError` where the gradients of two sides differ."""
    found = {name: jax.jit(c.gradients)(c.params) for name, c in contenders.items()}
    if torch:
        found["PyTorch"] = torch.layer_gradients(given.shape.cell, given.params, given.batch)
    wanted = found.pop("ours")
    for name, gradients in found.items():
        difference = worst_difference(gradients, wanted)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{given.shape}: the gradients of {name} differ from ours by {difference:.2g}, "
                f"relative; nothing is timed beyond {TOLERANCE:g}"
            )


def findings(
    torch: Any,
    cells: list[str],
    hidden_sizes: list[int],
    batch_sizes: list[int],
    num_steps: list[int],
    repeats: int,
) -> Findings:
    """Times of every side at every point of the grid.

    Args:
        torch: `experiments.benchmarks.pytorch`, or None.
        cells, hidden_sizes, batch_sizes, num_steps: the axes.
        repeats: rounds at each point.
    """
    rows: dict[str, list[Row]] = {}
    for shape in itertools.starmap(
        Shape, itertools.product(cells, hidden_sizes, batch_sizes, num_steps)
    ):
        given = problem(shape)
        contenders = {"ours": ours(given), "plain scan": plain(given), "Flax": flax(given)}
        check_agreement(contenders, given, torch)
        steps = steps_in_a_run(shape)
        sides = {name: side_of(contender, steps) for name, contender in contenders.items()}
        if torch:
            weights = [np.asarray(leaf) for leaf in (given.batch.inputs, given.batch.targets)]
            sides["PyTorch"] = Side(
                torch.layer_run(
                    shape.cell, shape.hidden_size, *weights, LEARNING_RATE, steps, os.cpu_count()
                ),
                steps,
            )
        times = interleaved(sides, repeats)
        what = f"{shape.cell}, H {shape.hidden_size}, B {shape.batch_size}, T {shape.num_steps}"
        for name in list(times)[1:]:
            rows.setdefault(name, []).append(
                Row(f"{what}: {name}", times["ours"], times[name], wanted=_wanted(name, shape))
            )
    notes = [
        f"geometric mean against {name}: {geometric_mean(part):.2f}" for name, part in rows.items()
    ]
    return Findings([row for part in rows.values() for row in part], notes)


def _wanted(name: str, shape: Shape) -> Wanted:
    if name != "PyTorch":
        return Wanted(">=", 0.95)
    return Wanted(">=", 10.0 if shape.batch_size * shape.hidden_size <= 512 else 1.0)


def geometric_mean(rows: list[Row]) -> float:
    """Of the median ratios."""
    medians = [float(np.median(values)) for row in rows if (values := ratios(row)) is not None]
    return math.exp(float(np.mean(np.log(medians))))
