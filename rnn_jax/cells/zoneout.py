"""Zoneout: at each step some units keep their old state, drawn anew; drawn outside the scan."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.cells.cell import Affine, Cell
from rnn_jax.types import Array, Key, Params, State


def zoneout(cell: Cell) -> Cell:
    """The cell with a share of its old state kept in each unit, s_t = d_t s_{t-1} + (1 - d_t) s'_t.

    s'_t is what the cell itself makes of s_{t-1}, and d_t comes with the input: behind x_t stand as
    many numbers as the state has units. `with_zoneout` puts them there, 0 or 1 by chance in
    training, their mean in evaluation; no key is needed in the scan.

    Args:
        cell: any `Cell`. Its `affine` parts are kept: the inputs' product is still one for all t.

    Returns:
        A `Cell` with the parameters and the state of the cell given, whose `init` takes the size of
        the longer inputs.

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
    ICLR (2017), section 3. They take a rate for an LSTM's c and another for its h; here it is one.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> plain = rnn_jax.gru(8)
    >>> cell = rnn_jax.zoneout(plain)
    >>> xs = rnn_jax.with_zoneout(jax.random.key(1), plain, jnp.ones((5, 4, 3)), rate=0.1)
    >>> params = cell.init(jax.random.key(0), xs.shape[-1])
    >>> rnn_jax.unroll(cell, params, cell.initial_state(params, (4,)), xs).shape
    (5, 4, 8)
    """
    count = num_units(cell)

    def step(params: Params, state: State, x: Array) -> State:
        return _keep(x[..., -count:], state, cell.step(params, state, x[..., :-count]))

    affine = cell.affine
    if affine is not None:
        affine = Affine(
            project=_beside(affine, count),
            recur=affine.recur,
            activate=_kept_activate(affine),
        )
    return cell._replace(
        init=lambda key, input_size: cell.init(key, input_size - count),
        step=step,
        affine=affine,
        layers=None,
    )


def _beside(affine: Affine, count: int) -> Any:
    def project(params: Params, x: Array) -> tuple[Any, Array]:
        return affine.project(params, x[..., :-count]), x[..., -count:]

    return project


def _kept_activate(affine: Affine) -> Any:
    def activate(params: Params, state: State, a: tuple[Any, Array], r: Any) -> State:
        projected, shares = a
        return _keep(shares, state, affine.activate(params, state, projected, r))

    return activate


def _keep(shares: Array, old: State, new: State) -> State:
    """Each leaf's own numbers of d_t, in the order of the leaves."""
    leaves, tree = jax.tree.flatten(new)
    ends = [sum(leaf.shape[-1] for leaf in leaves[: n + 1]) for n in range(len(leaves) - 1)]
    own = jnp.split(lax.stop_gradient(shares), ends, axis=-1)
    return jax.tree.map(lambda d, s, n: n + d * (s - n), jax.tree.unflatten(tree, own), old, new)


def num_units(cell: Cell) -> int:
    """Units of a cell's state, all leaves together."""
    # Of any number of inputs; one of them may be h-detach's.
    state = jax.eval_shape(lambda key: cell.initial_state(cell.init(key, 2)), jax.random.key(0))
    return sum(leaf.shape[-1] for leaf in jax.tree.leaves(state))


def with_zoneout(key: Key | None, cell: Cell, xs: Array, rate: float | Array) -> Array:
    """Inputs `[..., D]` with the numbers behind them that a cell with `zoneout` reads.

    Args:
        key: of this training step; None for evaluation, where every unit keeps `rate` of its state.
        cell: the cell without zoneout, whose units are counted.
        xs: `[T, B, D]`.
        rate: probability that a unit keeps its state at a step, in [0, 1).
    """
    shape = (*xs.shape[:-1], num_units(cell))
    shares = jnp.full(shape, rate, xs.dtype)
    if key is not None:
        shares = jax.random.bernoulli(key, rate, shape).astype(xs.dtype)
    return jnp.concatenate([xs, shares], axis=-1)
