"""Products of the Jacobians J_t = ds_t/ds_{t-1}: their singular values and their growth rates.

A product of many Jacobians has singular values from e^1000 down to e^-1000, which no matrix of
floats can hold. It is kept as Q R, with R triangular and the size of each of its rows a logarithm.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.cells import Cell
from rnn_jax.checks import check_fit, num_steps_of
from rnn_jax.decompositions import log_singular_values
from rnn_jax.gradflow import frames
from rnn_jax.gradflow.fallback import with_fallback
from rnn_jax.gradflow.scaled import (
    NO_EXPONENT,
    Scaled,
    exponent_of,
    is_finite,
    is_zero,
    power_of_two,
    rescale,
    scaled_log,
)
from rnn_jax.norms import state_norm
from rnn_jax.placement import batch_axes, beside, mean, on_its_mesh
from rnn_jax.types import Array, Params, State


@on_its_mesh
def jacobian_product(cell: Cell, params: Params, state: State, xs: Array) -> Array:
    """ln of the singular values of ds_T/ds_0, largest first.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]` or `[H]`.
        xs: `[T, B, D]` or `[T, D]`.

    Returns:
        `[N]` in nats, N the size of one example's state (H for Elman, 2H for an LSTM); of a batch
        the mean over its examples. -inf for an exact zero.

    Raises:
        ValueError: shapes that do not fit; a NaN or inf in the arguments, or in the states.

    The product is built from QR decompositions, R's rows scaled by logarithms (Eckmann & Ruelle,
    Rev. Mod. Phys. 57, 1985, sec. V.C), and brought to diagonal form by Jacobi rotations.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> cell = rnn_jax.elman(3, "identity", recurrent_init=rnn_jax.initializers.orthogonal(0.5))
    >>> params = cell.init(jax.random.key(0), 1)
    >>> logs = gradflow.jacobian_product(cell, params, jnp.zeros(3), jnp.zeros((400, 1)))
    >>> bool(jnp.allclose(logs, 400 * jnp.log(0.5), rtol=1e-5))
    True
    """
    return _mean_over_batch(_log_singular_values, cell, frames.trajectory(cell, params, state, xs))


@on_its_mesh
def lyapunov_spectrum(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    num_exponents: int | None = None,
    burn_in: int = 0,
    *,
    qr_every: int = 1,
) -> Array:
    """Lyapunov exponents along a trajectory: mean growth rates of small differences.

    Args:
        cell: any `Cell`; any pure step map is one.
        params: its parameters.
        state: s_0, leaves `[B, H]` or `[H]`.
        xs: `[T, B, D]` or `[T, D]`; `[T, 0]` for a map without input.
        num_exponents: k, all N unless given.
        burn_in: steps at the start over which directions align and nothing is counted.
        qr_every: steps between two QR decompositions; a larger number is faster, until the
            directions between them can no longer be told apart.

    Returns:
        `[k]` in nats per step, largest first; of a batch the mean over its examples.

    Raises:
        ValueError: shapes or counts that do not fit; a NaN or inf in the arguments or states.

    Differentiable by params, state and xs. Source: Benettin et al., Meccanica 15 (1980); for
    recurrent networks Engelken, Wolf & Abbott, Phys. Rev. Research 5 (2023).

    >>> import jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> logistic = rnn_jax.Cell(
    ...     init=None,
    ...     initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, 1)),
    ...     step=lambda r, s, x: r * s * (1 - s),
    ... )
    >>> s0, xs = jnp.array([0.3]), jnp.zeros((20_000, 0))
    >>> exponents = gradflow.lyapunov_spectrum(logistic, 4.0, s0, xs, burn_in=100)
    >>> f"{exponents[0]:.2f}"  # ln 2
    '0.69'
    """
    xs = check_fit(cell, params, state, xs)
    num_steps = num_steps_of(xs)
    if not 0 <= burn_in < num_steps:
        raise ValueError(f"burn_in is {burn_in}; with {num_steps} steps give 0..{num_steps - 1}")
    if not 1 <= qr_every <= num_steps:
        raise ValueError(f"qr_every is {qr_every}; with {num_steps} steps give 1..{num_steps}")
    run = frames.trajectory(cell, params, state, xs)
    size = run.flat.shape[1]
    count = size if num_exponents is None else num_exponents
    if not 1 <= count <= size:
        raise ValueError(
            f"num_exponents is {num_exponents}, but the state has {size} numbers: give 1..{size}"
        )
    spectrum = functools.partial(_spectrum, count=count, burn_in=burn_in, qr_every=qr_every)
    return _mean_over_batch(spectrum, cell, run)


def _mean_over_batch(
    measure: Callable[..., tuple[Array, Array]], cell: Cell, run: frames.Run
) -> Array:
    """Mean over the batch of what `measure` finds for each example.

    `measure` is `(cell, run, careful) -> (results [E, k], whether they held)`.
    """

    axes = batch_axes(run.params, run.flat, run.xs)

    def mean_of_examples(careful: bool) -> tuple[Array, Array]:
        results, held = measure(cell, run, careful=careful)
        return mean(results, axes, axis=0), held

    return with_fallback(
        lambda: mean_of_examples(careful=False), lambda: mean_of_examples(careful=True)[0]
    )


def _spectrum(
    cell: Cell, run: frames.Run, *, count: int, burn_in: int, qr_every: int, careful: bool
) -> tuple[Array, Array]:
    """Exponents `[E, k]` of the examples' trajectories, and whether the products held."""
    frame = frames.random_frame(run, count)
    num_steps = num_steps_of(run.xs)

    def steps(frame: Array, inputs: tuple[State, Any]) -> tuple[Array, tuple[Array, Array]]:
        def push(vectors: Scaled, step: tuple[State, Any]) -> tuple[Scaled, Array]:
            vectors = frames.push(cell, run, *step, vectors, careful)
            return vectors, is_finite(vectors)

        vectors, held = lax.scan(push, frames.columns(frame), inputs)
        # A column's scale goes through to its entry of the diagonal.
        frame, triangle = frames.frame_of(vectors)
        diagonal = jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2))
        return frame, (scaled_log(diagonal, vectors.exponent), jnp.all(held))

    def grow(frame: Array, start: int, stop: int) -> tuple[Array, Array, Array]:
        """The frame after steps start..stop, the sum of its logarithmic growth, if all held."""
        total, all_held = jnp.zeros_like(frame[:, 0]), jnp.ones((), bool)
        whole = (stop - start) // qr_every
        for first, blocks, length in (
            (start, whole, qr_every),
            (start + whole * qr_every, 1, (stop - start) % qr_every),
        ):
            if blocks and length:
                part = jax.tree.map(
                    lambda a, f=first, b=blocks, n=length: a[f : f + b * n].reshape(
                        b, n, *a.shape[1:]
                    ),
                    (run.previous, run.xs),
                )
                frame, (growth, held) = lax.scan(steps, frame, part)
                total, all_held = total + jnp.sum(growth, axis=0), all_held & jnp.all(held)
        return frame, total, all_held

    frame, _, first_held = grow(frame, 0, burn_in)
    _, total, held = grow(frame, burn_in, num_steps)
    # Not `jnp.sort`, whose derivative fails on an Explicit mesh in JAX 0.10.
    return lax.top_k(total / (num_steps - burn_in), count)[0], first_held & held


def _log_singular_values(cell: Cell, run: frames.Run, *, careful: bool) -> tuple[Array, Array]:
    """ln singular values `[E, N]` of each example's J_T ... J_1, and whether the products held."""
    frame = frames.random_frame(run)
    steps = (run.previous, run.xs)

    def forward(
        frame: Array, inputs: tuple[State, Any]
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        vectors = frames.push(cell, run, *inputs, frames.columns(frame), careful)
        frame, triangle = frames.frame_of(vectors)
        return frame, (triangle, vectors.exponent, is_finite(vectors))

    def backward(frame: Array, inputs: tuple[State, Any]) -> tuple[Array, Array]:
        vectors = frames.pull(cell, run, *inputs, frames.columns(frame), careful)
        return frames.frame_of(vectors).Q, is_finite(vectors)

    # There and back the frame turns to the product's right singular vectors, in falling order of
    # their values. From then on no triangle mixes a small row into a large one's rounding error.
    frame, _ = lax.scan(forward, frame, steps)
    frame, held_back = lax.scan(backward, frame, steps, reverse=True)
    _, (triangles, exponents, held) = lax.scan(forward, frame, steps)

    def multiply(rows: Scaled, step: tuple[Array, Array]) -> tuple[Scaled, None]:
        triangle, exponent = step
        # A column that is zero is one of the triangle too.
        exponent = jnp.where(is_zero(exponent), 0, exponent)
        return _multiply_triangles(triangle, Scaled(rows.value, rows.exponent + exponent)), None

    def of_example(triangles: Array, exponents: Array) -> Array:
        size = triangles.shape[-1]
        unit = jnp.eye(size, dtype=triangles.dtype), jnp.zeros(size, jnp.int32)
        start = rescale(*beside(unit, triangles))
        rows, _ = lax.scan(multiply, start, (triangles, exponents))
        norms = state_norm(rows.value, 1)
        safe = jnp.where(norms > 0, norms, 1)
        units = rows.value / jnp.broadcast_to(safe[:, None], rows.value.shape)
        return log_singular_values(units, scaled_log(norms, rows.exponent))

    values = jax.vmap(of_example, in_axes=1)(triangles, exponents)
    return values, jnp.all(held_back) & jnp.all(held)


def _multiply_triangles(triangle: Array, rows: Scaled) -> Scaled:
    """`triangle @ rows`, each row with an exponent of its own.

    Row i of the product is the sum over j of triangle_ij rows_j, at the scale of its largest term.
    """
    exponents = jnp.broadcast_to(rows.exponent[None], triangle.shape)
    terms = jnp.where(triangle == 0, NO_EXPONENT, exponent_of(jnp.abs(triangle)) + exponents)
    largest = jnp.max(terms, axis=1)
    shift = exponents - jnp.broadcast_to(largest[:, None], terms.shape)
    # Below the type's smallest power of two a term is lost in the others' rounding.
    factor = jnp.where(
        shift < jnp.finfo(triangle.dtype).minexp, 0, power_of_two(shift, triangle.dtype)
    )
    return rescale((triangle * factor) @ rows.value, largest)
