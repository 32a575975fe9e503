"""Gated cells: the LSTM and the GRU."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, Derivative, affine_cell, ones_like_unit, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.types import Array, Initializer, Key


class LSTMParams(NamedTuple):
    """Weights of an LSTM, gates i, f, g, o side by side: U `[D, 4H]`, W `[H, 4H]`, b `[4H]`."""

    U: Array
    W: Array
    b: Array


class LSTMState(NamedTuple):
    """Cell state c and hidden state h, each `[..., H]`."""

    c: Array
    h: Array


class GRUParams(NamedTuple):
    """Weights of a GRU, gates r, z, n side by side: U `[D, 3H]`, W `[H, 3H]`, b `[3H]`, d `[H]`.

    d is the bias of the candidate's recurrent part, inside the reset gate's reach.
    """

    U: Array
    W: Array
    b: Array
    d: Array


def gate_blocks(init: Initializer, key: Key, rows: int, hidden_size: int, count: int) -> Array:
    """One draw a gate, side by side: each gate has the spectrum that its initializer promises."""
    keys, dtype = jax.random.split(key, count), initializers.default_dtype()
    return jnp.concatenate([init(k, (rows, hidden_size), dtype) for k in keys], axis=1)


def lstm(
    hidden_size: int,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    forget_bias: float | Array = 1.0,
) -> Cell:
    """LSTM, c_t = f c_{t-1} + i g and h_t = o tanh(c_t).

        i, f, o = sigmoid(x_t U + h_{t-1} W + b),  g = tanh(x_t U + h_{t-1} W + b)

    Args:
        hidden_size: H.
        kernel_init: for each gate's `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for each gate's `[H, H]`; orthogonal unless given.
        forget_bias: initial bias of the forget gate; a memory of tau steps wants ln(tau - 1).

    Returns:
        A `Cell` with `LSTMParams` and the state `LSTMState(c, h)`; `emit` gives h.

    Source: Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000).
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.orthogonal()

    def init(key: Key, input_size: int) -> LSTMParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key = jax.random.split(key)
        bias = jnp.zeros((4, hidden_size), initializers.default_dtype()).at[1].set(forget_bias)
        return LSTMParams(
            U=gate_blocks(kernel_init, kernel_key, input_size, hidden_size, 4),
            W=gate_blocks(recurrent_init, recurrent_key, hidden_size, hidden_size, 4),
            b=bias.reshape(-1),
        )

    def initial_state(params: LSTMParams, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        zeros = jnp.zeros((*batch_shape, hidden_size), params.W.dtype)
        return LSTMState(c=zeros, h=zeros)

    # The order of the gates leaves i and f side by side: one pass over both.
    def keep(state: LSTMState, a: Array, r: Array) -> tuple[LSTMState, Any]:
        z = a + r
        i_and_f = jax.nn.sigmoid(z[..., : 2 * hidden_size])
        g = jnp.tanh(z[..., 2 * hidden_size : 3 * hidden_size])
        o = jax.nn.sigmoid(z[..., 3 * hidden_size :])
        i, f = jnp.split(i_and_f, 2, axis=-1)
        c = f * state.c + i * g
        return LSTMState(c=c, h=o * jnp.tanh(c)), (i_and_f, g, o)

    def pull(
        state: LSTMState, new: LSTMState, kept: Any, adjoint: LSTMState
    ) -> tuple[LSTMState, Array, Array]:
        i_and_f, g, o = kept
        i, f = jnp.split(i_and_f, 2, axis=-1)
        tanh_c = jnp.tanh(new.c)
        c = adjoint.c + adjoint.h * o * (1 - tanh_c * tanh_c)
        gates = [
            c * g * i * (1 - i),
            c * state.c * f * (1 - f),
            c * i * (1 - g * g),
            adjoint.h * tanh_c * o * (1 - o),
        ]
        delta = jnp.concatenate(gates, axis=-1)
        return LSTMState(c=c * f, h=jnp.zeros_like(adjoint.h)), delta, delta

    affine = Affine(
        project=lambda params, x: times(x, params.U),
        recur=lambda params, state: add_bias(times(state.h, params.W), params.b),
        activate=lambda params, *step: keep(*step)[0],
        derivative=Derivative(keep, pull),
        factors=lambda x, state, alpha, gamma: {
            "U": (x, alpha),
            "W": (state.h, gamma),
            "b": (ones_like_unit(x), alpha),
        },
    )
    return affine_cell(init, initial_state, affine, emit=lambda state: state.h)


def gru(
    hidden_size: int,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
) -> Cell:
    """GRU, s_t = (1 - z) n + z s_{t-1}.

        r, z = sigmoid(x_t U + s_{t-1} W + b)
        n = tanh(x_t U + b + r (s_{t-1} W + d)), each with its own block of the weights

    Args:
        hidden_size: H.
        kernel_init: for each gate's `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for each gate's `[H, H]`; orthogonal unless given.

    Returns:
        A `Cell` with `GRUParams` and a state `[..., H]`.

    Source: Cho et al. (2014), in the variant of cuDNN, Flax and PyTorch (the reset gate acts after
    the recurrent product).
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.orthogonal()

    def init(key: Key, input_size: int) -> GRUParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key = jax.random.split(key)
        return GRUParams(
            U=gate_blocks(kernel_init, kernel_key, input_size, hidden_size, 3),
            W=gate_blocks(recurrent_init, recurrent_key, hidden_size, hidden_size, 3),
            b=jnp.zeros(3 * hidden_size, initializers.default_dtype()),
            d=jnp.zeros(hidden_size, initializers.default_dtype()),
        )

    def initial_state(params: GRUParams, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.W.dtype)

    def recur(params: GRUParams, state: Array) -> Array:
        bias = jnp.concatenate([jnp.zeros_like(params.b[: 2 * hidden_size]), params.d])
        return add_bias(times(state, params.W), bias)

    def keep(state: Array, a: Array, r: Array) -> tuple[Array, Any]:
        gates = jax.nn.sigmoid(a[..., : 2 * hidden_size] + r[..., : 2 * hidden_size])
        reset, z = jnp.split(gates, 2, axis=-1)
        recurred = r[..., 2 * hidden_size :]
        n = jnp.tanh(a[..., 2 * hidden_size :] + reset * recurred)
        return n + z * (state - n), (gates, n, recurred)

    def pull(state: Array, new: Array, kept: Any, adjoint: Array) -> tuple[Array, Array, Array]:
        gates, n, recurred = kept
        reset, z = jnp.split(gates, 2, axis=-1)
        candidate = adjoint * (1 - z) * (1 - n * n)
        both = [
            candidate * recurred * reset * (1 - reset),
            adjoint * (state - n) * z * (1 - z),
        ]
        projected = jnp.concatenate([*both, candidate], axis=-1)
        return adjoint * z, projected, jnp.concatenate([*both, candidate * reset], axis=-1)

    affine = Affine(
        project=lambda params, x: add_bias(times(x, params.U), params.b),
        recur=recur,
        activate=lambda params, *step: keep(*step)[0],
        derivative=Derivative(keep, pull),
        factors=lambda x, state, alpha, gamma: {
            "U": (x, alpha),
            "W": (state, gamma),
            "b": (ones_like_unit(x), alpha),
            "d": (ones_like_unit(x), gamma[..., 2 * hidden_size :]),
        },
    )
    return affine_cell(init, initial_state, affine)
