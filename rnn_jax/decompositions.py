"""QR decomposition and singular values in matrix products and scans alone.

LAPACK is not called. In JAX 0.10 several of its batched kernels at once can wait on XLA's CPU
threads for each other, and for ever (`docs/upstream/lapack_deadlock.md`). A program of products is
also lowered for every platform and split over a mesh like any other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.types import Array

MAX_SWEEPS = 30
"""Of a Jacobi iteration. It converges quadratically: 64 rows of normal numbers take 6 to 9."""


class QR(NamedTuple):
    """Q `[N, K]` with orthonormal columns and R `[K, K]`, upper triangular, its diagonal >= 0."""

    Q: Array
    R: Array


@jax.custom_jvp
@jax.jit
def qr(matrix: Array) -> QR:
    """QR decomposition of a matrix `[N, K]`, N >= K, by Householder reflections.

    R's diagonal is positive, which makes the two unique. Each column is as exact as its own size
    allows, however different the sizes are. Where R's diagonal is 0, the column of Q is some unit
    vector orthogonal to the others, and is constant to differentiation.

    Source: Golub & Van Loan, "Matrix Computations" (2013), section 5.2.
    """
    num_rows, num_columns = matrix.shape
    if num_rows < num_columns:
        raise ValueError(f"the matrix has shape {matrix.shape}; give [N, K] with N >= K")
    if num_columns == 1:
        return _normalize(matrix)
    rows = jnp.arange(num_rows)

    # Products, and no sums over an axis: XLA's CPU code for those takes up to twice as long.
    def reflect(vector: Array, columns: Array) -> Array:
        return columns - vector[:, None] * (vector.conj() @ columns)[None, :]

    def reduce(columns: Array, k: Array) -> tuple[Array, Array]:
        vector = _reflector(lax.dynamic_index_in_dim(columns, k, axis=1, keepdims=False), rows, k)
        return reflect(vector, columns), vector

    reduced, vectors = lax.scan(reduce, matrix, jnp.arange(num_columns))
    # Made from the matrix, it varies over a mesh as the matrix does.
    start = jnp.eye(num_rows, num_columns, dtype=matrix.dtype) + 0 * matrix
    frame, _ = lax.scan(lambda q, v: (reflect(v, q), None), start, vectors, reverse=True)
    diagonal = jnp.diagonal(reduced)
    phases = jnp.where(diagonal == 0, 1, jnp.sign(diagonal))
    triangle = jnp.triu(reduced[:num_columns])
    return QR(
        frame * jnp.broadcast_to(phases, frame.shape),
        triangle * jnp.broadcast_to(phases.conj()[:, None], triangle.shape),
    )


def _normalize(column: Array) -> QR:
    """The decomposition of one column `[N, 1]`, without the loops."""
    norm, unit = _direction(column[:, 0])
    first = jnp.arange(column.shape[0]) == 0
    return QR(
        jnp.where(norm > 0, unit, first)[:, None].astype(column.dtype),
        norm.reshape(1, 1).astype(column.dtype),
    )


def _reflector(column: Array, rows: Array, k: Array) -> Array:
    """v `[N]`, |v|^2 = 2: I - v v^H makes the rows after k of a column 0. 0 if all from k on are."""
    norm, unit = _direction(jnp.where(rows >= k, column, 0))
    pivot = unit[k]
    # Of the two directions the one in which nothing cancels.
    phase = jnp.where(pivot == 0, 1, jnp.sign(pivot))
    vector = unit + jnp.where((rows == k) & (norm > 0), phase, 0)
    return vector * lax.rsqrt(1 + jnp.abs(pivot)).astype(vector.dtype)


def _direction(vector: Array) -> tuple[Array, Array]:
    """|v| and v / |v|, or 0 and 0, for any v `[N]` of normal floats.

    Squares that leave the range of floats are taken at another scale. (A scale that is known from
    the start, such as 1 over the largest entry, costs more than all else: a maximum over an axis.)
    """
    limits = jnp.finfo(vector.dtype)

    def square(vector: Array) -> Array:
        return (vector.conj() @ vector).real

    far = 2.0 ** (limits.maxexp * 9 // 16)
    plain = square(vector)
    # Below this bound a square that underflowed may be missed.
    scale = jnp.where(plain < 2.0 ** (limits.minexp + 2 * limits.nmant), far, 1)
    scale = jnp.where(jnp.isinf(plain), 1 / far, scale).astype(plain.dtype)
    scaled = vector * scale
    norm = jnp.sqrt(square(scaled))
    return norm / scale, scaled * (1 / jnp.where(norm > 0, norm, 1))


@qr.defjvp
def _qr_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[QR, QR]:
    """dQ = Q S + (I - Q Q^H) dA R^-1 and dR = Q^H dA - S R, with S skew-Hermitian.

    S is Q^H dA R^-1 below the diagonal. Nowhere else is R inverted: what a large ratio of its
    entries amplifies above it cancels in the end.
    """
    (matrix,), (change,) = primals, tangents
    Q, R = qr(matrix)
    diagonal = jnp.diagonal(R).real
    # R = D (D^-1 R): the rows' sizes act last.
    scale = jnp.where(diagonal == 0, 1, diagonal)
    inverse = invert_triangle(R / jnp.broadcast_to(scale[:, None], R.shape))
    inner = Q.conj().T @ change
    quotient = (inner @ inverse) / jnp.broadcast_to(scale, R.shape)
    lower = jnp.tril(quotient, -1)
    skew = lower - lower.conj().T
    if jnp.iscomplexobj(matrix):
        skew = skew + jnp.diag(1j * jnp.diagonal(quotient).imag)
    change_of_Q = Q @ skew
    if Q.shape[0] > Q.shape[1]:
        outer = (change - Q @ inner) @ inverse
        change_of_Q = change_of_Q + outer / jnp.broadcast_to(scale, outer.shape)
    return QR(Q, R), QR(change_of_Q, jnp.triu(inner - skew @ R))


def invert_triangle(triangle: Array) -> Array:
    """Inverse of an upper triangular matrix `[K, K]`; what stands below its diagonal is not read.

    Where the diagonal is 0 the row and the column are left out: theirs are 0 in the inverse.

    By [[A, B], [0, C]]^-1 = [[A^-1, -A^-1 B C^-1], [0, C^-1]], from single entries upwards.
    """
    columns = triangle.shape[0]
    size = 1 << (columns - 1).bit_length()
    padded = jnp.pad(triangle, (0, size - columns))
    diagonal = jnp.diagonal(padded)
    inverse = jnp.where(diagonal == 0, 0, 1 / jnp.where(diagonal == 0, 1, diagonal))
    inverse = inverse.reshape(size, 1, 1)
    half = 1
    while half < size:
        count = size // (2 * half)
        blocks = padded.reshape(count, 2 * half, count, 2 * half)[:, :half, :, half:]
        upper, lower = inverse[0::2], inverse[1::2]
        corners = -upper @ jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0) @ lower
        rows = [
            jnp.concatenate([upper, corners], axis=2),
            jnp.concatenate([jnp.zeros_like(lower), lower], axis=2),
        ]
        inverse = jnp.concatenate(rows, axis=1)
        half *= 2
    return inverse[0, :columns, :columns]


@jax.custom_jvp
@jax.jit
def singular_values(matrix: Array) -> Array:
    """Singular values of a matrix `[N, M]`, N <= M: `[N]`, largest first.

    By Jacobi rotations of pairs of rows until all are orthogonal (one-sided Jacobi; Golub & Van
    Loan, section 8.6.3). The derivative of one that is repeated, or 0, is one of several.
    """
    return _orthogonal_rows(matrix, with_rotation=False)[0]


@singular_values.defjvp
def _singular_values_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """d sigma_i = Re(u_i^H dA v_i)."""
    (matrix,), (change,) = primals, tangents
    values, rows, rotation = _orthogonal_rows(matrix, with_rotation=True)
    safe = jnp.where(values > 0, values, 1)
    units = rows / jnp.broadcast_to(safe[:, None], rows.shape)
    turned = rotation @ change
    return values, jnp.sum((units.conj() * turned).real, axis=1)


def _orthogonal_rows(matrix: Array, with_rotation: bool) -> tuple[Array, Array, Array]:
    """Sizes `[N]` of the rows of U^H A, falling, these rows, and U^H `[N, N]` if it is wanted."""
    size, width = matrix.shape
    if size > width:
        raise ValueError(f"the matrix has shape {matrix.shape}; give [N, M] with N <= M")
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(scale > 0, scale, 1)
    half = (size + 1) // 2
    rotation = jnp.eye(size, size if with_rotation else 0, dtype=matrix.dtype)
    rows = jnp.concatenate([matrix / scale, rotation + 0 * matrix[:, : rotation.shape[1]]], axis=1)
    # A row of zeros is the partner of an odd one.
    rows = jnp.pad(rows, ((0, 2 * half - size), (0, 0)))
    tolerance = jnp.finfo(matrix.dtype).eps * width**0.5

    def product(a: Array, b: Array) -> Array:
        return jnp.sum(a[:, :width].conj() * b[:, :width], axis=1)

    def rotate(pair: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        """Each row of one half is made orthogonal to its partner, and then all change partners."""
        a, b = pair
        squares = product(a, a).real, product(b, b).real
        mixed = product(a, b)
        size_of_mixed = jnp.abs(mixed)
        sizes = jnp.sqrt(squares[0]) * jnp.sqrt(squares[1])
        cosine = size_of_mixed / jnp.where(sizes > 0, sizes, 1)
        turn = cosine > tolerance
        zeta = (squares[1] - squares[0]) / (2 * jnp.where(turn, size_of_mixed, 1))
        tangent = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.sqrt(1 + zeta * zeta))
        tangent = jnp.where(turn, tangent, 0)
        c = lax.rsqrt(1 + tangent * tangent)
        phase = jnp.where(turn, mixed / jnp.where(turn, size_of_mixed, 1), 1)
        s = (c * tangent)[:, None]
        c, b = c[:, None], b * phase.conj()[:, None]
        a, b = c * a - s * b, s * a + c * b
        pair = jnp.concatenate([a[:1], b[:1], a[1:-1]]), jnp.concatenate([b[1:], a[-1:]])
        return pair if half > 1 else (a, b), jnp.max(cosine)

    def sweep(carry: tuple[tuple[Array, Array], Array, Array]) -> tuple[tuple[Array, Array], Array, Array]:
        pair, _, count = carry
        pair, cosines = lax.scan(rotate, pair, length=2 * half - 1)
        return pair, jnp.max(cosines), count + 1

    start = (rows[:half], rows[half:])
    largest = jnp.max(jnp.abs(rows)) + 1
    pair, _, _ = lax.while_loop(
        lambda carry: (carry[1] > tolerance) & (carry[2] < MAX_SWEEPS),
        sweep,
        (start, largest, jnp.zeros((), jnp.int32)),
    )
    rows = jnp.concatenate(pair)
    values = jnp.sqrt(product(rows, rows).real)
    order = jnp.argsort(-values)[:size]
    rows = rows[order]
    return values[order] * scale, rows[:, :width] * scale, rows[:, width:]
