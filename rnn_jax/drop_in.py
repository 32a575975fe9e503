"""What Flax's RNN layers compute, by `unroll`: the common part of `rnn_jax.linen` and `.nnx`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.recurrent import flip_sequences

from rnn_jax.bridge.known import Known
from rnn_jax.placement import on_its_mesh
from rnn_jax.types import Array, State
from rnn_jax.unroll import unroll_in_order


class Options(NamedTuple):
    """The options of a call, as Flax names them; those not given are the layer's own."""

    return_carry: bool
    time_major: bool
    reverse: bool
    keep_order: bool


def options_of(layer: Any, **given: bool | None) -> Options:
    """Options of a call, those that are None taken from the layer."""
    return Options(
        **{name: getattr(layer, name) if own is None else own for name, own in given.items()}
    )


def time_axis_of(inputs: Array, time_major: bool) -> int:
    """The axis of time in inputs whose features are one axis."""
    return 0 if time_major else inputs.ndim - 2


def shape_of_step(inputs: Array, time_major: bool) -> tuple[int, ...]:
    """The shape of the inputs at one step."""
    axis = time_axis_of(inputs, time_major)
    return inputs.shape[:axis] + inputs.shape[axis + 1 :]


def fits(known: Known, weights: Any, carry: Any, inputs: Any, time_major: bool) -> bool:
    """Whether a step returns a carry of the shapes and types that it was given.

    Where it does not, Flax's own scan says what is wrong in words that its user knows.
    """
    if inputs.ndim < 2 or not inputs.shape[time_axis_of(inputs, time_major)]:
        return False
    x = jax.ShapeDtypeStruct(shape_of_step(inputs, time_major), inputs.dtype)

    def step(weights: Any, carry: Any, x: Array) -> tuple[State, State]:
        state = known.state(carry)
        params = known.params(weights)
        return state, known.cell.step(params, state, _multiplied(known, params, x))

    try:
        old, new = jax.eval_shape(step, weights, carry, x)
    except (TypeError, ValueError):
        return False
    sizes = {leaf.shape[:-1] for leaf in jax.tree.leaves(old)}
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (old, new)]
    return kinds[0] == kinds[1] and sizes == {x.shape[:-1]}


@on_its_mesh
def run(
    known: Known,
    weights: Any,
    carry: Any,
    inputs: Array,
    seq_lengths: Array | None,
    options: Options,
) -> Any:
    """What Flax's RNN returns.

    Args:
        known: the cell.
        weights: of the Flax cell.
        carry: what it starts from.
        inputs: `[*batch, T, D]`, or `[T, *batch, D]` if `time_major`.
        seq_lengths: `[*batch]` or None. As in Flax, the cell runs over padding too: its outputs
            there are what it computes, and lengths say which carry is the last.
        options: of the call.

    Returns:
        The outputs, or `(carry, outputs)` if `return_carry`.
    """
    axis = time_axis_of(inputs, options.time_major)
    xs = jnp.moveaxis(inputs, axis, 0)
    batch_ndim = xs.ndim - 2

    def flip(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: flip_sequences(leaf, seq_lengths, batch_ndim, True), tree)

    params = known.params(weights)
    states = unroll_in_order(
        known.cell,
        params,
        known.state(carry),
        _multiplied(known, params, flip(xs) if options.reverse else xs),
        perturbations=None,
        lengths=None,
        arrange=flip if options.reverse else lambda sites: sites,
    )
    outputs = known.cell.emit(states)
    if options.reverse and options.keep_order:
        outputs = flip(outputs)
    outputs = jnp.moveaxis(outputs, 0, axis)
    if not options.return_carry:
        return outputs
    last = jax.tree.map(lambda leaf: _at_length(leaf, seq_lengths), states)
    return known.carry(last), outputs


def _multiplied(known: Known, params: Any, x: Array) -> Array:
    """x in the type in which it meets the weights; whole numbers become floating."""
    return x.astype(known.dtype or jnp.result_type(x, params.U))


def _at_length(states: Array, seq_lengths: Array | None) -> Array:
    """Of states `[T, *batch, H]` the last one of each sequence."""
    if seq_lengths is None:
        return states[-1]
    seq_lengths = jnp.asarray(seq_lengths)
    axes = [jnp.arange(size) for size in seq_lengths.shape]
    return states[(seq_lengths - 1, *jnp.meshgrid(*axes, indexing="ij"))]
