"""QR decomposition and singular values, in matrix products and scans alone.

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


Half = tuple[Array, Array]
"""Half of the rows, `[N/2, M]`, and the logarithms of their sizes."""
Sweeping = tuple[tuple[Half, Half], Array, Array]
"""Both halves, the largest cosine between partners in the last sweep, the number of sweeps."""


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
    """v `[N]`, |v|^2 = 2 or v = 0: I - v v^H takes the rows after k of a column to 0."""
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
        # Rows first, then columns: of a batch that a mesh splits JAX divides one axis at a time.
        blocks = padded.reshape(count, 2 * half, size).reshape(count, 2 * half, count, 2 * half)
        blocks = blocks[:, :half, :, half:]
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
def log_singular_values(rows: Array, logs: Array) -> Array:
    """ln of the singular values of diag(exp(logs)) @ rows, largest first, `[N]`.

    Args:
        rows: `[N, M]`, N <= M.
        logs: `[N]`, anything from -inf on: the product need not be in the range of floats.

    Each is exact relative to itself, as far as the rows at unit size are independent of each other;
    -inf for an exact zero. The derivative of one that is repeated is one of several.

    One-sided Jacobi: pairs of rows are rotated until all rows are orthogonal. Source: Golub & Van
    Loan, section 8.6.3; for the exactness Demmel & Veselic, SIAM J. Matrix Anal. 13 (1992).
    """
    return _orthogonal_rows(rows, logs, with_weights=False)[0]


@log_singular_values.defjvp
def _log_singular_values_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """d ln sigma_i = Re(v_i^H sum_j C_ij (dU_j + U_j dl_j)), where v_i = sum_j C_ij U_j."""
    (rows, logs), (change, change_of_logs) = primals, tangents
    values, units, weights = _orthogonal_rows(rows, logs, with_weights=True)
    # A row of logarithm -inf is zero whatever it holds.
    change_of_logs = jnp.where(jnp.isfinite(logs), change_of_logs, 0)
    total = change + rows * jnp.broadcast_to(change_of_logs[:, None], rows.shape)
    return values, jnp.sum((units.conj() * (weights @ total)).real, axis=1)


def _orthogonal_rows(rows: Array, logs: Array, with_weights: bool) -> tuple[Array, Array, Array]:
    """ln of the sizes `[N]`, falling, of the orthogonal rows; these at unit size; and weights C.

    C `[N, N]` says what the unit rows are made of: C @ rows. Its columns are none unless wanted.
    """
    size, width = rows.shape
    if size > width:
        raise ValueError(f"the matrix has shape {rows.shape}; give [N, M] with N <= M")
    half = (size + 1) // 2
    weights = jnp.eye(size, size if with_weights else 0, dtype=rows.dtype)
    weights = weights + 0 * rows[:, : weights.shape[1]]
    rows = jnp.concatenate([rows, weights], axis=1)
    # A row of zeros is the partner of an odd one.
    rows = jnp.pad(rows, ((0, 2 * half - size), (0, 0)))
    logs = jnp.pad(logs, (0, 2 * half - size), constant_values=-jnp.inf)
    tolerance = jnp.finfo(rows.dtype).eps * width**0.5

    def product(a: Array, b: Array) -> Array:
        return jnp.sum(a[:, :width].conj() * b[:, :width], axis=1)

    def normalize(rows: Array, logs: Array) -> Half:
        norms = jnp.sqrt(product(rows, rows).real)
        alive = (norms > 0) & (logs > -jnp.inf)
        norms = jnp.where(alive, norms, 1)
        return (
            jnp.where(alive[:, None], rows / norms[:, None], 0),
            jnp.where(alive, logs + jnp.log(norms), -jnp.inf),
        )

    def swap(where: Array, a: Half, b: Half) -> tuple[Half, Half]:
        def choose(yes: Half, no: Half) -> Half:
            return jnp.where(where[:, None], yes[0], no[0]), jnp.where(where, yes[1], no[1])

        return choose(b, a), choose(a, b)

    def rotate(pair: tuple[Half, Half], _: None) -> tuple[tuple[Half, Half], Array]:
        """Each row of one half is made orthogonal to its partner, and then all change partners."""
        smaller = pair[0][1] < pair[1][1]
        (a, log_a), (b, log_b) = swap(smaller, *pair)
        size_a, size_b = (jnp.sqrt(product(row, row).real) for row in (a, b))
        alive = (log_b > -jnp.inf) & (size_a > 0) & (size_b > 0)
        size_a, size_b = jnp.where(alive, size_a, 1), jnp.where(alive, size_b, 1)
        mixed = product(a, b)
        cosine = jnp.where(alive, jnp.abs(mixed) / (size_a * size_b), 0)
        turn = cosine > tolerance
        # ratio = |b| / |a|, and b turns by the angle whose tangent is ratio * tangent.
        gap = jnp.where(alive, log_b - log_a, 0) + jnp.log(size_b / size_a)
        ratio, rest = jnp.exp(gap), -jnp.expm1(2 * gap)
        root = jnp.sqrt(rest * rest + 4 * jnp.square(ratio * cosine))
        root = jnp.where(rest < 0, -root, root)
        tangent = jnp.where(turn, 2 * cosine / jnp.where(turn, rest + root, 1), 0)
        phase = jnp.where(turn, mixed.conj() / jnp.where(turn, jnp.abs(mixed), 1), 1)
        shared = lax.rsqrt(1 + jnp.square(ratio * tangent))
        of_b = (shared * tangent * ratio * ratio * size_a / size_b)[:, None]
        of_a = (shared * tangent * size_b / size_a)[:, None]
        b = b * phase[:, None]
        a, b = shared[:, None] * a + of_b * b, shared[:, None] * b - of_a * a
        (a, log_a), (b, log_b) = swap(smaller, (a, log_a), (b, log_b))
        if half > 1:
            a, b = jnp.concatenate([a[:1], b[:1], a[1:-1]]), jnp.concatenate([b[1:], a[-1:]])
            log_a, log_b = (
                jnp.concatenate([log_a[:1], log_b[:1], log_a[1:-1]]),
                jnp.concatenate([log_b[1:], log_a[-1:]]),
            )
        return ((a, log_a), (b, log_b)), jnp.max(cosine)

    def sweep(carry: Sweeping) -> Sweeping:
        pair, _, count = carry
        pair, cosines = lax.scan(rotate, pair, length=2 * half - 1)
        upper, lower = (normalize(*half) for half in pair)
        return (upper, lower), jnp.max(cosines), count + 1

    # In a sweep sizes change in the rows; added to a logarithm each time, they would add up errors.
    rows, logs = normalize(rows, logs)
    start = (rows[:half], logs[:half]), (rows[half:], logs[half:])
    (upper, lower), _, _ = lax.while_loop(
        lambda carry: (carry[1] > tolerance) & (carry[2] < MAX_SWEEPS),
        sweep,
        (
            start,
            jnp.ones_like(logs[0]) + 0 * jnp.abs(rows[0, 0]),
            jnp.zeros_like(logs[0], jnp.int32),
        ),
    )
    rows, logs = jnp.concatenate([upper[0], lower[0]]), jnp.concatenate([upper[1], lower[1]])
    order = jnp.argsort(-logs)[:size]
    rows = rows[order]
    return logs[order], rows[:, :width], rows[:, width:]
