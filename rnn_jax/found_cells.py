"""A recurrence that was found in a program, as a `Cell` whose parameters are the user's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import Cell
from rnn_jax.scans import Body, Equation, Origin, Plan, differentiable, evaluate, run
from rnn_jax.types import Array, Params, State


class LayerParams(NamedTuple):
    """The parameters of a layer that was found in a model.

    Attributes:
        own: the user's own parameters, without those that this layer does not read; paths to them
            are the same.
        constants: what else the step reads, computed from the user's parameters before the scan.
    """

    own: Any
    constants: tuple[Array, ...]


class _Key:
    """A step of a path: of the user's own parameters nothing, as they are where they were."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


jax.tree_util.register_pytree_with_keys(
    LayerParams,
    lambda p: (((_Key(""), p.own), (_Key(".constants"), p.constants)), None),
    lambda _, children: LayerParams(*children),
)


def own_params(tree: Any, leaves: Sequence[Any], kept: set[int]) -> Any:
    """The user's parameters with these leaves alone: None elsewhere, empty dicts left out."""
    return _without_nothing(
        jax.tree.unflatten(tree, [leaf if n in kept else None for n, leaf in enumerate(leaves)])
    )


def _without_nothing(tree: Any) -> Any:
    if type(tree) is not dict:
        return tree
    entries = {key: _without_nothing(value) for key, value in tree.items()}
    return {key: value for key, value in entries.items() if jax.tree.leaves(value)}


def refuse_init(*args: Any, **kwargs: Any) -> Params:
    """A layer's parameters are there already."""
    raise ValueError(
        "this cell was found in a model and draws no parameters; they are the second of the layer"
    )


def cell_of_scan(
    body: Body,
    origins: Mapping[int, Origin],
    fixed: Mapping[int, Array],
    state: Sequence[Any],
    batch_ndim: int,
) -> Cell:
    """The body of a scan as a `Cell`.

    Args:
        body: with its state.
        origins: of those constants that are leaves of the user's parameters.
        fixed: values of those that do not depend on the parameters: masks, counters, data.
        state: types of the state's leaves.
        batch_ndim: how many of their first axes are the batch's.
    """
    numbers = sorted({origin.argument for origin in origins.values()})
    others = [n for n in body.constants if n not in origins and n not in fixed]
    types = dict(zip(body.used, (v.aval for v in body.program.jaxpr.invars), strict=True))
    inputs = (*body.recorded, *body.scanned)
    single = len(state) == 1

    def once(params: LayerParams, state: list[Array], x: list[Array]) -> list[Array]:
        own = dict(zip(numbers, jax.tree.leaves(params.own), strict=True))
        values = {n: _laid_out(own[o.argument], o.layout) for n, o in origins.items()}
        values |= fixed
        values |= dict(zip(others, params.constants, strict=True))
        values |= dict(zip(body.state, state, strict=True)) | dict(zip(inputs, x, strict=True))
        given = [_as_type(values[n], types[n]) for n in body.used]
        new = evaluate(body.program, Plan(), {}, given)
        return [a.astype(s.dtype) for a, s in zip(new, state, strict=True)]

    def step(params: LayerParams, old: State, x: Any) -> State:
        run_once: Callable[..., list[Array]] = once
        leaves = jax.tree.leaves(old)
        # Axes before those that the model's scan had: examples, each with a whole state of its own.
        for _ in range(leaves[0].ndim - len(state[0].shape)):
            run_once = jax.vmap(run_once, in_axes=(None, 0, 0))
        try:
            new = run_once(params, leaves, jax.tree.leaves(x)[: len(inputs)])
        except TypeError as error:
            shapes = [jnp.shape(leaf) for leaf in leaves]
            raise ValueError(
                f"this cell was found in a model, where its state had the shapes "
                f"{[s.shape for s in state]}; it cannot step from {shapes}"
            ) from error
        return new[0] if single else tuple(new)

    def initial_state(params: LayerParams, batch_shape: tuple[int, ...] = ()) -> State:
        zeros = [jnp.zeros((*batch_shape, *s.shape[batch_ndim:]), s.dtype) for s in state]
        return zeros[0] if single else tuple(zeros)

    def emit(states: State) -> Array:
        leaf = states if single else states[body.output]
        unit_axes = len(state[body.output].shape) - batch_ndim
        if unit_axes == 1:
            return leaf
        return leaf.reshape(*leaf.shape[: leaf.ndim - unit_axes], -1)

    return Cell(refuse_init, initial_state, step, emit)


