"""Minimal gated cells, whose gates see the input alone: linear in the state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, Derivative, affine_cell, ones_like_unit, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.cells.gated import gate_blocks
from rnn_jax.types import Array, Initializer, Key


class MinGRUParams(NamedTuple):
    """Weights of a minGRU, z and the candidate side by side: U `[D, 2H]`, b `[2H]`."""

    U: Array
    b: Array


class MinLSTMParams(NamedTuple):
    """Weights of a minLSTM, f, i and the candidate side by side: U `[D, 3H]`, b `[3H]`."""

    U: Array
    b: Array


def min_gru(hidden_size: int, kernel_init: Initializer | None = None) -> Cell:
    """minGRU, h_t = (1 - z_t) h_{t-1} + z_t n_t.

        z_t = sigmoid(x_t U_z + b_z),  n_t = x_t U_n + b_n

    Args:
        hidden_size: H.
        kernel_init: for each block's `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.

    Returns:
        A `Cell` with `MinGRUParams` and a state `[..., H]`.

    Source: Feng et al., "Were RNNs all we needed?", arXiv:2410.01201 (2024), section 3.1.
    """

    def keep(state: Array, a: Array, r: tuple[()]) -> tuple[Array, Any]:
        of_z, n = jnp.split(a, 2, axis=-1)
        z = jax.nn.sigmoid(of_z)
        return state + z * (n - state), (z, n)

    def pull(state: Array, new: Array, kept: Any, adjoint: Array) -> tuple[Array, Array, tuple[()]]:
        z, n = kept
        of_z = adjoint * (n - state) * z * (1 - z)
        return adjoint * (1 - z), jnp.concatenate([of_z, adjoint * z], axis=-1), ()

    return _cell(hidden_size, 2, MinGRUParams, kernel_init, Derivative(keep, pull))


def min_lstm(hidden_size: int, kernel_init: Initializer | None = None) -> Cell:
    """minLSTM, h_t = f'_t h_{t-1} + (1 - f'_t) n_t with f' = f / (f + i).

        f_t, i_t = sigmoid(x_t U + b), each with its own block of the weights
        n_t = x_t U_n + b_n

    Args:
        hidden_size: H.
        kernel_init: for each block's `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.

    Returns:
        A `Cell` with `MinLSTMParams` and a state `[..., H]`.

    Source: Feng et al. (2024), section 3.2: the gates are scaled to a sum of 1, and the cell state
    is the hidden state.
    """

    def keep(state: Array, a: Array, r: tuple[()]) -> tuple[Array, Any]:
        of_f, of_i, n = jnp.split(a, 3, axis=-1)
        # f / (f + i) as a sigmoid of ln f - ln i: finite however small both are.
        f = jax.nn.sigmoid(jax.nn.softplus(-of_i) - jax.nn.softplus(-of_f))
        return n + f * (state - n), (f, n, jax.nn.sigmoid(-of_f), jax.nn.sigmoid(-of_i))

    def pull(state: Array, new: Array, kept: Any, adjoint: Array) -> tuple[Array, Array, tuple[()]]:
        f, n, not_f, not_i = kept
        by_f = adjoint * (state - n) * f * (1 - f)
        a = jnp.concatenate([by_f * not_f, -by_f * not_i, adjoint * (1 - f)], axis=-1)
        return adjoint * f, a, ()

    return _cell(hidden_size, 3, MinLSTMParams, kernel_init, Derivative(keep, pull))


def _cell(
    hidden_size: int,
    blocks: int,
    make: Any,
    kernel_init: Initializer | None,
    derivative: Derivative,
) -> Cell:
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)

    def init(key: Key, input_size: int) -> Any:
        check_size("input_size", input_size)
        U = gate_blocks(kernel_init, key, input_size, hidden_size, blocks)
        return make(U=U, b=jnp.zeros(blocks * hidden_size, U.dtype))

    def initial_state(params: Any, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.U.dtype)

    affine = Affine(
        project=lambda params, x: add_bias(times(x, params.U), params.b),
        # No weight sees the state.
        recur=lambda params, state: (),
        activate=lambda params, *step: derivative.keep(*step)[0],
        derivative=derivative,
        factors=lambda x, state, alpha, gamma: {
            "U": (x, alpha),
            "b": (ones_like_unit(x), alpha),
        },
    )
    return affine_cell(init, initial_state, affine)
