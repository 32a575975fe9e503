"""The RNN whose units do not see each other: a recurrent weight for each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, affine_cell, times
from rnn_jax.cells.elman import activation_named, add_bias, check_size
from rnn_jax.types import Array, Initializer, Key


class IndRNNParams(NamedTuple):
    """Weights of an independently recurrent cell: U `[D, H]`, u `[H]`, b `[H]`."""

    U: Array
    u: Array
    b: Array


def indrnn(
    hidden_size: int,
    activation: str = "relu",
    low: float | Array = 0.0,
    high: float | Array = 1.0,
    kernel_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
) -> Cell:
    """Independently recurrent network, h_t = phi(x_t U + u h_{t-1} + b), u times h unit by unit.

    J_t is diagonal, so a unit's gradient over n steps is u^n times its slopes, and nothing else: u
    says how far each unit remembers. Units meet in the layer above; stack two or more.

    Args:
        hidden_size: H.
        activation: phi, one of `rnn_jax.cells.ACTIVATIONS`.
        low, high: u is uniform between them at first. Where the last step alone is read, the
            authors take high = low = 1 or a little less in the top layer.
        kernel_init: for U `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        bias_init: for b `[H]`.

    Returns:
        A `Cell` with `IndRNNParams` and a state `[..., H]`. u is not bounded in training: the
        authors clip |u| to gamma^(1/T) after each update.

    Source: Li, Li, Cook, Zhu & Gao, "Independently recurrent neural network (IndRNN): building a
    longer and deeper RNN", CVPR (2018), eq. 3.
    """
    check_size("hidden_size", hidden_size)
    phi = activation_named(activation)
    kernel_init = kernel_init or initializers.gaussian(1.0)

    def init(key: Key, input_size: int) -> IndRNNParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key, bias_key = jax.random.split(key, 3)
        dtype = initializers.default_dtype()
        share = jax.random.uniform(recurrent_key, (hidden_size,), dtype)
        return IndRNNParams(
            U=kernel_init(kernel_key, (input_size, hidden_size), dtype),
            u=(low + (high - low) * share).astype(dtype),
            b=bias_init(bias_key, (hidden_size,), dtype),
        )

    def initial_state(params: IndRNNParams, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.u.dtype)

    affine = Affine(
        project=lambda params, x: times(x, params.U),
        recur=lambda params, state: add_bias(
            state * jnp.broadcast_to(params.u, state.shape), params.b
        ),
        activate=lambda params, state, a, r: phi.function(a + r),
        slope=phi.slope,
    )
    return affine_cell(init, initial_state, affine)
