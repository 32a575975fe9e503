"""h-detach: in training the gradient goes round the recurrent product, by chance at each step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.cells.cell import Cell
from rnn_jax.types import Array, Key, Params, State


def h_detach(cell: Cell) -> Cell:
    """The cell through whose recurrent product no gradient flows at some steps.

    Of an LSTM's two ways back, through c and through h, the one through h and the gates is noisy
    and large; where it is cut the gradient that is left is that of the linear path. What goes
    forward is the same, and W learns at every step. Whether a step is cut comes with the input: the
    last number of x_t is 1 where it is, 0 where not (`with_detached`).

    Args:
        cell: a cell with an `Affine` structure, which says what its recurrent product is. It needs
            a path beside that: an Elman cell has none, and learns one step at a time where it is
            cut.

    Returns:
        A `Cell` with the parameters and the state of the cell given, whose `init` takes the size of
        the longer inputs. It has no `affine` parts: J_t is no longer the derivative of s_t.

    Raises:
        ValueError: a cell without `affine`.

    Source: Arpit et al., "h-detach: modifying the LSTM gradient towards better optimization", ICLR
    (2019), algorithm 1.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.h_detach(rnn_jax.lstm(8))
    >>> xs = rnn_jax.with_detached(jax.random.key(1), jnp.ones((5, 4, 3)), probability=0.25)
    >>> params = cell.init(jax.random.key(0), xs.shape[-1])
    >>> rnn_jax.unroll(cell, params, cell.initial_state(params, (4,)), xs).h.shape
    (5, 4, 8)
    """
    affine = cell.affine
    if affine is None:
        raise ValueError(
            "h_detach wants a cell with `affine` parts, which say where its recurrent product is, "
            "but this cell has none; wrap the layers of a stack one by one, and give a cell of "
            "your own an Affine"
        )

    def step(params: Params, state: State, x: Array) -> State:
        cut = x[..., -1:]

        def seen(leaf: Array) -> Array:
            where = jnp.broadcast_to(cut > 0, leaf.shape)
            return jnp.where(where, lax.stop_gradient(leaf), leaf)

        recurred = affine.recur(params, jax.tree.map(seen, state))
        return affine.activate(params, state, affine.project(params, x[..., :-1]), recurred)

    return cell._replace(
        init=lambda key, input_size: cell.init(key, input_size - 1), step=step, affine=None
    )


def with_detached(key: Key | None, xs: Array, probability: float | Array) -> Array:
    """Inputs `[T, B, D]` with the number behind each step's that a cell with `h_detach` reads.

    Args:
        key: of this training step; None for evaluation, where nothing is cut.
        xs: `[T, B, D]`, time first.
        probability: that a step is cut, the same step for all examples, in [0, 1].
    """
    cut: Any = jnp.zeros(xs.shape[0], bool)
    if key is not None:
        cut = jax.random.bernoulli(key, probability, xs.shape[:1])
    column = cut.astype(xs.dtype).reshape(-1, *[1] * (xs.ndim - 1))
    return jnp.concatenate([xs, jnp.broadcast_to(column, (*xs.shape[:-1], 1))], axis=-1)
