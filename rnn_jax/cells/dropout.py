"""Dropout for recurrent networks: masks drawn once for each sequence, outside the scan."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.cells.cell import Cell, affine_within, prepare_within
from rnn_jax.types import Array, Key, Params, State


class DroppedParams(NamedTuple):
    """A cell's parameters and its masks.

    Attributes:
        cell: parameters of the cell itself.
        inputs: `[..., D]`, what is added to 1 to make the factor of each input: 0 leaves it as it
            is, -1 drops it. Kept so, and without a gradient, no optimizer moves a mask of 0, nor
            does weight decay: parameters as `init` made them, or as trained, drop nothing.
        states: the same for the state inside the recurrent product, leaves `[..., H]`.
    """

    cell: Params
    inputs: Array
    states: State


def variational_dropout(cell: Cell) -> Cell:
    """The cell with masks on its input and on the state that its recurrent product sees.

        s_t = step(theta, s_{t-1} * m_s inside the recurrent product, x_t * m_x)

    The masks are the same at every time step. `draw_masks` draws them, once for each training
    step; without that nothing is dropped, so evaluation is the same call with the parameters as
    they are. Layers of a stack wrapped one by one have dropout between the layers. A memory that
    no recurrent product reads (the LSTM's c) is never dropped.

    Args:
        cell: a cell with an `Affine` structure; elman, leaky, lstm, gru and their kin.

    Returns:
        A `Cell` with `DroppedParams` and the state of the cell given.

    Raises:
        ValueError: a cell without `affine`: which part of its step is recurrent is not known.

    Source: Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NIPS (2016).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.stack([rnn_jax.variational_dropout(rnn_jax.lstm(8)) for _ in range(2)])
    >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 4, 3))
    >>> def loss(params, key):
    ...     params = rnn_jax.draw_masks(key, params, (4,), input_rate=0.1, state_rate=0.3)
    ...     states = rnn_jax.unroll(cell, params, cell.initial_state(params, (4,)), xs)
    ...     return jnp.sum(cell.emit(states) ** 2)
    >>> gradient = jax.grad(loss)(params, jax.random.key(1))
    >>> bool(jnp.any(gradient[0].cell.W)), bool(jnp.any(gradient[0].states.h))
    (True, False)
    """
    affine = cell.affine
    if affine is None:
        raise ValueError(
            "variational_dropout wants a cell with `affine` parts, which say where its recurrent "
            "product is, but this cell has none; wrap the layers of a stack one by one, and give a "
            "cell of your own an Affine"
        )

    def init(key: Key, input_size: int) -> DroppedParams:
        params = cell.init(key, input_size)
        state = cell.initial_state(params)
        dtype = jax.tree.leaves(state)[0].dtype
        nothing = jax.tree.map(jnp.zeros_like, state)
        return DroppedParams(params, jnp.zeros(input_size, dtype), nothing)

    def initial_state(params: DroppedParams, batch_shape: tuple[int, ...] = ()) -> State:
        return cell.initial_state(params.cell, batch_shape)

    def step(params: DroppedParams, state: State, x: Array) -> State:
        projected, recurred = masked.project(params, x), masked.recur(params, state)
        return masked.activate(params, state, projected, recurred)

    inner = affine_within(affine)
    assert inner is not None
    masked = inner._replace(
        project=lambda params, x: inner.project(params, _masked(params.inputs, x)),
        recur=lambda params, state: inner.recur(
            params, jax.tree.map(_masked, params.states, state)
        ),
    )
    return Cell(init, initial_state, step, cell.emit, masked, prepare=prepare_within(cell))


def _masked(mask: Array, values: Array) -> Array:
    return values * jnp.broadcast_to(1 + lax.stop_gradient(mask), values.shape)


def draw_masks(
    key: Key,
    params: Params,
    batch_shape: tuple[int, ...] = (),
    *,
    input_rate: float | Array = 0.0,
    state_rate: float | Array = 0.0,
) -> Params:
    """The same parameters with fresh masks in every `DroppedParams` among them.

    Args:
        key: of this training step, for example fold_in(key, step).
        params: parameters of a cell with `variational_dropout`, of a stack of them, or of a model.
        batch_shape: () for one mask shared by all examples, `(B,)` for one each.
        input_rate: probability that an input is dropped, in [0, 1).
        state_rate: probability that a state is dropped, in [0, 1).

    Returns:
        A tree like params with masks `[*batch_shape, D]` and `[*batch_shape, H]`. What is kept is
        divided by 1 - rate, so that its mean is as it was.

    Raises:
        ValueError: a rate off [0, 1), or no `DroppedParams` in params.
    """
    for name, rate in (("input_rate", input_rate), ("state_rate", state_rate)):
        if not isinstance(rate, jax.core.Tracer) and not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate}; give a probability in [0, 1), 0 to drop nothing")
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_dropped)
    if not any(map(_is_dropped, leaves)):
        raise ValueError(
            "params hold no masks to draw; wrap the cell, or each layer of the stack, in "
            "variational_dropout before init"
        )

    def fresh(key: Key, mask: Array, rate: float | Array) -> Array:
        kept = jax.random.bernoulli(key, 1 - rate, (*batch_shape, mask.shape[-1]))
        return jnp.where(kept, 1 / (1 - rate) - 1, -1).astype(mask.dtype)

    def redraw(key: Key, leaf: Any) -> Any:
        if not _is_dropped(leaf):
            return leaf
        input_key, state_key = jax.random.split(key)
        states, state_structure = jax.tree.flatten(leaf.states)
        state_keys = jax.random.split(state_key, len(states))
        return leaf._replace(
            inputs=fresh(input_key, leaf.inputs, input_rate),
            states=jax.tree.unflatten(
                state_structure,
                [fresh(k, mask, state_rate) for k, mask in zip(state_keys, states, strict=True)],
            ),
        )

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [redraw(leaf_key, leaf) for leaf_key, leaf in zip(keys, leaves, strict=True)]
    )


def _is_dropped(tree: Any) -> bool:
    return isinstance(tree, DroppedParams)
