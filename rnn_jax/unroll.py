"""A cell over a sequence, differentiated adjoints first."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnn_jax import bptt
from rnn_jax.cells import Cell
from rnn_jax.cells.cell import prepared
from rnn_jax.checks import batch_shape_of, check_fit, num_steps_of
from rnn_jax.placement import align, filled, on_its_mesh
from rnn_jax.tap import adjoint_sites, sited_states, tap
from rnn_jax.types import Array, Params, State


@on_its_mesh
def unroll(
    cell: Cell,
    params: Params,
    state: State,
    xs: Any,
    *,
    perturbations: State | None = None,
    lengths: Array | None = None,
) -> State:
    """All states of a cell run over a sequence: s_t = step(params, s_{t-1}, x_t).

    Args:
        cell: any `Cell`.
        params: the cell's parameters.
        state: s_0, leaves `[B, H]` (or `[H]` for a single sequence).
        xs: `[T, B, D]` (or `[T, D]`), time first; anything that `jnp.asarray` takes. Or a dict or
            another pytree of arrays `[T, ...]`, of which the step gets those of its own time.
        perturbations: zeros like the result, added to s_t as it is computed. Their gradient is
            lambda_t = dL/ds_t, every path into the future included (`flax.linen.Module.perturb`).
        lengths: `[B]` whole numbers in 1..T. Past an example's length its state stays as it was,
            and the gradients of its inputs and perturbations are exactly zero; they may hold
            anything there, NaN included.

    Returns:
        s_1..s_T, leaves `[T, B, H]`.

    Raises:
        ValueError: shapes or dtypes that do not fit, all named.

    Of a cell with `affine` parts the reverse rule runs the lines of `rnn_jax.bptt`. Like every
    `jax.custom_vjp` it has no forward mode; `plain_unroll` has. Any other cell is scanned as it is,
    and JAX differentiates it.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.lstm(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=2)
    >>> states = rnn_jax.unroll(cell, params, cell.initial_state(params), jnp.ones((7, 2)))
    >>> states.c.shape, states.h.shape
    ((7, 4), (7, 4))
    """
    return unroll_in_order(cell, params, state, xs, perturbations, lengths)


def unroll_in_order(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    perturbations: State | None,
    lengths: Array | None,
    arrange: Callable[[State], State] = lambda sites: sites,
    label: str = "",
) -> State:
    """`unroll` of a sequence that was rearranged before it.

    Args:
        cell, params, state, xs, perturbations, lengths: as of `unroll`.
        arrange: an array over the given sequence -> in the order of xs. `rnn_jax.watch` shows
            dL/ds_t in the given order.
        label: added to the name that it shows.
    """
    xs = check_fit(cell, params, state, xs, perturbations)
    batch_shape = batch_shape_of(cell, params, state, xs)
    valid = None if lengths is None else valid_steps(lengths, xs, batch_shape)
    params, xs, state, perturbations, valid = align(
        params, len(batch_shape), (xs, 1), (state, 0), (perturbations, 1), (valid, 1)
    )
    xs, perturbations = _without_padding(xs, perturbations, valid)
    everything = (state, params, xs, valid)
    # Nobody watches a call whose numbers are all there, and zeros would take as much as its states.
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(everything)):
        return _unroll_layers(cell, params, state, xs, perturbations, None, valid)
    sites = adjoint_sites(state, num_steps_of(xs), everything, label, cell)
    states = _unroll_layers(cell, params, state, xs, perturbations, arrange(sites), valid)
    return sited_states(states, sites)


@on_its_mesh
def plain_unroll(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    *,
    perturbations: State | None = None,
    lengths: Array | None = None,
) -> State:
    """`unroll` as `lax.scan` over `cell.step` and nothing else.

    The same arguments and result. JAX differentiates it by itself, in forward mode too: it serves
    Jacobian-vector products, and it is the answer that `unroll` is tested against.
    """
    xs = check_fit(cell, params, state, xs, perturbations)
    batch_shape = batch_shape_of(cell, params, state, xs)
    valid = None if lengths is None else valid_steps(lengths, xs, batch_shape)
    params, xs, state, perturbations, valid = align(
        params, len(batch_shape), (xs, 1), (state, 0), (perturbations, 1), (valid, 1)
    )
    xs, perturbations = _without_padding(xs, perturbations, valid)
    plain = cell._replace(affine=None)
    return run_forward(plain, prepared(cell, params), state, xs, perturbations, valid).states


@on_its_mesh
def zero_perturbations(state: State, num_steps: int) -> State:
    """Zeros like `num_steps` states, leaves `[T, B, H]`; on a mesh, where the state is."""
    return jax.tree.map(
        lambda s: filled(0, jnp.result_type(s), s, jnp.ndim(s), (num_steps,)), state
    )


def valid_steps(lengths: Array, xs: Any, batch_shape: tuple[int, ...] | None = None) -> Array:
    """`[T, B]`, True where t < lengths; `ValueError` for lengths of another shape or off 1..T.

    `batch_shape` is B, where xs is not an array `[T, B, D]`.
    """
    num_steps = num_steps_of(xs)
    batch_shape = xs.shape[1:-1] if batch_shape is None else batch_shape
    lengths = lengths if isinstance(lengths, jax.Array) else jnp.asarray(lengths)
    whole = jnp.issubdtype(lengths.dtype, jnp.integer) or not lengths.size
    if lengths.shape != batch_shape or not whole:
        raise ValueError(
            f"lengths has shape {lengths.shape} and type {lengths.dtype}, but xs "
            f"{jax.tree.map(jnp.shape, xs)} wants whole numbers of shape {batch_shape}: one "
            "length for each example, xs being [T, B, D], time first"
        )
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        values = np.asarray(lengths)
        low, high = values.min(), values.max()
        if low < 1 or high > num_steps:
            raise ValueError(
                f"lengths run from {low} to {high}, but each must be in 1..{num_steps}, the number "
                "of steps in xs; drop empty examples or pad xs further"
            )
    steps = jnp.arange(num_steps).reshape((num_steps,) + (1,) * lengths.ndim)
    return steps < lengths[None]


def fill_padding(tree: Any, valid: Array | None, row: int = 0) -> Any:
    """Leaves `[T, B, ...]` that hold nothing of what lay where `valid` `[T, B]` is False.

    What is computed there is thrown away, but 0 times NaN is NaN: neither a step or a loss nor its
    derivative may meet it. Each example repeats its own row `row` instead, and a zero where that
    is not valid either: a function of the user's own may have no derivative at 0.
    """
    if valid is None:
        return tree

    def fill(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.shape[: valid.ndim] != valid.shape:
            return leaf  # It is the same for all examples: a counter, a key.
        one = bptt.where_valid(valid[row], leaf[row], jnp.zeros_like(leaf[row]))
        filling = jnp.broadcast_to(lax.stop_gradient(one)[None], leaf.shape)
        return bptt.where_valid(valid, leaf, filling)

    return jax.tree.map(fill, tree)


def _without_padding(
    xs: Array, perturbations: State | None, valid: Array | None
) -> tuple[Array, State | None]:
    nothing = jax.tree.map(jnp.zeros_like, perturbations)
    return fill_padding(xs, valid), bptt.where_valid(valid, perturbations, nothing)


def run_forward(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    perturbations: State | None = None,
    valid: Array | None = None,
    sites: State | None = None,
) -> bptt.Trajectory:
    """`bptt.forward`, with what does not fit said in the user's terms."""
    try:
        return bptt.forward(cell, params, state, xs, perturbations, valid, sites)
    except TypeError as error:
        shapes = jax.tree.map(jnp.shape, params)
        x_shape = jax.tree.map(lambda x: x.shape[1:], xs)
        reason = " ".join(str(error).partition("\n---")[0].split())
        raise ValueError(
            f"the cell cannot step from a state of shape {jax.tree.map(jnp.shape, state)} with x "
            f"of shape {x_shape} and parameters of shapes {shapes}: {reason}"
        ) from error