def _laid_out(value: Any, layout: Sequence[Equation]) -> Any:
    for eqn in layout:
        (value,) = run(eqn, [_as_type(value, eqn.invars[0].aval)])
    return value


def _as_type(value: Any, aval: Any) -> Any:
    """A program is written for its own types: bfloat16 stays what it is in the model."""
    if differentiable(aval) and value.dtype != aval.dtype:
        return value.astype(aval.dtype)
    return value


def batch_axes_of(body: Body, state: Sequence[Any]) -> int:
    """How many first axes of the state are a batch's: no example reads another along them.

    The last axis is the units'. It is told from the step's derivative at random numbers: some of
    the new examples must depend on the same old ones alone.
    """
    shapes = [s.shape for s in state]
    most = (
        min(max(map(len, shapes)) - 1, *map(len, shapes))
        if len(shapes) > 1
        else (len(shapes[0]) - 1)
    )
    count = 0
    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(0)
        inputs = [_random(rng, v.aval) for v in body.program.jaxpr.invars]
        places = [body.used.index(n) for n in body.state if n in body.used]

        @jax.jit
        def reached(inputs: list[Array], cotangents: list[Array]) -> list[Array]:
            def new(state: list[Array]) -> list[Array]:
                given = list(inputs)
                for n, value in zip(places, state, strict=True):
                    given[n] = value
                return evaluate(body.program, Plan(), {}, given)

            # In reverse, which a function with a derivative of its own has too.
            return jax.vjp(new, [inputs[n] for n in places])[1](cotangents)[0]

        while count < max(most, 0) and len({shape[: count + 1] for shape in shapes}) == 1:
            size = shapes[0][count]
            for some in _halves(rng, size):
                cotangents = [
                    _random(rng, s) * _along(some, count, len(s.shape)).astype(s.dtype)
                    for s in state
                ]
                for leaf in reached(inputs, cotangents):
                    still = np.compress(~some, np.asarray(leaf), axis=count)
                    if np.any((still != 0) & np.isfinite(still)):
                        return count
            count += 1
    return count


def _halves(rng: np.random.Generator, size: int) -> list[np.ndarray]:
    some = rng.permutation(size) < (size + 1) // 2
    again = rng.permutation(size) < size // 2
    return [some, ~some, again] if size > 1 else []


def _along(some: np.ndarray, axis: int, ndim: int) -> Array:
    return jnp.asarray(some).reshape([-1 if n == axis else 1 for n in range(ndim)])


def _random(rng: np.random.Generator, aval: Any) -> Array:
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0, impl=aval.dtype._impl), aval.shape)
    if differentiable(aval):
        return jnp.asarray(rng.uniform(0.1, 0.9, aval.shape), aval.dtype)
    return jnp.asarray(rng.integers(0, 2, aval.shape), aval.dtype)


def with_user_params(cell: Cell, restore: Callable[[LayerParams], Params]) -> Cell:
    """A cell whose parameters are leaves of the user's own.

    Args:
        cell: any `Cell`.
        restore: the layer's parameters -> the cell's.
    """

    def initial_state(params: LayerParams, batch_shape: tuple[int, ...] = ()) -> State:
        return cell.initial_state(restore(params), batch_shape)

    def step(params: LayerParams, state: State, x: Any) -> State:
        return cell.step(restore(params), state, x)

    affine = cell.affine
    if affine is not None:
        inner = affine
        affine = inner._replace(
            project=lambda params, x: inner.project(restore(params), x),
            recur=lambda params, state: inner.recur(restore(params), state),
            activate=lambda params, state, a, r: inner.activate(restore(params), state, a, r),
            # They would name the parameters of the cell alone.
            factors=None,
        )
    return Cell(refuse_init, initial_state, step, cell.emit, affine)
