"""The wave RNN: a recurrent convolution that starts as a shift, so that inputs travel as waves."""

from typing import NamedTuple

import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, affine_cell, times
from rnn_jax.cells.elman import activation_named, add_bias, check_size
from rnn_jax.types import Array, Initializer, Key


class WaveRNNParams(NamedTuple):
    """Weights of a wave RNN: U `[D, H]`, W `[K, C, C]` from channel to channel, b `[H]`."""

    U: Array
    W: Array
    b: Array


def wave_rnn(
    hidden_size: int,
    channels: int = 1,
    kernel_size: int = 3,
    activation: str = "relu",
    kernel_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
) -> Cell:
    """Wave RNN, h_t = phi(x_t U + W * h_{t-1} + b), a circular convolution over the units.

        (W * h)[n] = sum_m h[n - m] W[m + K // 2], n a place on the ring

    W starts as a shift by one place: what comes in travels round the ring, H / C steps a round, and
    is there unchanged until it meets itself.

    Args:
        hidden_size: H, the places on the ring times the channels.
        channels: C, values at each place; H must be a multiple of it.
        kernel_size: K, an odd number of at least 3.
        activation: phi, one of `rnn_jax.cells.ACTIVATIONS`.
        kernel_init: for U `[D, H]`; normal, standard deviation 0.001, unless given.
        bias_init: for b `[H]`.

    Returns:
        A `Cell` with `WaveRNNParams` and a state `[..., H]`, one channel after the other.

    Raises:
        ValueError: channels that do not divide H, or an even kernel.

    Source: Keller, Muller, Sejnowski & Welling, "Traveling waves encode the recent past and enhance
    sequence learning", ICLR (2024), section 2.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.wave_rnn(5)
    >>> params = cell.init(jax.random.key(0), input_size=1)
    >>> cell.step(params, jnp.array([0.0, 2.0, 0.0, 0.0, 1.0]), jnp.zeros(1))
    Array([1., 0., 2., 0., 0.], dtype=float32)
    """
    check_size("hidden_size", hidden_size)
    check_size("channels", channels)
    phi = activation_named(activation)
    kernel_init = kernel_init or initializers.normal(0.001)
    if hidden_size % channels:
        raise ValueError(
            f"hidden_size is {hidden_size}, which {channels} channels do not divide; give a "
            "multiple of them"
        )
    check_size("kernel_size", kernel_size)
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; give an odd number of at least 3")
    places, middle = hidden_size // channels, kernel_size // 2

    def init(key: Key, input_size: int) -> WaveRNNParams:
        check_size("input_size", input_size)
        dtype = initializers.default_dtype()
        W = jnp.zeros((kernel_size, channels, channels), dtype)
        return WaveRNNParams(
            U=kernel_init(key, (input_size, hidden_size), dtype),
            W=W.at[middle + 1].set(jnp.eye(channels, dtype=dtype)),
            b=bias_init(key, (hidden_size,), dtype),
        )

    def initial_state(params: WaveRNNParams, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.W.dtype)

    def recur(params: WaveRNNParams, state: Array) -> Array:
        ring = state.reshape(*state.shape[:-1], channels, places)
        moved = jnp.stack([jnp.roll(ring, m - middle, axis=-1) for m in range(kernel_size)])
        mixed = jnp.einsum("k...cn,kcd->...dn", moved, params.W)
        return add_bias(mixed.reshape(state.shape), params.b)

    affine = Affine(
        project=lambda params, x: times(x, params.U),
        recur=recur,
        activate=lambda params, state, a, r: phi.function(a + r),
        slope=phi.slope,
    )
    return affine_cell(init, initial_state, affine)