def _unroll_layers(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    perturbations: State | None,
    sites: State | None,
    valid: Array | None,
) -> State:
    """A stack one layer after the other, each over the whole sequence by its own adjoint.

    The layer above sees the same states as in a scan over whole steps, and each layer keeps its
    structure: its input product, weight gradients included, is one product over all t.
    A perturbation is added to s_t when the step is done, so the layer above meets it at t + 1 only.
    So it is with sites, which are nowhere added: their cotangent is the perturbations'.
    """
    if cell.segment_length is not None and cell.segment_length < num_steps_of(xs):
        return _unroll_segments(cell, params, state, xs, perturbations, sites, valid)
    if cell.layers is None:
        params = prepared(cell, params)
        if cell.affine is None:
            # Of a step without structure JAX's own derivative is the faster one: it keeps what a
            # rule of ours would compute again. lambda_t is the gradient by what is added to s_t.
            return run_forward(cell, params, state, xs, perturbations, valid, sites).states
        return _unroll(cell, params, state, xs, perturbations, sites, valid)
    nothing = (None,) * len(cell.layers)
    states = []
    for layer, own, first, perturbation, site in zip(
        cell.layers, params, state, perturbations or nothing, sites or nothing, strict=True
    ):
        states.append(_unroll_layers(layer, own, first, xs, perturbation, site, valid))
        computed = states[-1]
        if perturbation is not None:
            computed = jax.tree.map(jnp.subtract, computed, perturbation)
        if site is not None:
            computed = jax.tree.map(lambda c, s: tap(c, -s), computed, site)
        xs = layer.emit(computed)
    return tuple(states)


