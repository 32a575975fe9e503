"""Initial weights, each a function `(key, shape, dtype) -> array` as in `jax.nn.initializers`.

What a recurrent matrix W does to a gradient over many steps is decided by its eigenvalues and
singular values, so the initializers here are named by the spectrum that they give.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnn_jax.decompositions import qr
from rnn_jax.spectra import log_spectral_radius
from rnn_jax.types import Array, Initializer, Key

zeros: Initializer = jax.nn.initializers.zeros


def default_dtype() -> jnp.dtype:
    """What parameters are made of: float32, or float64 where `jax_enable_x64` is set."""
    return jnp.result_type(float)


def normal(std: float | Array) -> Initializer:
    """Independent N(0, std^2) entries; a square `[H, H]` has spectral radius near std * sqrt(H)."""
    return jax.nn.initializers.normal(std)


def gaussian(gain: float | Array) -> Initializer:
    """Independent normal entries of standard deviation gain / sqrt(fan_in).

    A wide square matrix has spectral radius `gain` and largest singular value `2 * gain`.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        return gain * jax.random.normal(key, shape, dtype) / jnp.sqrt(shape[0]).astype(dtype)

    return init


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound)."""

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def uniform_torch(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
    """Uniform in ±1/sqrt(H), H the last axis: what `torch.nn.RNN` gives each weight and bias.

    As a recurrent matrix it has gain 1/sqrt(3) = 0.577, so gradients vanish before training starts.
    """
    return uniform(shape[-1] ** -0.5)(key, shape, dtype)


def orthogonal(gain: float | Array = 1.0) -> Initializer:
    """Orthogonal matrix times `gain`: every eigenvalue and singular value has modulus `gain`.

    Draws as `jax.nn.initializers.orthogonal`; of `[..., H]`, all axes but the last count as one.

    Raises:
        ValueError: a shape of fewer than two axes.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        dtype = jnp.zeros((), dtype).dtype
        if len(shape) < 2:
            raise ValueError(f"the shape is {shape}; an orthogonal matrix needs two axes or more")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        # In bfloat16 nothing would be orthogonal.
        exact = jnp.promote_types(dtype, jnp.float32)
        tall = jax.random.normal(key, (max(rows, columns), min(rows, columns)), exact)
        frame = qr(tall).Q
        frame = (frame if rows >= columns else frame.T).reshape(shape).astype(dtype)
        return jnp.asarray(gain, dtype) * frame

    return init


def identity(scale: float | Array = 1.0) -> Initializer:
    """`scale` times the identity; with ReLU, the IRNN of Le, Jaitly & Hinton (2015)."""

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        del key
        return scale * jnp.eye(shape[0], shape[1], dtype=dtype)

    return init


def shift(scale: float | Array = 1.0) -> Initializer:
    """`scale` times a shift round the ring: s W holds s one unit further on.

    Orthogonal like the identity, but with all its eigenvalues apart: with ReLU, what comes in
    travels for H steps until it meets itself (Keller et al., "Traveling waves encode the recent
    past", 2024).
    """

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        del key
        return scale * jnp.roll(jnp.eye(shape[0], shape[1], dtype=dtype), 1, axis=1)

    return init


def spectral_radius(rho: float | Array, std: float = 1.0) -> Initializer:
    """Normal entries, rescaled so that the largest eigenvalue has modulus exactly `rho`.

    Args:
        rho: the spectral radius wanted.
        std: standard deviation before the rescaling; a positive number of no other effect.

    """

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        weights = std * jax.random.normal(key, shape, dtype)
        return _with_radius(weights, rho)

    return init


def sparse(nonzeros: int = 15, rho: float | Array = 0.95) -> Initializer:
    """Few normal entries in each row, rescaled to a spectral radius of exactly `rho`.

    Args:
        nonzeros: entries in each row that are not 0, their columns drawn at random.
        rho: the spectral radius wanted.

    The defaults are the third initialization of Pascanu, Mikolov & Bengio (2013), after Jaeger's
    echo state networks. Of very few entries in a row all eigenvalues may be 0; then there is
    nothing to rescale and NaN comes out.
    """
    if not isinstance(nonzeros, int) or isinstance(nonzeros, bool) or nonzeros < 1:
        raise ValueError(f"nonzeros is {nonzeros!r}; give a whole number of at least 1")

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        if nonzeros > shape[1]:
            raise ValueError(
                f"nonzeros is {nonzeros}, but the matrix has shape {shape}: give at most {shape[1]}"
            )
        place_key, weight_key = jax.random.split(key)
        places = jax.random.permutation(
            place_key, jnp.broadcast_to(jnp.arange(shape[1]), shape), axis=1, independent=True
        )
        weights = jnp.where(places < nonzeros, jax.random.normal(weight_key, shape, dtype), 0)
        return _with_radius(weights, rho)

    return init


def _with_radius(weights: Array, rho: float | Array) -> Array:
    """The matrix rescaled to a spectral radius of rho; NaN where it is 0."""
    return weights * (rho * jnp.exp(-log_spectral_radius(weights)))
