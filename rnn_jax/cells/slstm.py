"""The sLSTM of xLSTM: exponential gates, a normalizer, and a stabilizer that keeps both finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, Derivative, affine_cell, ones_like_unit, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.cells.gated import gate_blocks
from rnn_jax.types import Array, Initializer, Key


class SLSTMParams(NamedTuple):
    """Weights of an sLSTM, gates i, f, z, o side by side: U `[D, 4H]`, W `[H, 4H]`, b `[4H]`."""

    U: Array
    W: Array
    b: Array


class SLSTMState(NamedTuple):
    """Cell state c, normalizer n, stabilizer m and hidden state h, each `[..., H]`.

    c and n are held divided by exp(m).
    """

    c: Array
    n: Array
    m: Array
    h: Array


def slstm(
    hidden_size: int,
    forget_bias: float | Array = 1.0,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
) -> Cell:
    """sLSTM, c_t = f c_{t-1} + i z, n_t = f n_{t-1} + i and h_t = o c_t / n_t.

        i = exp(x_t U + h_{t-1} W + b),  f, o = sigmoid(...),  z = tanh(...), by their blocks
        m_t = max(ln f + m_{t-1}, ln i)

    c and n are scaled by exp(-m_t): i by exp(ln i - m_t), f by exp(ln f + m_{t-1} - m_t), both at
    most 1. h does not depend on m.

    Args:
        hidden_size: H.
        forget_bias: initial bias of the forget gate; a memory of tau steps wants ln(tau - 1).
        kernel_init: for each gate's `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for each gate's `[H, H]`; orthogonal unless given.

    Returns:
        A `Cell` with `SLSTMParams` and the state `SLSTMState(c, n, m, h)`; `emit` gives h. One
        head: the paper has several, between which W is 0.

    Source: Beck et al., "xLSTM: extended long short-term memory", NeurIPS (2024), eq. 8 to 17; of
    its two forget gates the sigmoid.
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.orthogonal()

    def init(key: Key, input_size: int) -> SLSTMParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key = jax.random.split(key)
        bias = jnp.zeros((4, hidden_size), initializers.default_dtype()).at[1].set(forget_bias)
        return SLSTMParams(
            U=gate_blocks(kernel_init, kernel_key, input_size, hidden_size, 4),
            W=gate_blocks(recurrent_init, recurrent_key, hidden_size, hidden_size, 4),
            b=bias.reshape(-1),
        )

    def initial_state(params: SLSTMParams, batch_shape: tuple[int, ...] = ()) -> SLSTMState:
        zeros = jnp.zeros((*batch_shape, hidden_size), params.W.dtype)
        return SLSTMState(c=zeros, n=zeros, m=zeros, h=zeros)

    def keep(state: SLSTMState, a: Array, r: Array) -> tuple[SLSTMState, Any]:
        log_i, of_f, of_z, of_o = jnp.split(a + r, 4, axis=-1)
        log_f = jax.nn.log_sigmoid(of_f) + state.m
        m = jnp.maximum(log_f, log_i)
        i, f = jnp.exp(log_i - m), jnp.exp(log_f - m)
        z, o = jnp.tanh(of_z), jax.nn.sigmoid(of_o)
        c, n = f * state.c + i * z, f * state.n + i
        # m's derivative by ln f: half where both are the largest, as `jnp.maximum` has it.
        share = (jnp.sign(log_f - log_i) + 1) / 2
        new = SLSTMState(c=c, n=n, m=m, h=o * c / _divisor(n))
        return new, (i, f, z, o, jax.nn.sigmoid(-of_f), share)

    def pull(
        state: SLSTMState, new: SLSTMState, kept: Any, adjoint: SLSTMState
    ) -> tuple[SLSTMState, Array, Array]:
        i, f, z, o, open_f, share = kept
        divisor = _divisor(new.n)
        ratio = new.c / divisor
        by_ratio = adjoint.h * o / divisor
        c = adjoint.c + by_ratio
        n = adjoint.n - jnp.where(new.n == 0, 0, by_ratio * ratio)
        by_i, by_f = (c * z + n) * i, (c * state.c + n * state.n) * f
        by_m = adjoint.m - by_i - by_f
        log_f = by_f + share * by_m
        gates = [
            by_i + (1 - share) * by_m,
            log_f * open_f,
            c * i * (1 - z * z),
            adjoint.h * ratio * o * (1 - o),
        ]
        delta = jnp.concatenate(gates, axis=-1)
        past = SLSTMState(c=c * f, n=n * f, m=log_f, h=jnp.zeros_like(adjoint.h))
        return past, delta, delta

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


def _divisor(n: Array) -> Array:
    """At the start n may be too small for a float."""
    return jnp.where(n == 0, 1, n)
