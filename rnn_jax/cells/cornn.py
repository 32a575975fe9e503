"""The coupled oscillatory RNN: each unit a damped, driven oscillator."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, affine_cell, fixed, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.types import Array, Initializer, Key


class CoRNNParams(NamedTuple):
    """Weights of a coRNN: U `[D, H]`, W `[H, H]` of y, Wz `[H, H]` of z, b `[H]`.

    dt, gamma and epsilon are scalars without a gradient: training leaves them as they are (weight
    decay would not; mask them there).
    """

    U: Array
    W: Array
    Wz: Array
    b: Array
    dt: Array
    gamma: Array
    epsilon: Array


class CoRNNState(NamedTuple):
    """Where each oscillator is, y, and how fast it moves, z, each `[..., H]`."""

    y: Array
    z: Array


def cornn(
    hidden_size: int,
    dt: float | Array = 0.042,
    gamma: float | Array = 2.7,
    epsilon: float | Array = 4.7,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
) -> Cell:
    """Coupled oscillatory RNN, y'' = tanh(y W + y' Wz + x U + b) - gamma y - epsilon y' in steps.

        z_t = z_{t-1} + dt (tanh(y_{t-1} W + z_{t-1} Wz + x_t U + b) - gamma y_{t-1}
                            - epsilon z_{t-1})
        y_t = y_{t-1} + dt z_t

    From zero states, gamma |y_t|^2 + |z_t|^2 <= t H dt, whatever the weights and inputs, where
    2 epsilon - dt (epsilon^2 + gamma) >= 1.

    Args:
        hidden_size: H.
        dt: step size; gamma: stiffness; epsilon: damping. The paper tunes them for each task; these
            are its own for sequential MNIST.
        kernel_init: for U `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for W and Wz `[H, H]`; uniform in +-1/sqrt(H) unless given.

    Returns:
        A `Cell` with `CoRNNParams` and the state `CoRNNState(y, z)`; `emit` gives y.

    Source: Rusch & Mishra, "Coupled oscillatory recurrent neural network (coRNN)", ICLR (2021),
    eq. 3 with the damping taken at t - 1, as in the authors' program; the bound is that of their
    proposition 3.1, derived for this step by the energy gamma |y|^2 + |z|^2.
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.uniform_torch

    def init(key: Key, input_size: int) -> CoRNNParams:
        check_size("input_size", input_size)
        keys = jax.random.split(key, 3)
        dtype = initializers.default_dtype()
        return CoRNNParams(
            U=kernel_init(keys[0], (input_size, hidden_size), dtype),
            W=recurrent_init(keys[1], (hidden_size, hidden_size), dtype),
            Wz=recurrent_init(keys[2], (hidden_size, hidden_size), dtype),
            b=jnp.zeros(hidden_size, dtype),
            dt=jnp.asarray(dt, dtype),
            gamma=jnp.asarray(gamma, dtype),
            epsilon=jnp.asarray(epsilon, dtype),
        )

    def initial_state(params: CoRNNParams, batch_shape: tuple[int, ...] = ()) -> CoRNNState:
        zeros = jnp.zeros((*batch_shape, hidden_size), params.W.dtype)
        return CoRNNState(y=zeros, z=zeros)

    def recur(params: CoRNNParams, state: CoRNNState) -> Array:
        return add_bias(times(state.y, params.W) + times(state.z, params.Wz), params.b)

    def activate(params: CoRNNParams, state: CoRNNState, a: Array, r: Array) -> CoRNNState:
        step = fixed(params.dt)
        pull = fixed(params.gamma) * state.y + fixed(params.epsilon) * state.z
        z = state.z + step * (jnp.tanh(a + r) - pull)
        return CoRNNState(y=state.y + step * z, z=z)

    affine = Affine(lambda params, x: times(x, params.U), recur, activate)
    return affine_cell(init, initial_state, affine, emit=lambda state: state.y)