def _unroll_segments(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    perturbations: State | None,
    sites: State | None,
    valid: Array | None,
) -> State:
    """One segment after the other; of each, the way back keeps the start and runs it again."""
    length = cell.segment_length
    assert length is not None
    plain = cell._replace(segment_length=None)
    # What does not fill a segment comes first, as a segment of its own.
    head = num_steps_of(xs) % length

    @jax.checkpoint
    def segment(params: Params, start: State, part: Any) -> tuple[State, State]:
        states = _unroll_layers(plain, params, start, *part)
        return jax.tree.map(lambda s: s[-1], states), states

    sequences = (xs, perturbations, sites, valid)
    first = jax.tree.map(lambda a: a[:head], sequences)
    rest = jax.tree.map(lambda a: a[head:].reshape(-1, length, *a.shape[1:]), sequences)
    parts = []
    if head:
        state, states = segment(params, state, first)
        parts.append(states)
    _, states = lax.scan(lambda start, part: segment(params, start, part), state, rest)
    parts.append(jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), states))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unroll(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    perturbations: State | None,
    sites: State | None,
    valid: Array | None,
) -> State:
    del sites
    return run_forward(cell, params, state, xs, perturbations, valid).states


def _forward(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    perturbations: State | None,
    sites: State | None,
    valid: Array | None,
) -> tuple[State, Any]:
    trajectory = run_forward(cell, params, state, xs, perturbations, valid)
    return trajectory.states, (params, trajectory, perturbations is not None, sites is not None)


def _backward(cell: Cell, residuals: Any, immediate: State) -> tuple[Any, ...]:
    params, trajectory, perturbed, sited = residuals
    linearization = bptt.linearize(cell, params, trajectory)
    result, initial = bptt.adjoints(linearization, immediate, trajectory.valid)
    gradients, inputs = bptt.parameter_gradients(cell, params, trajectory, result)
    of_zeros = (result if perturbed else None, result if sited else None)
    return gradients, initial, inputs, *of_zeros, None


_unroll.defvjp(_forward, _backward)
