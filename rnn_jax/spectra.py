"""Spectral radius and spectral norm by repeated squaring, in matrix products alone.

A matrix squared k times is its power m = 2^k, and |W^m|^(1/m) goes to the spectral radius
(Gelfand). The power is kept at unit size, its logarithm aside. A rounding error in the k-th square
counts 2^-k times in the end, so that the result has the digits of the first products. Beside
LAPACK's eigenvalues, which are not called (`decompositions` says why), it is as exact, faster from
64 rows on, and runs on every platform.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnn_jax.types import Array

Best = tuple[Array, Array]
"""A matrix and its error."""

BALANCINGS = 20
"""Steps of `_balanced`; a chain of 64 weights from 1e-30 to 1e30 takes 10."""


def log_spectral_radius(matrix: Array) -> Array:
    """ln of the largest modulus of an eigenvalue, `[..., H, H] -> [...]`.

    Raises:
        ValueError: the matrix is not square.

    -inf where every product of H entries around a loop is 0. Of another nilpotent matrix, whose
    eigenvalues are 0 by cancellation, rounding leaves eigenvalues near eps^(1/H).

    The derivative is that of a simple eigenvalue, of a complex pair or of a pair of opposite sign.
    Where others share the largest modulus there is none, and NaN or that of one of them comes out.

    Source: Horn & Johnson, "Matrix Analysis" (2012), corollary 5.6.14.
    """
    if jnp.ndim(matrix) < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"the matrix has shape {jnp.shape(matrix)}; give a square one, [..., H, H]"
        )
    return _each(_log_radius)(matrix)


def log_spectral_norm(matrix: Array) -> Array:
    """ln of the largest singular value, `[..., N, M] -> [...]`; -inf for zeros.

    Where several share it, the derivative is the mean of theirs.
    """
    return _each(_log_norm)(matrix)


def _each(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return jnp.vectorize(function, signature="(n,m)->()")


def _num_squares(dtype: jnp.dtype) -> int:
    """After so many the error, of some multiples of k / 2^k, is below rounding."""
    return int(jnp.finfo(dtype).nmant) + 8


def _square(carry: tuple[Array, Array], weight: Array) -> tuple[tuple[Array, Array], None]:
    """W^m at unit size to W^2m; the log of the size, of W, is added up."""
    power, log = carry
    size = jnp.max(jnp.abs(power))
    power = power / jnp.where(size > 0, size, 1)
    return (power @ power, log + weight * jnp.log(size)), None


def _log_size(matrix: Array) -> tuple[Array, Array]:
    """ln of the size of W, as that of W^m over m, and W^m at some size."""
    start = jnp.sum(0 * jnp.abs(matrix))
    weights = jnp.asarray(0.5 ** np.arange(_num_squares(matrix.dtype) + 1), start.dtype)
    (power, log), _ = lax.scan(_square, (matrix, start), weights)
    return log, power


@jax.custom_jvp
@jax.jit
def _log_radius(matrix: Array) -> Array:
    return _log_size(_balanced(_loops(matrix)))[0]


def _loops(matrix: Array) -> Array:
    """The matrix without entries that lie on no loop i -> j -> ... -> i: no eigenvalue has them.

    A long chain of units without a way back would need powers beyond the range of floats.
    """
    size = len(matrix)
    reach = (matrix != 0) | jnp.eye(size, dtype=bool)

    def double(_: Array, reach: Array) -> Array:
        steps = reach.astype(jnp.float32)
        return steps @ steps > 0

    reach = lax.fori_loop(0, (size - 1).bit_length(), double, reach)
    return jnp.where(reach & reach.T, matrix, 0)


def _balanced(matrix: Array) -> Array:
    """A similar matrix, by powers of two, in which a unit's row and column have about equal sizes.

    Source: Osborne, J. ACM 7 (1960); here all units at once, and therefore by half.
    """
    others = ~jnp.eye(len(matrix), dtype=bool)

    def balance(matrix: Array, _: None) -> tuple[Array, None]:
        sizes = jnp.where(others, jnp.abs(matrix), 0)
        row, column = jnp.max(sizes, axis=1), jnp.max(sizes, axis=0)
        both = (row > 0) & (column > 0)
        ratio = jnp.log2(jnp.where(both, column, 1)) - jnp.log2(jnp.where(both, row, 1))
        # Ordinary matrices are left as they are.
        power = jnp.where(jnp.abs(ratio) > 4, jnp.round(ratio / 4), 0)
        factors = jnp.exp2(power), jnp.exp2(-power)
        return matrix * factors[0][:, None] * factors[1][None, :], None

    return lax.scan(balance, matrix, length=BALANCINGS)[0]


@_log_radius.defjvp
def _log_radius_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d ln rho = Re tr(Q W^-1 dW) / r, with Q the projection on the r = 1 or 2 eigenvectors."""
    (matrix,), (change,) = primals, tangents
    log = _log_radius(matrix)
    projection, pair = _dominant_projection(matrix)
    inside = projection @ matrix
    trace = jnp.trace(inside)
    determinant = (trace * trace - jnp.trace(inside @ inside)) / 2
    of_one = projection / trace
    of_two = (trace * projection - inside) / (2 * determinant)
    inverse = jnp.where(pair, of_two, of_one)
    return log, jnp.sum((inverse.T * change).real).astype(log.dtype)


