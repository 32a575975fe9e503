"""What a gradient should do, before any is measured: closed forms and mean-field theory.

A slope here is what ln|dL/ds_t| gains with each step back in time: negative where the gradient
vanishes, positive where it explodes. Each stands on assumptions, which go with it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.special import digamma
from jax.typing import ArrayLike

from rnn_jax.cells import Cell
from rnn_jax.cells.elman import activation_named, check_size
from rnn_jax.decompositions import invert_triangle, qr
from rnn_jax.gradflow.mean_field import (
    Prediction,
)
from rnn_jax.norms import widened
from rnn_jax.spectra import log_spectral_norm, log_spectral_radius
from rnn_jax.types import Array, Params, State

LARGEST_SLOPES = {"identity": 1.0, "relu": 1.0, "sigmoid": 0.25, "softplus": 1.0, "tanh": 1.0}
"""gamma, the largest value of phi'."""


class FixedPoint(NamedTuple):
    """Where a cell comes to rest under a constant input.

    Attributes:
        state: s* = step(params, s*, x), leaves `[H]`.
        residual: largest entry of |step(params, s*, x) - s*|.
        converged: whether the residual is within the tolerance.
        slope: ln of the spectral radius of the Jacobian there, nats per step; nan unless converged.
    """

    state: State
    residual: Array
    converged: Array
    slope: Array


class SingularValueBounds(NamedTuple):
    """What the singular values of W say, all `[...]` for W `[..., H, H]`.

    Attributes:
        largest: largest singular value of W.
        gamma: largest value of phi'.
        upper_slope: ln(gamma * largest); no slope of any trajectory lies above it.
        lower_slope: ln of the smallest singular value for the identity; -inf, no bound, for every
            other activation, whose phi' can come as near to 0 as it likes.
        vanishing_sufficient: largest < 1/gamma: gradients must vanish.
        exploding_possible: largest > 1/gamma: without it gradients cannot explode.
    """

    largest: Array
    gamma: float
    upper_slope: Array
    lower_slope: Array
    vanishing_sufficient: Array
    exploding_possible: Array


class ScalarSensitivity(NamedTuple):
    """Stationary moments of h <- a h + x: of h, and of its derivative by a."""

    state: Array
    sensitivity: Array


class TransientGrowth(NamedTuple):
    """ln||W^k||_2 over k = 0..largest_power, all `[...]` for W `[..., H, H]`.

    Attributes:
        peak: its largest value, 0 or above, since ||W^0|| = 1.
        peak_step: the k at which it occurs; 0 where nothing grows.
        initial_slope: ln of the largest singular value, the growth of the first step.
        asymptotic_slope: ln of the spectral radius, nats per step in the long run.
    """

    peak: Array
    peak_step: Array
    initial_slope: Array
    asymptotic_slope: Array


def fixed_point_slope(W: Array, slope_at_fixed_point: ArrayLike = 1.0) -> Prediction:
    """Slope of the gradient at rest: ln of the spectral radius of W diag(phi').

    Args:
        W: `[..., H, H]`.
        slope_at_fixed_point: phi' there, scalar or `[H]`; 1 for tanh at 0, which is where it rests
            without input and bias when the spectral radius of W is below 1.

    Returns:
        A slope `[...]`; -inf where W is nilpotent to the last digit.

    Raises:
        ValueError: W is not square, or the slopes do not fit it.

    Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks"
    (2013), section 2.2.
    """
    check_square(W)
    W, slopes = widened((W, jnp.asarray(slope_at_fixed_point)))
    if slopes.shape not in ((), W.shape[-1:]):
        raise ValueError(
            f"slope_at_fixed_point has shape {slopes.shape}, but W {W.shape} wants a number or "
            f"shape {W.shape[-1:]}: one slope for each unit"
        )
    return Prediction(
        slope=log_spectral_radius(W * jnp.broadcast_to(slopes, W.shape)),
        assumption="the state rests at the fixed point, and many steps lie between it and the loss",
        source="Pascanu, Mikolov & Bengio 2013",
    )


