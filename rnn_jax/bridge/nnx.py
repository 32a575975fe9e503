"""Cells of `flax.nnx`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.bridge.foreign import Foreign, as_cell, check_initializes_carry, named_errors
from rnn_jax.bridge.known import known_nnx, with_structure
from rnn_jax.cells import Cell
from rnn_jax.types import Array, Key, Params, State


def from_nnx(
    factory: Callable[[nnx.Rngs], Any] | nnx.Module,
    *,
    input_shape: tuple[int, ...] | None = None,
    emit: Callable[[State], Array] | None = None,
) -> Cell:
    """A recurrent cell of `flax.nnx`, or a user's own in its style, as a `Cell`.

    Args:
        factory: `rngs -> cell`, the cell `(carry, x) -> (carry, output)` with an
            `initialize_carry`. It is called for the structure once here, and at each `init`. Or
            such a cell itself: `init` then returns its own weights, whatever the key.
        input_shape: the shape of one example's input at one step, where the cell has no
            `in_features` that tells it. More than one axis: as in `from_linen`.
        emit: `carry -> [..., H]` for a cell whose output is no leaf of its carry.

    Returns:
        A `Cell`. Its params are the `nnx.Param` variables as nested dicts, its state the carry.
        Flax's own `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell` and `GRUCell` have `affine` parts.
        What else the cell holds (random streams) stays as it was when made: it is in neither.

    Raises:
        ValueError: as in `from_linen`; also a cell that changes a variable of its own at a step.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> import rnn_jax
    >>> cell = rnn_jax.bridge.from_nnx(lambda rngs: nnx.GRUCell(3, 16, rngs=rngs))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state = cell.initial_state(params, batch_shape=(8,))
    >>> rnn_jax.unroll(cell, params, state, jnp.ones((50, 8, 3))).shape
    (50, 8, 16)
    """
    make = _maker(factory)
    with named_errors("the factory", "to make a cell of nnx.Rngs", "let it take rngs alone"):
        example = make(nnx.Rngs(0))
    if not isinstance(example, nnx.Module):
        raise ValueError(
            f"from_nnx wants a function that returns an nnx cell, but it returned a "
            f"{type(example).__name__}; for a flax.linen cell there is from_linen"
        )
    check_initializes_carry(example, nnx.RNNCellBase, "initialize_carry(input_shape, rngs)")
    name = type(example).__name__
    graph, *variables = nnx.split(example, nnx.Param, ...)
    example_params, rest = nnx.to_pure_dict(variables[0]), variables[1]

    def carry(shape: tuple[int, ...]) -> Any:
        cell: Any = nnx.merge(graph, example_params, _fresh(rest))
        return cell.initialize_carry(shape, nnx.Rngs(0))

    def init(key: Key, shape: tuple[int, ...]) -> Params:
        del shape
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def run(params: Params, rest: Any, state: Any, x: Array) -> tuple[Any, Any, Any]:
        cell = nnx.merge(graph, params, _fresh(rest))
        new, output = cell(state, x)
        return new, output, nnx.state(cell, nnx.Not(nnx.Param))

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Any]:
        return run(params, rest, state, x)[:2]

    features = input_shape or (getattr(example, "in_features", 1),)
    cell = as_cell(Foreign(name, init, carry, step), input_shape, features, emit)
    _check_unchanged(name, run, (example_params, rest, carry(features)), features)
    return with_structure(cell, known_nnx(example))


def _maker(factory: Any) -> Callable[[nnx.Rngs], Any]:
    """The factory; of a cell itself one that returns it."""
    if isinstance(factory, nnx.Module):
        return lambda rngs: factory
    if not callable(factory):
        raise ValueError(
            "from_nnx wants a cell or a function rngs -> cell, but was given "
            f"{type(factory).__name__}; for example lambda rngs: nnx.GRUCell(3, 16, rngs=rngs)"
        )
    return factory


def _fresh(variables: Any) -> Any:
    """New variables of the same values: those of nnx change in place, and nobody else's may."""
    return jax.tree.map(lambda value: value, variables)


def _check_unchanged(
    name: str, run: Callable[..., Any], arguments: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    """`ValueError` where a step changes a variable of the cell: the next step would not see it."""
    params, rest, _ = arguments
    program = jax.make_jaxpr(run)(*arguments, jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
    start, variables = len(jax.tree.leaves(params)), jax.tree.leaves_with_path(rest)
    before = program.invars[start : start + len(variables)]
    after = program.outvars[len(program.outvars) - len(variables) :]
    changed = [
        jax.tree_util.keystr(path)
        for (path, _), old, new in zip(variables, before, after, strict=True)
        if old is not new
    ]
    if changed:
        raise ValueError(
            f"a step of {name} changes its variables {changed}, and a Cell's step is a function of "
            "params, state and x alone; switch dropout off in the cell (deterministic=True) and "
            "draw masks outside the scan, as rnn_jax.variational_dropout does"
        )
