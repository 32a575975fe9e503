"""Whether a state, inputs and perturbations fit a cell: each error is one line with the way out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import Cell
from rnn_jax.types import Array, Params, State


def check_fit(
    cell: Cell, params: Params, state: State, xs: Any, perturbations: State | None = None
) -> Any:
    """xs as arrays; `ValueError`, naming shapes or dtypes, unless all fits together.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]` (or `[H]`), of floating point.
        xs: `[T, B, D]` (or `[T, D]`), an array or what `jnp.asarray` makes one of, such as a list;
            or a dict, a tuple or another pytree of arrays `[T, ...]`, of any type.
        perturbations: leaves `[T, B, H]` (or `[T, H]`), or None.

    Nothing is computed, so it works on what `jit` and `vmap` trace.
    """
    if _is_tree(xs):
        return _check_tree(cell, params, state, xs, perturbations)
    xs = _as_array(xs)
    whole = not jnp.issubdtype(xs.dtype, jnp.inexact)
    if whole and _multiplies(cell):
        raise ValueError(
            f"xs has shape {xs.shape} and type {xs.dtype}, but this cell multiplies x by weights: "
            "embed tokens first, embedding[tokens], so that xs is [T, B, D] of floating point, "
            "time first; measurements that are whole numbers want xs.astype(jnp.float32)"
        )
    if xs.ndim < 2:
        way_out = "a single feature still needs its axis, xs[:, None]"
        if whole:
            way_out = "embed tokens first, embedding[tokens]"
        raise ValueError(
            f"xs has shape {xs.shape}, but [T, B, D] or [T, D] is wanted: time first, features "
            f"last; {way_out}"
        )
    if xs.shape[0] < 1:
        raise ValueError(
            f"xs has shape {xs.shape}: no time step; xs is [T, B, D], time first, of at least one"
        )
    _check_kind(state)
    batch_shape = xs.shape[1:-1]
    wanted = jax.eval_shape(lambda p: cell.initial_state(p, batch_shape), params)
    if _shapes(state) != _shapes(wanted):
        raise ValueError(
            f"state has shape {_shapes(state)}, but cell and xs {xs.shape} want {_shapes(wanted)}; "
            + _state_way_out(cell, params, state, xs)
        )
    _check_perturbations(wanted, xs.shape[0], perturbations)
    if said := _mixed_dtypes(cell, params, state, xs, perturbations):
        raise ValueError(said)
    return xs


def num_steps_of(xs: Any) -> int:
    """T of inputs, an array or a pytree of arrays `[T, ...]`."""
    return jax.tree.leaves(xs)[0].shape[0]


def batch_shape_of(cell: Cell, params: Params, state: State, xs: Any) -> tuple[int, ...]:
    """B of arguments that fit: `()`, `(B,)` or several axes.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`; a pytree says nothing of it, for its leaves may have any shape.
    """
    if isinstance(xs, jax.Array):
        return xs.shape[1:-1]
    return _batch_shape(cell, params, state)


def _is_tree(xs: Any) -> bool:
    """Whether xs is a pytree of arrays; a list of numbers or of arrays becomes one array."""
    return not isinstance(xs, list) and not jax.tree_util.all_leaves([xs])


def _check_tree(
    cell: Cell, params: Params, state: State, xs: Any, perturbations: State | None
) -> Any:
    xs = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), xs)
    shapes = _shapes(xs)
    sizes = {shape[:1] for shape in map(jnp.shape, jax.tree.leaves(xs))}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"xs has shapes {shapes}, but every leaf wants time as its first axis, of the same "
            "size of at least one"
        )
    _check_kind(state)
    batch_shape = _batch_shape(cell, params, state)
    wanted = jax.eval_shape(lambda p: cell.initial_state(p, batch_shape), params)
    if _shapes(state) != _shapes(wanted):
        raise ValueError(
            f"state has shape {_shapes(state)}, but the cell wants {_shapes(wanted)}, with axes "
            "for the batch before them: cell.initial_state(params, batch_shape) makes a state "
            "that fits"
        )
    _check_perturbations(wanted, num_steps_of(xs), perturbations)
    return xs


def _check_perturbations(state: State, num_steps: int, perturbations: State | None) -> None:
    if perturbations is None:
        return
    sequence = jax.tree.map(lambda s: (num_steps, *s.shape), state)
    if _shapes(perturbations) != sequence:
        raise ValueError(
            f"perturbations has shape {_shapes(perturbations)}, but the states want "
            f"{sequence}; zero_perturbations(state, num_steps) makes one that fits"
        )


def check_examples(xs: Any) -> None:
    """`ValueError` for an empty batch, of which nothing is to be measured."""
    if isinstance(xs, jax.Array) and 0 in xs.shape[1:-1]:
        raise ValueError(
            f"xs has shape {xs.shape}: an empty batch, of which there is no gradient to measure; "
            "give at least one example, [T, B, D] with time first"
        )


def _looks_batch_first(shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> str:
    """What to say of xs of this shape beside a batch of another: that it looks batch-first, or "".

    It does where the first axis is as long as the batch and the second is not.
    """
    if len(batch_shape) != 1 or len(shape) < 3 or not shape[0] == batch_shape[0] != shape[1]:
        return ""
    return (
        f"xs is [T, B, D], time first, but with a batch of {batch_shape[0]} this one looks like "
        "[B, T, D]: transpose it, jnp.swapaxes(xs, 0, 1)"
    )


def _mixed_dtypes(
    cell: Cell, params: Params, state: State, xs: Array, perturbations: State | None
) -> str | None:
    """What to say where a step returns a state of another dtype because the arguments are mixed.

    None where they are not, or where the step fails for another reason. Two mixtures work: states
    and parameters of a higher precision than xs, and states of a higher one than parameters.
    """
    given = {"params": params, "xs": xs, "state": state, "perturbations": perturbations}
    dtypes = {name: found for name, tree in given.items() if (found := _dtypes(tree))}
    if "state" not in dtypes or len(set().union(*dtypes.values())) < 2:
        return None

    def step(params: Params, state: State, xs: Array, perturbations: State | None) -> State:
        new = cell.step(params, state, xs[0])
        return new if perturbations is None else jax.tree.map(_add_first, new, perturbations)

    # Of shapes and types alone: on a mesh one step's arrays do not lie as the whole sequence's do.
    kinds = jax.tree.map(_shape_and_type, (params, state, xs, perturbations))
    try:
        new = jax.eval_shape(step, *kinds)
    except (TypeError, ValueError):
        return None
    if _shapes(new) != _shapes(state) or _dtypes(new) <= dtypes["state"]:
        return None
    named = ", ".join(
        f"{name} {'is' if name in ('xs', 'state') else 'are'} {' and '.join(sorted(found))}"
        for name, found in dtypes.items()
    )
    # Parameters say what is wanted, unless they do not agree among themselves.
    decides = "params" if len(dtypes.get("params", ())) == 1 else "state"
    (target, *_) = sorted(dtypes[decides])
    ways = {
        "params": f"cast params, jax.tree.map(lambda p: p.astype(jnp.{target}), params)",
        "xs": f"cast xs, xs.astype(jnp.{target})",
        "state": "take the state from cell.initial_state(params, batch_shape)",
        "perturbations": "take perturbations from zero_perturbations(state, num_steps)",
    }
    to_do = "; ".join(ways[name] for name, found in dtypes.items() if found != {target})
    return (
        f"{named}: so a step turns a state of {' and '.join(sorted(dtypes['state']))} into one of "
        f"{' and '.join(sorted(_dtypes(new)))}; {to_do}"
    )


def _add_first(state: Array, perturbations: Array) -> Array:
    return state + perturbations[0]


def _as_array(xs: Any) -> Array:
    if isinstance(xs, jax.Array):
        return xs
    try:
        return jnp.asarray(xs)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"xs is a {type(xs).__name__} of which no array [T, B, D] can be made ({reason}); pad "
            "sequences of different lengths to the longest, and pass lengths"
        ) from error


def _multiplies(cell: Cell) -> bool:
    """Whether x meets a matrix product: of a stack its bottom layer's."""
    return cell.affine is not None or (cell.layers is not None and _multiplies(cell.layers[0]))


