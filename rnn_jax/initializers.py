"""Initial weights, each a function `(key, shape, dtype) -> array` as in `jax.nn.initializers`.

What a recurrent matrix W does to a gradient over many steps is decided by its eigenvalues and
singular values, so the initializers here are named by the spectrum that they give.
"""

import jax
import jax.numpy as jnp

from rnn_jax.types import Array, Initializer, Key

zeros: Initializer = jax.nn.initializers.zeros


def normal(std: float | Array) -> Initializer:
    """Independent N(0, std^2) entries; a square `[H, H]` has spectral radius near std * sqrt(H)."""
    return jax.nn.initializers.normal(std)


def gaussian(gain: float | Array) -> Initializer:
    """Independent normal entries of standard deviation gain / sqrt(fan_in).

    A wide square matrix has spectral radius `gain` and largest singular value `2 * gain`.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return gain * jax.random.normal(key, shape, dtype) / jnp.sqrt(shape[0]).astype(dtype)

    return init


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound)."""

    def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def uniform_torch(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Uniform in ±1/sqrt(H), H the last axis: what `torch.nn.RNN` gives each weight and bias.

    As a recurrent matrix it has gain 1/sqrt(3) = 0.577, so gradients vanish before training starts.
    """
    return uniform(shape[-1] ** -0.5)(key, shape, dtype)


def orthogonal(gain: float | Array = 1.0) -> Initializer:
    """Orthogonal matrix times `gain`: every eigenvalue and singular value has modulus `gain`."""
    return jax.nn.initializers.orthogonal(gain)


def identity(scale: float | Array = 1.0) -> Initializer:
    """`scale` times the identity; with ReLU, the IRNN of Le, Jaitly & Hinton (2015)."""

    def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        del key
        return scale * jnp.eye(shape[0], shape[1], dtype=dtype)

    return init


def spectral_radius(rho: float, std: float = 1.0) -> Initializer:
    """Normal entries, rescaled so that the largest eigenvalue has modulus exactly `rho`.

    Args:
        rho: the spectral radius wanted.
        std: standard deviation before the rescaling; a positive number of no other effect.

    The eigenvalues of a general matrix are computed on the CPU backend only, so call it there.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        weights = std * jax.random.normal(key, shape, dtype)
        return weights * (rho / jnp.max(jnp.abs(jnp.linalg.eigvals(weights))))

    return init
