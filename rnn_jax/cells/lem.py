"""Long expressive memory: two states, each with time steps of its own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Cell, fixed, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.cells.gated import gate_blocks
from rnn_jax.types import Array, Initializer, Key


class LEMParams(NamedTuple):
    """Weights of a LEM, blocks side by side: U `[D, 4H]` and b `[4H]` of dt_z, dt_y, z, y.

    W `[H, 3H]` is that of dt_z, dt_y and z, by which y_{t-1} is multiplied; Wy `[H, H]` is that of
    y, by which z_t is. dt is a scalar without a gradient.
    """

    U: Array
    W: Array
    Wy: Array
    b: Array
    dt: Array


class LEMState(NamedTuple):
    """The slow and the fast state, y and z, each `[..., H]`."""

    y: Array
    z: Array


def lem(
    hidden_size: int,
    dt: float | Array = 1.0,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
) -> Cell:
    """Long expressive memory.

        dt_z, dt_y = dt sigmoid(x_t U + y_{t-1} W + b), each with its own block of the weights
        z_t = (1 - dt_z) z_{t-1} + dt_z tanh(y_{t-1} W + x_t U + b)
        y_t = (1 - dt_y) y_{t-1} + dt_y tanh(z_t Wy + x_t U + b)

    Args:
        hidden_size: H.
        dt: the largest time step, in (0, 1]. The paper tunes it; 1 where it need not be small.
        kernel_init: for each block's `[D, H]`; uniform in +-1/sqrt(H) unless given.
        recurrent_init: for each block's `[H, H]`; the same.

    Returns:
        A `Cell` with `LEMParams` and the state `LEMState(y, z)`; `emit` gives y. It has no `affine`
        parts: z_t is multiplied by a matrix within the step.

    Source: Rusch, Mishra, Erichson & Mahoney, "Long expressive memory for sequence modeling", ICLR
    (2022), eq. 3.
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.uniform(hidden_size**-0.5)
    recurrent_init = recurrent_init or initializers.uniform_torch

    def init(key: Key, input_size: int) -> LEMParams:
        check_size("input_size", input_size)
        keys = jax.random.split(key, 4)
        dtype = initializers.default_dtype()
        bound = hidden_size**-0.5
        return LEMParams(
            U=gate_blocks(kernel_init, keys[0], input_size, hidden_size, 4),
            W=gate_blocks(recurrent_init, keys[1], hidden_size, hidden_size, 3),
            Wy=recurrent_init(keys[2], (hidden_size, hidden_size), dtype),
            b=initializers.uniform(bound)(keys[3], (4 * hidden_size,), dtype),
            dt=jnp.asarray(dt, dtype),
        )

    def initial_state(params: LEMParams, batch_shape: tuple[int, ...] = ()) -> LEMState:
        zeros = jnp.zeros((*batch_shape, hidden_size), params.W.dtype)
        return LEMState(y=zeros, z=zeros)

    def step(params: LEMParams, state: LEMState, x: Array) -> LEMState:
        a = add_bias(times(x, params.U), params.b)
        before_y = a[..., 3 * hidden_size :]
        r = a[..., : 3 * hidden_size] + times(state.y, params.W)
        steps = fixed(params.dt) * jax.nn.sigmoid(r[..., : 2 * hidden_size])
        dt_z, dt_y = jnp.split(steps, 2, axis=-1)
        z = state.z + dt_z * (jnp.tanh(r[..., 2 * hidden_size :]) - state.z)
        y = state.y + dt_y * (jnp.tanh(times(z, params.Wy) + before_y) - state.y)
        return LEMState(y=y, z=z)

    return Cell(init, initial_state, step, emit=lambda state: state.y)
