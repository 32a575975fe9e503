"""Cells of `flax.linen`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from rnn_jax.bridge.foreign import Foreign, as_cell, check_initializes_carry
from rnn_jax.bridge.known import known_linen, with_structure
from rnn_jax.cells import Cell
from rnn_jax.types import Array, Key, Params, State


def from_linen(
    module: linen.Module | Callable[[], linen.Module],
    *,
    input_shape: tuple[int, ...] | None = None,
    emit: Callable[[State], Array] | None = None,
) -> Cell:
    """A recurrent cell of `flax.linen`, or a user's own in its style, as a `Cell`.

    Args:
        module: a cell such as `linen.GRUCell(features=16)`: `(carry, x) -> (carry, output)` with
            an `initialize_carry`; or a function without arguments that returns one.
        input_shape: the shape of one example's input at one step, where it is no vector: an image
            `(height, width, channels)` for `ConvLSTMCell`. xs are then `[T, B, D]` with the image
            flattened, and so is what the readout sees. Also for cells whose carry depends on it.
        emit: `carry -> [..., H]` for a cell whose output is no leaf of its carry.

    Returns:
        A `Cell`. Its params are the module's collection "params", its state the carry; `emit`
        gives the carry's leaf that is the cell's output. Flax's own `SimpleCell`, `LSTMCell`,
        `OptimizedLSTMCell`, `GRUCell` and `MGUCell` have `affine` parts, and with them the speed
        of elman, lstm, gru and mgu. Carries drawn at random are those of
        `jax.random.key(0)`.

    Raises:
        ValueError: no cell, no `initialize_carry`, an output that is no leaf of the carry, shapes
            that do not fit, variables other than "params"; the cell named and the way out.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen
    >>> import rnn_jax
    >>> cell = rnn_jax.bridge.from_linen(linen.GRUCell(features=16))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state = cell.initial_state(params, batch_shape=(8,))
    >>> rnn_jax.unroll(cell, params, state, jnp.ones((50, 8, 3))).shape
    (50, 8, 16)
    """
    if callable(module) and not isinstance(module, linen.Module | type):
        module = module()
    if not isinstance(module, linen.Module):
        raise ValueError(
            f"from_linen wants an instance of a flax.linen cell, but was given {module!r}; for "
            "example linen.GRUCell(features=16). For an nnx cell there is from_nnx"
        )
    check_initializes_carry(module, linen.RNNCellBase, "initialize_carry(rng, input_shape)")
    name = type(module).__name__

    def carry(shape: tuple[int, ...]) -> Any:
        return module.initialize_carry(jax.random.key(0), shape)

    def init(key: Key, shape: tuple[int, ...]) -> Params:
        variables = module.init(key, carry(shape), jnp.zeros(shape))
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"{name} has variables {others} beside its params, and a Cell's step is a function "
                "of params, state and x alone; take the layer that makes them out of the cell"
            )
        return linen.meta.unbox(variables.get("params", {}))

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Any]:
        return module.apply({"params": params}, state, x)

    cell = as_cell(Foreign(name, init, carry, step), input_shape, input_shape or (1,), emit)
    return with_structure(cell, known_linen(module))
