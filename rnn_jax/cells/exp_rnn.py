"""The RNN whose W stays orthogonal in training: the exponential of a skew-symmetric matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, affine_cell, times
from rnn_jax.cells.elman import check_size
from rnn_jax.matrix_exponential import skew_exponential
from rnn_jax.types import Array, Initializer, Key


class ExpRNNParams(NamedTuple):
    """Weights of an exponential RNN: U `[D, H]`, A `[H, H]`, b `[H]`.

    W = exp(A - A^T): only the skew-symmetric part of A acts, and any step of an optimizer leaves W
    orthogonal.
    """

    U: Array
    A: Array
    b: Array


class PreparedParams(NamedTuple):
    """The same, with the orthogonal W `[H, H]` itself."""

    U: Array
    W: Array
    b: Array


def prepare(params: ExpRNNParams | PreparedParams) -> PreparedParams:
    """W from A; of what is prepared already, itself."""
    if isinstance(params, PreparedParams):
        return params
    return PreparedParams(params.U, skew_exponential(params.A - params.A.T), params.b)


def modrelu(z: Array, b: Array) -> Array:
    """sign(z) max(|z| + b, 0): ReLU on the size of z, whose sign is kept (Arjovsky et al. 2016)."""
    return jnp.sign(z) * jax.nn.relu(jnp.abs(z) + jnp.broadcast_to(b, z.shape))


def exp_rnn(
    hidden_size: int,
    max_angle: float | Array = jnp.pi,
    kernel_init: Initializer | None = None,
) -> Cell:
    """Exponential RNN, h_t = modrelu(x_t U + h_{t-1} W, b) with W = exp(A - A^T).

    Args:
        hidden_size: H.
        max_angle: W turns H/2 planes at first, by angles uniform in +-max_angle (Henaff's start).
        kernel_init: for U `[D, H]`; normal, standard deviation sqrt(2/D), unless given.

    Returns:
        A `Cell` with `ExpRNNParams` and a state `[..., H]`.

    Source: Lezcano-Casado & Martinez-Rubio, "Cheap orthogonal constraints in neural networks", ICML
    (2019), section 4; the start of Henaff, Szlam & LeCun (2016).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.exp_rnn(16)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> W = cell.prepare(params).W
    >>> bool(jnp.allclose(W @ W.T, jnp.eye(16), atol=1e-5))
    True
    """
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(2**0.5)

    def init(key: Key, input_size: int) -> ExpRNNParams:
        check_size("input_size", input_size)
        kernel_key, angle_key, bias_key = jax.random.split(key, 3)
        dtype = initializers.default_dtype()
        pairs = jnp.arange(hidden_size // 2)
        angles = max_angle * jax.random.uniform(angle_key, pairs.shape, dtype, -1, 1)
        A = jnp.zeros((hidden_size, hidden_size), dtype)
        return ExpRNNParams(
            U=kernel_init(kernel_key, (input_size, hidden_size), dtype),
            A=A.at[2 * pairs, 2 * pairs + 1].set(angles),
            b=initializers.uniform(0.01)(bias_key, (hidden_size,), dtype),
        )

    def initial_state(params: Any, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.b.dtype)

    affine = Affine(
        project=lambda params, x: times(x, params.U),
        recur=lambda params, state: times(state, prepare(params).W),
        activate=lambda params, state, a, r: modrelu(a + r, params.b),
    )
    return affine_cell(init, initial_state, affine)._replace(prepare=prepare)
