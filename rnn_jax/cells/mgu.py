"""The minimal gated unit: a GRU with one gate for both purposes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, Derivative, affine_cell, ones_like_unit, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.cells.gated import gate_blocks
from rnn_jax.types import Array, Initializer, Key


class MGUParams(NamedTuple):
    """Weights of an MGU, f and n side by side: U `[D, 2H]`, W `[H, 2H]`, b `[2H]`, d `[H]`.

    d is the bias of the candidate's recurrent part, inside the forget gate's reach.
    """

    U: Array
    W: Array
    b: Array
    d: Array


def mgu(
    hidden_size: int,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    forget_bias: float | Array = 1.0,
    reset_gate: bool = True,
) -> Cell:
    """Minimal gated unit, s_t = (1 - f) n + f s_{t-1}.

        f = sigmoid(x_t U + s_{t-1} W + b)
        n = tanh(x_t U + b + f (s_{t-1} W + d)), each with its own block of the weights

    Args:
        hidden_size: H.
        kernel_init: for each gate's `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for each gate's `[H, H]`; orthogonal unless given.
        forget_bias: initial bias of f; a memory of tau steps wants ln(tau - 1).
        reset_gate: without it n = tanh(x_t U + b + s_{t-1} W + d).

    Returns:
        A `Cell` with `MGUParams` and a state `[..., H]`.

    Source: Zhou et al., "Minimal gated unit for recurrent neural networks", arXiv:1603.09420
    (2016), in the variant of Flax (f acts after the recurrent product, and f keeps the old state).
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.orthogonal()

    def init(key: Key, input_size: int) -> MGUParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key = jax.random.split(key)
        dtype = initializers.default_dtype()
        return MGUParams(
            U=gate_blocks(kernel_init, kernel_key, input_size, hidden_size, 2),
            W=gate_blocks(recurrent_init, recurrent_key, hidden_size, hidden_size, 2),
            b=jnp.zeros((2, hidden_size), dtype).at[0].set(forget_bias).reshape(-1),
            d=jnp.zeros(hidden_size, dtype),
        )

    def initial_state(params: MGUParams, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.W.dtype)

    def recur(params: MGUParams, state: Array) -> Array:
        bias = jnp.concatenate([jnp.zeros_like(params.b[:hidden_size]), params.d])
        return add_bias(times(state, params.W), bias)

    def keep(state: Array, a: Array, r: Array) -> tuple[Array, Any]:
        f = jax.nn.sigmoid(a[..., :hidden_size] + r[..., :hidden_size])
        recurred = r[..., hidden_size:]
        reached = f * recurred if reset_gate else recurred
        n = jnp.tanh(a[..., hidden_size:] + reached)
        return n + f * (state - n), (f, n, recurred)

    def pull(state: Array, new: Array, kept: Any, adjoint: Array) -> tuple[Array, Array, Array]:
        f, n, recurred = kept
        candidate = adjoint * (1 - f) * (1 - n * n)
        by_gate = adjoint * (state - n)
        if reset_gate:
            by_gate = by_gate + candidate * recurred
        gate = by_gate * f * (1 - f)
        projected = jnp.concatenate([gate, candidate], axis=-1)
        if not reset_gate:
            return adjoint * f, projected, projected
        return adjoint * f, projected, jnp.concatenate([gate, candidate * f], axis=-1)

    affine = Affine(
        project=lambda params, x: add_bias(times(x, params.U), params.b),
        recur=recur,
        activate=lambda params, *step: keep(*step)[0],
        derivative=Derivative(keep, pull),
        factors=lambda x, state, alpha, gamma: {
            "U": (x, alpha),
            "W": (state, gamma),
            "b": (ones_like_unit(x), alpha),
            "d": (ones_like_unit(x), gamma[..., hidden_size:]),
        },
    )
    return affine_cell(init, initial_state, affine)