def _check_kind(state: State) -> None:
    for path, leaf in jax.tree.leaves_with_path(state):
        dtype = _dtype(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"state{'.' * bool(name)}{name} is of type {_name(dtype)}, which has no gradient; "
                "a state holds floating point alone: put a counter into xs, and draw random "
                "numbers before the scan"
            )


def _state_way_out(cell: Cell, params: Params, state: State, xs: Array) -> str:
    """How to make state and xs fit; never a state for the time axis of a batch-first xs."""
    if not jnp.issubdtype(xs.dtype, jnp.inexact):
        return "xs is [T, B, D], time first: embed tokens first, embedding[tokens]"
    if xs.ndim == 2:
        return (
            "xs is [T, D] for one sequence, whose state cell.initial_state(params) makes, and "
            "[T, B, D], time first, for a batch; a single feature still needs its axis, "
            "xs[..., None]"
        )
    if hint := _looks_batch_first(xs.shape, _batch_shape(cell, params, state)):
        return hint
    batch = xs.shape[1:-1]
    return (
        f"xs is [T, B, D], time first, here {xs.shape[0]} steps of a batch of "
        f"{batch[0] if len(batch) == 1 else batch}: cell.initial_state(params, {batch}) makes a "
        "state that fits, and jnp.swapaxes(xs, 0, 1) mends an xs that is batch-first"
    )


def _batch_shape(cell: Cell, params: Params, state: State) -> tuple[int, ...]:
    """The batch axes of a state of this cell; () where it is none, or its leaves differ in them."""
    single = jax.eval_shape(cell.initial_state, params)
    leaves, alone = jax.tree.leaves(state), jax.tree.leaves(single)
    if len(leaves) != len(alone):
        return ()
    found = set()
    for shape, units in zip(map(jnp.shape, leaves), (leaf.shape for leaf in alone), strict=True):
        count = len(shape) - len(units)
        found.add(shape[:count] if count >= 0 and shape[count:] == units else ())
    return found.pop() if len(found) == 1 else ()


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def _dtype(leaf: Any) -> np.dtype:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _dtypes(tree: Any) -> set[str]:
    """The floating-point types among the leaves, as JAX holds them; weak ones follow the others."""
    dtypes = {_dtype(leaf) for leaf in jax.tree.leaves(tree) if not _is_weak(leaf)}
    return {str(jnp.result_type(d)) for d in dtypes if jnp.issubdtype(d, jnp.inexact)}


def _is_weak(leaf: Any) -> bool:
    """Whether its type gives way to that of any array that it meets, as a Python number's does."""
    return isinstance(leaf, int | float | complex) or bool(getattr(leaf, "weak_type", False))


def _shape_and_type(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = _dtype(leaf)
    if jnp.issubdtype(dtype, jnp.number):
        dtype = jnp.result_type(dtype)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype, weak_type=_is_weak(leaf))


def _name(dtype: np.dtype) -> str:
    return "float0" if dtype == jax.dtypes.float0 else str(dtype)