def _dominant_projection(matrix: Array) -> tuple[Array, Array]:
    """Projection `[H, H]` on the dominant eigenvector, or pair, and whether it is a pair.

    W^m goes to l^m P, or to l^m P + conj(l^m P), which gives P + conj(P) by Cayley & Hamilton. In
    the end rounding tears a pair apart, so the best of all m is taken. NaN if none is good.
    """
    norm = jnp.linalg.norm
    unit = matrix / jnp.max(jnp.abs(matrix))
    rounding = jnp.finfo(matrix.dtype).eps

    def error_of(candidate: Array) -> Array:
        size = norm(candidate)
        apart = norm(candidate @ candidate - candidate) / (size * size)
        turned = norm(candidate @ unit - unit @ candidate) / (size * norm(unit))
        return jnp.maximum(apart, turned)

    def better(best: Best, candidate: Array, error: Array) -> Best:
        return jax.tree.map(lambda a, b: jnp.where(error < best[1], a, b), (candidate, error), best)

    def step(carry: tuple[Array, Best, Best], _: None) -> tuple[tuple[Array, Best, Best], None]:
        power, one, two = carry
        power = power / jnp.max(jnp.abs(power))
        square = power @ power
        trace = jnp.trace(power)
        determinant = (trace * trace - jnp.trace(square)) / 2
        candidate = power / trace
        one = better(one, candidate, error_of(candidate))
        candidate = (trace * power - square) / determinant
        # Two real eigenvalues of a matrix of rank 2 have a projection, too.
        alike = jnp.abs(trace) ** 2 <= 4 * jnp.abs(determinant) * (1 + 8 * rounding)
        two = better(two, candidate, jnp.where(alike, error_of(candidate), 1))
        return (square, one, two), None

    none = jnp.full_like(unit, jnp.nan), jnp.ones_like(norm(unit))
    (_, one, two), _ = lax.scan(step, (unit, none, none), length=_num_squares(matrix.dtype))
    good = [error < rounding**0.5 for _, error in (one, two)]
    pair = ~good[0]
    return jnp.where(pair, jnp.where(good[1], two[0], jnp.nan), one[0]), pair


@jax.custom_jvp
@jax.jit
def _log_norm(matrix: Array) -> Array:
    return _norm_and_direction(matrix)[0]


def _norm_and_direction(matrix: Array) -> tuple[Array, Array, Array]:
    """ln of the norm, A at unit size, and v v^H for its right singular vector v."""
    size = jnp.max(jnp.abs(matrix))
    unit = matrix / jnp.where(size > 0, size, 1)
    log, power = _log_size(unit.conj().T @ unit)
    trace = jnp.trace(power).real
    return jnp.log(size) + log / 2, unit, power / jnp.where(trace > 0, trace, 1)


@_log_norm.defjvp
def _log_norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d ln sigma = Re <A v v^H, dA> / sigma^2."""
    (matrix,), (change,) = primals, tangents
    log, unit, direction = _norm_and_direction(matrix)
    image = unit @ direction
    size = jnp.max(jnp.abs(matrix))
    slope = jnp.sum((image.conj() * change).real) / jnp.sum((image.conj() * unit).real)
    return log, slope / jnp.where(size > 0, size, 1)