def fixed_point(
    cell: Cell,
    params: Params,
    x: Array,
    state: State | None = None,
    max_steps: int = 10_000,
    tolerance: float | None = None,
) -> FixedPoint:
    """Repeats a cell's step on a constant input until it rests, and its slope there.

    Args:
        cell: any `Cell`.
        params: its parameters.
        x: `[D]`, the same at every step.
        state: where to start, leaves `[H]`; the initial state unless given. A network that starts
            on an unstable fixed point, as tanh at 0 without input may, stays there.
        max_steps: when to give up. Near the edge of stability it takes ever more.
        tolerance: the largest residual that counts as rest; 10 times rounding at the size of the
            state unless given.

    Returns:
        `FixedPoint`; it cannot be differentiated in reverse.

    Raises:
        ValueError: x is not `[D]`, or max_steps not at least 1.
    """
    check_size("max_steps", max_steps)
    if jnp.ndim(x) != 1:
        raise ValueError(f"x has shape {jnp.shape(x)}, but [D] is wanted: one input, no batch")
    params, x = widened((params, x))
    start, unravel = ravel_pytree(cell.initial_state(params) if state is None else widened(state))

    def step(flat: Array) -> Array:
        return ravel_pytree(cell.step(params, unravel(flat), x))[0]

    def residual_of(flat: Array, new: Array) -> tuple[Array, Array]:
        rounding = 10 * jnp.finfo(flat.dtype).eps * jnp.maximum(1, jnp.max(jnp.abs(flat)))
        residual = jnp.max(jnp.abs(new - flat))
        return residual, residual <= (rounding if tolerance is None else tolerance)

    def moves(carry: tuple[Array, Array, Array]) -> Array:
        flat, new, count = carry
        return ~residual_of(flat, new)[1] & (count < max_steps)

    flat, new, _ = lax.while_loop(
        moves,
        lambda carry: (carry[1], step(carry[1]), carry[2] + 1),
        (start, step(start), jnp.asarray(1)),
    )
    residual, converged = residual_of(flat, new)
    jacobian = jax.jacrev(step)(jnp.where(converged, flat, start))
    slope = jnp.where(converged, log_spectral_radius(jacobian), jnp.nan)
    return FixedPoint(unravel(flat), residual, converged, slope)


def singular_value_bounds(W: Array, activation: str = "tanh") -> SingularValueBounds:
    """Bounds on the slope of any trajectory of s_t = phi(x_t U + s_{t-1} W + b); W `[..., H, H]`.

    Raises:
        ValueError: an unknown activation, or W is not square.

    Source: Pascanu, Mikolov & Bengio (2013), section 2.1.
    """
    activation_named(activation)
    check_square(W)
    W = widened(W)
    gamma = LARGEST_SLOPES[activation]
    log_largest = log_spectral_norm(W)
    largest = jnp.exp(log_largest)
    return SingularValueBounds(
        largest=largest,
        gamma=gamma,
        upper_slope=log_largest + math.log(gamma),
        lower_slope=(
            _log_smallest_singular_value(W)
            if activation == "identity"
            else jnp.full_like(largest, -jnp.inf)
        ),
        vanishing_sufficient=gamma * largest < 1,
        exploding_possible=gamma * largest > 1,
    )


@functools.partial(jnp.vectorize, signature="(n,n)->()")
def _log_smallest_singular_value(W: Array) -> Array:
    """Minus ln of the largest of W^-1; R of W = Q R has the same, and its inverse is exact."""
    triangle = qr(W).R
    regular = jnp.all(jnp.diagonal(triangle) != 0)
    return jnp.where(regular, -log_spectral_norm(invert_triangle(triangle)), -jnp.inf)


def newman_exponents(size: int) -> Array:
    """Lyapunov exponents of a product of independent Gaussian matrices of variance 1/size.

    Returns:
        `[size]`, nats per step, largest first: 1/2 [ln(2/N) + digamma((N-i+1)/2)], i = 1..N. A
        standard deviation of gain/sqrt(size) adds ln gain to each.

    Raises:
        ValueError: size is not a whole number of at least 1.

    Source: Newman, "The distribution of Lyapunov exponents: exact results for random matrices"
    (1986).
    """
    check_size("size", size)
    return (math.log(2 / size) + digamma(jnp.arange(size, 0, -1, dtype=float) / 2)) / 2


