"""The exponential of a skew-symmetric matrix, in matrix products alone.

`jax.scipy.linalg.expm` solves a linear system by LAPACK, which no program here calls.
"""

import jax.numpy as jnp
from jax import lax

from rnn_jax.types import Array

SQUARINGS = 10
"""At most: enough for a largest row sum of |A| of 2^10, far beyond any angle that is of use."""


def skew_exponential(A: Array) -> Array:
    """exp(A) `[H, H]` of a skew-symmetric A: orthogonal, with determinant 1.

    Scaling and squaring: exp(A) = exp(A / 2^s)^(2^s), with 2^s above the largest row sum of |A|,
    and the factor by its Taylor series. Each squaring doubles how far the product is from
    orthogonal; a Newton step for the nearest orthogonal matrix takes what has come together back
    to rounding.

    Source: Higham, "Functions of matrices" (2008), section 10.3 for the exponential, 8.3 for the
    Newton-Schulz step.

    >>> import jax.numpy as jnp
    >>> from rnn_jax.matrix_exponential import skew_exponential
    >>> skew_exponential(jnp.array([[0.0, -jnp.pi / 4], [jnp.pi / 4, 0.0]])).round(4)
    Array([[ 0.7071, -0.7071],
           [ 0.7071,  0.7071]], dtype=float32)
    """
    identity = jnp.eye(A.shape[0], dtype=A.dtype)
    size = lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(A), axis=1)))
    exponent = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(size, 1))), 0, SQUARINGS)
    scaled = A * jnp.exp2(-exponent).astype(A.dtype)
    # 1 / 13! is 2e-10, 1 / 19! is 8e-18.
    degree = 18 if A.dtype == jnp.float64 else 12
    result = identity
    for n in range(degree, 0, -1):
        result = identity + scaled @ result / n
    for n in range(SQUARINGS):
        result = jnp.where(n < exponent, result @ result, result)
    return (3 * result - result @ (result.T @ result)) / 2
