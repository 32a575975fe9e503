"""What every foreign cell needs to become a `Cell`: which leaf is its output, and clear errors."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from rnn_jax.cells import Cell
from rnn_jax.types import Array, Key, Params, State

Shape = tuple[int, ...]


class Foreign(NamedTuple):
    """A foreign cell as functions.

    Attributes:
        name: what its class is called; every error says it.
        init: `(key, input_shape) -> params`, the shape that of one example's input.
        carry: `shape -> carry`, shape `(*batch, *input_shape)`.
        step: `(params, carry, x) -> (carry, output)`.
    """

    name: str
    init: Callable[[Key, Shape], Params]
    carry: Callable[[Shape], Any]
    step: Callable[[Params, Any, Array], tuple[Any, Any]]


def as_cell(
    foreign: Foreign,
    input_shape: Shape | None,
    probe_shape: Shape,
    emit: Callable[[State], Array] | None,
) -> Cell:
    """The foreign cell as a `Cell`: its carry is the state, its output what `emit` gives.

    Args:
        foreign: the cell.
        input_shape: of one example, where the user gave it; None: `(input_size,)`.
        probe_shape: the input shape with which the cell is tried here.
        emit: the user's, or None to find the carry's leaf that is the output.

    Raises:
        ValueError: what the cell lacks, its name and the way out.
    """
    carry, params = _probe(foreign, probe_shape)
    emit = emit or _emit_of(foreign, params, carry, probe_shape)

    def init(key: Key, input_size: int) -> Params:
        shape = input_shape or (input_size,)
        if input_size != math.prod(shape):
            raise ValueError(
                f"input_size is {input_size}, but {foreign.name} was bridged with input_shape="
                f"{shape}: flattened, {math.prod(shape)} numbers at each step"
            )
        own_carry, _ = _probe(foreign, shape)
        if jax.tree.map(jnp.shape, own_carry) != jax.tree.map(jnp.shape, carry):
            raise ValueError(
                f"the carry of {foreign.name} has another shape with an input of shape {shape} "
                f"than with {probe_shape}; bridge it with input_shape={shape}"
            )
        # Flax draws orthogonal weights by LAPACK. Of many networks at once, several such draws can
        # wait on XLA's CPU threads for each other (docs/upstream/lapack_deadlock.md).
        return sequential_vmap(lambda key: foreign.init(key, shape))(key)

    def initial_state(params: Params, batch_shape: Shape = ()) -> State:
        start = foreign.carry((*batch_shape, *probe_shape))
        types = [leaf.dtype for leaf in jax.tree.leaves(params)]
        # Weights may be of a higher precision than the cell was made for: float64 in comparisons.
        return jax.tree.map(lambda s: s.astype(jnp.result_type(s.dtype, *types)), start)

    def step(params: Params, state: State, x: Array) -> State:
        if input_shape is not None:
            x = x.reshape(*x.shape[:-1], *input_shape)
        new = foreign.step(params, state, x)[0]
        return jax.tree.map(lambda after, before: after.astype(before.dtype), new, state)

    return Cell(init, initial_state, step, emit)


@contextmanager
def named_errors(name: str, doing: str, way_out: str) -> Iterator[None]:
    """Turns what a foreign cell raises into a `ValueError` with its name and a way out."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise  # The bridge's own: it says all this already.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name} failed {doing}: {type(error).__name__}: {reason}; {way_out}"
        ) from error


def check_initializes_carry(cell: Any, base: type, signature: str) -> None:
    """`ValueError` unless a cell has an `initialize_carry` of its own."""
    name = type(cell).__name__
    own = getattr(type(cell), "initialize_carry", None)
    if own is None or own is base.initialize_carry:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} has no initialize_carry; give it one, `{signature} -> carry`, as every "
            "recurrent cell of Flax has, and bridge the cell itself, not an RNN around it"
        )


def _probe(foreign: Foreign, shape: Shape) -> tuple[Any, Params]:
    """Shapes of the carry and the parameters; one step is traced to see that they fit."""
    name = foreign.name
    doing = f"with an input of shape {shape}"
    way_out = "give the input size it was made for, or input_shape= to the bridge"
    with named_errors(name, doing, way_out):
        carry = jax.eval_shape(lambda: foreign.carry(shape))
        params = jax.eval_shape(lambda key: foreign.init(key, shape), jax.random.key(0))
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        new, _ = jax.eval_shape(foreign.step, params, carry, x)
    for tree, part in ((carry, "carry"), (params, "parameters")):
        for path, leaf in jax.tree.leaves_with_path(tree):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"{name} keeps {leaf.dtype} in its {part}{jax.tree_util.keystr(path)}, which "
                    "has no gradient; keep counters and random keys out of them: draw masks "
                    "outside the scan, as rnn_jax.variational_dropout does"
                )
    if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, carry):
        raise ValueError(
            f"a step of {name} turns a carry of shapes {jax.tree.map(jnp.shape, carry)} into "
            f"{jax.tree.map(jnp.shape, new)}; make it return what it was given"
        )
    return carry, params


def _emit_of(
    foreign: Foreign, params: Params, carry: Any, shape: Shape
) -> Callable[[State], Array]:
    """A function that picks the leaf of the carry that the cell also gives as its output.

    Which one is told by the traced program: the output and the leaf are one variable. Where a cell
    computes the same thing twice, one step with random numbers tells.
    """
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.make_jaxpr(foreign.step)(params, carry, x).jaxpr
    leaves = jax.tree.leaves(carry)
    outputs = program.outvars[len(leaves) :]
    found = []
    if len(outputs) == 1:
        found = [n for n, leaf in enumerate(program.outvars[: len(leaves)]) if leaf is outputs[0]]
        found = found or _equal_leaves(foreign, params, carry, x)
    if not found:
        shapes = [getattr(output.aval, "shape", ()) for output in outputs]
        raise ValueError(
            f"the output of {foreign.name}, shape {shapes}, is no leaf of "
            f"its carry, shapes {[leaf.shape for leaf in leaves]}, and a Cell emits from its "
            "state; add the output to the carry, leave what comes after the carry to the readout, "
            "or pass emit=, a function of the carry"
        )
    (chosen, *_) = found
    unit_axes = leaves[chosen].ndim

    def emit(state: State) -> Array:
        leaf = jax.tree.leaves(state)[chosen]
        # An image is one long vector to a readout.
        return leaf if unit_axes == 1 else leaf.reshape(*leaf.shape[: leaf.ndim - unit_axes], -1)

    return emit


def _equal_leaves(foreign: Foreign, params: Params, carry: Any, x: Any) -> list[int]:
    rng = np.random.default_rng(0)
    numbers = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), (params, carry, x)
    )
    with jax.ensure_compile_time_eval():
        new, output = foreign.step(*numbers)
        return [
            n
            for n, leaf in enumerate(jax.tree.leaves(new))
            if leaf.shape == output.shape and bool(jnp.all(leaf == output))
        ]
