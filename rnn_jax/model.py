"""A cell with a readout, o_t = s_t V + c, as pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells import Cell
from rnn_jax.cells.cell import emit_size
from rnn_jax.types import Array, Initializer, Key, Params, State
from rnn_jax.unroll import unroll


class ReadoutParams(NamedTuple):
    """Weights of the readout: V `[H, O]`, c `[O]`."""

    V: Array
    c: Array


class ModelParams(NamedTuple):
    """Parameters of a cell and of its readout."""

    cell: Params
    readout: ReadoutParams


class Model(NamedTuple):
    """A cell and a readout.

    Attributes:
        cell: the recurrent part.
        init: `(key, input_size) -> ModelParams`.
        readout: `(ReadoutParams, [..., H]) -> [..., O]`.
        select: `states -> states` that the readout sees: all of them, or the last.
    """

    cell: Cell
    init: Callable[[Key, int], ModelParams]
    readout: Callable[[ReadoutParams, Array], Array]
    select: Callable[[State], State]


def _linear(params: ReadoutParams, emitted: Array) -> Array:
    product = emitted @ params.V
    return product + jnp.broadcast_to(params.c, product.shape)


def sequence_model(cell: Cell, output_size: int, readout_init: Initializer | None = None) -> Model:
    """A model with an output at every step.

    Args:
        cell: any `Cell`.
        output_size: O.
        readout_init: for V `[H, O]` and c `[O]`; uniform in ±1/sqrt(H) unless given.
    """
    if output_size < 1:
        raise ValueError(f"output_size is {output_size}; give at least 1")

    def init(key: Key, input_size: int) -> ModelParams:
        cell_key, weight_key, bias_key = jax.random.split(key, 3)
        params = cell.init(cell_key, input_size)
        hidden_size = emit_size(cell, params)
        draw = readout_init or initializers.uniform(hidden_size**-0.5)
        dtype = initializers.default_dtype()
        weights = draw(weight_key, (hidden_size, output_size), dtype)
        return ModelParams(
            params, ReadoutParams(V=weights, c=draw(bias_key, (output_size,), dtype))
        )

    return Model(cell, init, _linear, select=lambda states: states)


def last_only(cell: Cell, output_size: int, readout_init: Initializer | None = None) -> Model:
    """A model with one output, read from the last state; of a padded example, its last true state.

    Arguments as in `sequence_model`.
    """
    model = sequence_model(cell, output_size, readout_init)
    return model._replace(select=lambda states: jax.tree.map(lambda s: s[-1], states))


def apply(
    model: Model,
    params: ModelParams,
    state: State,
    xs: Array,
    *,
    perturbations: State | None = None,
    lengths: Array | None = None,
) -> tuple[Array, State]:
    """Runs the cell and reads it out.

    Returns:
        outputs `[T, B, O]` (`[B, O]` for a `last_only` model) and states, leaves `[T, B, H]`.

    Arguments and errors are those of `rnn_jax.unroll`.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> model = rnn_jax.sequence_model(rnn_jax.elman(16), output_size=1)
    >>> params = model.init(jax.random.key(0), 1)
    >>> outputs, states = rnn_jax.apply(model, params, jnp.zeros((8, 16)), jnp.ones((49, 8, 1)))
    >>> outputs.shape, states.shape
    ((49, 8, 1), (49, 8, 16))
    """
    states = unroll(
        model.cell, params.cell, state, xs, perturbations=perturbations, lengths=lengths
    )
    return model.readout(params.readout, model.cell.emit(model.select(states))), states


def closed_loop(model: Model) -> Cell:
    """The free-running network as a cell: each step's input is the output of the step before.

        x_t = s_{t-1} V + c,    s_t = step(theta, s_{t-1}, x_t)

    Its parameters are the model's, its state the cell's; it reads nothing from xs, which only
    say how long to run (`[T, B, 0]`). Gradients, adjoints and Lyapunov exponents of a free run are
    those of this cell.
    """

    def step(params: ModelParams, state: State, x: Array) -> State:
        del x
        prediction = model.readout(params.readout, model.cell.emit(state))
        return model.cell.step(params.cell, state, prediction)

    def initial_state(params: ModelParams, batch_shape: tuple[int, ...] = ()) -> State:
        return model.cell.initial_state(params.cell, batch_shape)

    return Cell(model.init, initial_state, step, model.cell.emit)


def free_run(
    model: Model,
    params: ModelParams,
    state: State,
    x: Array,
    num_steps: int,
    *,
    perturbations: State | None = None,
) -> tuple[Array, State]:
    """Feeds the model its own predictions.

    Args:
        model: a `sequence_model` with as many outputs as inputs.
        params: its parameters.
        state: the state from which to start, leaves `[B, H]`.
        x: the first input, `[B, D]`; every later one is the output before it.
        num_steps: T, at least 1.
        perturbations: zeros like the states; their gradient is dL/ds_t.

    Returns:
        outputs `[T, B, D]` and states, leaves `[T, B, H]`.

    Raises:
        ValueError: the model's outputs are no inputs for it, both shapes named.
    """
    x = jnp.asarray(x)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a free run has at least one step")
    for leaf in jax.tree.leaves(perturbations):
        if leaf.shape[0] != num_steps:
            raise ValueError(
                f"perturbations are for {leaf.shape[0]} steps, but num_steps is {num_steps}; "
                "zero_perturbations(state, num_steps) makes some that fit"
            )

    def split(tree: State | None, part: slice) -> State | None:
        return jax.tree.map(lambda leaf: leaf[part], tree)

    first = unroll(
        model.cell, params.cell, state, x[None], perturbations=split(perturbations, slice(0, 1))
    )
    outputs_shape = (*x.shape[:-1], params.readout.c.shape[-1])
    if outputs_shape != x.shape:
        raise ValueError(
            f"a free run feeds outputs back as inputs, but outputs have shape {outputs_shape} and "
            f"inputs {x.shape}; make output_size equal to the input size"
        )
    states = first
    if num_steps > 1:
        rest = unroll(
            closed_loop(model),
            params,
            jax.tree.map(lambda s: s[0], first),
            jnp.zeros((num_steps - 1, *x.shape[:-1], 0), x.dtype),
            perturbations=split(perturbations, slice(1, None)),
        )
        states = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest)
    return model.readout(params.readout, model.cell.emit(states)), states