def trainable_length(slope: ArrayLike, survival: float = 1e-3) -> Array:
    """Most steps over which a gradient falls to no less than `survival` of itself.

    Args:
        slope: nats per step, any shape.
        survival: a share in (0, 1).

    Returns:
        floor(ln(survival) / slope), of slope's shape; inf where nothing vanishes (slope >= 0).

    Raises:
        ValueError: survival is not in (0, 1).
    """
    if not 0 < survival < 1:
        raise ValueError(f"survival is {survival}; give a share between 0 and 1, both excluded")
    slope = _floating(slope)
    length = math.log(survival) / jnp.where(slope == 0, -1, slope)
    # A ratio that rounding alone keeps below a whole number counts as that number.
    whole = jnp.floor(length * (1 + 4 * jnp.finfo(slope.dtype).eps))
    return jnp.where(slope >= 0, jnp.inf, whole)


def stable_length(slope: ArrayLike, survival: float = 1e-3) -> Array:
    """Most steps over which a gradient grows to no more than 1/survival of itself.

    Arguments and errors as in `trainable_length`; inf where nothing explodes (slope <= 0).
    """
    return trainable_length(-jnp.asarray(slope), survival)


def forget_bias_for(memory_time: ArrayLike) -> Array:
    """Bias of a forget gate that keeps 1 - 1/memory_time at each step: ln(memory_time - 1).

    Args:
        memory_time: steps until a share 1/e is left, any shape.

    Raises:
        ValueError: a memory time of 1 or less, which no gate has.

    Source: Tallec & Ollivier, "Can recurrent neural networks warp time?" (2018), section 2.
    """
    if not isinstance(memory_time, jax.core.Tracer) and not np.all(np.asarray(memory_time) > 1):
        raise ValueError(f"memory_time is {memory_time}; a gate needs more than 1 step")
    return jnp.log(_floating(memory_time) - 1)


def scalar_sensitivity(a: ArrayLike) -> ScalarSensitivity:
    """E h^2 and E (dh/da)^2 of h <- a h + x once it is stationary, x white of variance 1.

    Returns:
        1/(1-a^2) and (1+a^2)/(1-a^2)^3, of a's shape; inf from |a| = 1 on. Near 1 the second
        explodes although the gradient through the state, a^k, does not.

    Source: Zucchet & Orvieto, "Recurrent neural networks: vanishing and exploding gradients are
    not the end of the story" (2024), section 2.
    """
    a = _floating(a)
    # Factored, 1 - a^2 keeps its digits near |a| = 1.
    decay = jnp.clip((1 - a) * (1 + a), min=0)
    return ScalarSensitivity(1 / decay, (1 + a * a) / decay**3)


def transient_growth(W: Array, largest_power: int) -> TransientGrowth:
    """How far powers of W grow before their spectral radius has its way; W `[..., H, H]`.

    A non-normal W can let a gradient explode for a while that it makes vanish in the end.

    Args:
        W: recurrent matrix.
        largest_power: of W. Each power is kept at unit size with its logarithm aside, so that
            none over- or underflows.

    Raises:
        ValueError: W is not square, or largest_power not a whole number of at least 1.

    Source: Trefethen & Embree, "Spectra and pseudospectra" (2005), chapter 16.
    """
    check_square(W)
    check_size("largest_power", largest_power)
    W = widened(W)

    def multiply(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        power, log_scale = carry
        log_norm = log_spectral_norm(power)
        norm = jnp.exp(log_norm)[..., None, None]
        log_norm = log_scale + log_norm
        power = power / jnp.broadcast_to(jnp.where(norm > 0, norm, 1), power.shape)
        return (power @ W, log_norm), log_norm

    identity = jnp.broadcast_to(jnp.eye(W.shape[-1], dtype=W.dtype), W.shape)
    start = (identity, jnp.zeros(W.shape[:-2], W.dtype))
    _, log_norms = lax.scan(multiply, start, None, length=largest_power + 1)
    return TransientGrowth(
        peak=jnp.max(log_norms, axis=0),
        peak_step=jnp.argmax(log_norms, axis=0),
        initial_slope=log_norms[1],
        asymptotic_slope=log_spectral_radius(W),
    )


def _floating(value: ArrayLike) -> Array:
    """An array of floating point, in float32 at least."""
    return widened(jnp.asarray(value, jnp.result_type(value, float)))


def check_square(W: Array) -> None:
    """`ValueError` unless W is `[..., H, H]`."""
    if jnp.ndim(W) < 2 or W.shape[-1] != W.shape[-2] or W.shape[-1] < 1:
        raise ValueError(
            f"W has shape {jnp.shape(W)}, but [H, H] is wanted: a recurrent matrix is square; "
            "give a gated cell's W gate by gate"
        )
