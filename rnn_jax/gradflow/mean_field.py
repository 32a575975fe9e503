"""Mean-field theory of wide random recurrent networks: the slope of the gradient before any run."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rnn_jax.cells.elman import activation_named
from rnn_jax.types import Array

GROWTHS = {"identity": 1.0, "relu": 0.5, "sigmoid": 0.0, "softplus": 0.5, "tanh": 0.0}
"""E[phi(sqrt(q) z)^2] / q, and E[phi'(sqrt(q) z)^2], for q without bound."""

NUM_NODES = 256
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-30, 1e30
NUM_HALVINGS = 64


class Prediction(NamedTuple):
    """A predicted slope and what it stands on.

    Attributes:
        slope: expected gain of ln|dL/ds_t| with one step back, nats per step; below 0 it vanishes.
        assumption: under what the prediction holds.
        source: paper.
    """

    slope: Array
    assumption: str
    source: str


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gaussian_mean(function: Callable[[Array], Array], variance: Array) -> Array:
    """E[f(sqrt(variance) z)], z standard normal, by the midpoint rule in u, z = sinh(u) / scale.

    The nodes crowd where the activation bends, within |z| < 1/sqrt(variance), and reach to
    |z| = 9, so that the error is that of rounding at any variance. Gauss-Hermite nodes lie
    further apart than the bend of a tanh is wide at gain 10, and are badly wrong there. No node
    lies at 0, where ReLU has a kink.
    """
    scale = jnp.sqrt(1 + variance)
    reach = jnp.arcsinh(9 * scale)
    u = reach * ((2 * jnp.arange(NUM_NODES) + 1) / NUM_NODES - 1).astype(variance.dtype)
    z = jnp.sinh(u) / scale
    weights = jnp.exp(-z * z / 2) * jnp.cosh(u)
    return jnp.sum(weights * jax.vmap(function)(jnp.sqrt(variance) * z)) / jnp.sum(weights)


@_gaussian_mean.defjvp
def _gaussian_mean_jvp(
    function: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # The heat equation, dE[f]/dq = E[f'']/2: differentiating sqrt(q) would be 0/0 at q = 0.
    (variance,), (tangent,) = primals, tangents
    curvature = _gaussian_mean(jax.grad(jax.grad(function)), variance)
    return _gaussian_mean(function, variance), curvature * tangent / 2


@functools.partial(jnp.vectorize, excluded={0})
def _variance(activation: str, gain: Array, source: Array) -> Array:
    """q = g^2 E[phi(sqrt(q) z)^2] + source, the stable solution."""
    phi = activation_named(activation)
    unbounded = GROWTHS[activation] * gain * gain >= 1
    power = jnp.where(unbounded, 0, gain * gain)

    def change(variance: Array) -> Array:
        mean = _gaussian_mean(lambda z: jnp.square(phi.function(z)), variance)
        return power * mean + source - variance

    def solve(change: Callable[[Array], Array], rest: Array) -> Array:
        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) / 2
            grows = change(jnp.exp(middle)) > 0
            return jnp.where(grows, middle, low), jnp.where(grows, high, middle)

        # The change is positive below the stable solution and negative above it. Halving in ln q
        # is as fast at the critical gain, where repeating the map takes 1/q steps to come near q.
        ends = (jnp.full_like(rest, math.log(v)) for v in (SMALLEST_VARIANCE, LARGEST_VARIANCE))
        low, high = lax.fori_loop(0, NUM_HALVINGS, halve, tuple(ends))
        slope = phi.slope(phi.function(rest))
        at_rest = (change(rest) == 0) & (power * slope * slope <= 1)
        return jnp.where(at_rest, rest, jnp.exp((low + high) / 2))

    def tangent_solve(linear: Callable[[Array], Array], y: Array) -> Array:
        # At the critical gain both sides are 0: the derivative from below is taken.
        derivative = linear(jnp.ones_like(y))
        return y / jnp.where(derivative == 0, 1, derivative)

    solution = lax.custom_root(change, jnp.zeros_like(gain), solve, tangent_solve)
    return jnp.where(unbounded, jnp.inf, solution)


@functools.partial(jnp.vectorize, excluded={0})
def _mean_square_slope(activation: str, variance: Array) -> Array:
    """E[phi'(sqrt(q) z)^2]."""
    phi = activation_named(activation)
    unbounded = jnp.isinf(variance)
    # A ReLU has a slope at any variance but 0.
    finite = jnp.clip(jnp.where(unbounded, 1, variance), min=SMALLEST_VARIANCE)
    mean = _gaussian_mean(lambda z: jnp.square(phi.slope(phi.function(z))), finite)
    return jnp.where(unbounded, GROWTHS[activation], mean)


_jit_variance = jax.jit(_variance, static_argnums=0)
_jit_mean_square_slope = jax.jit(_mean_square_slope, static_argnums=0)


def mean_field_variance(
    activation: str, gain: ArrayLike, input_std: ArrayLike = 0.0, bias_std: ArrayLike = 0.0
) -> Array:
    """Variance of the pre-activations of a wide random network once it is stationary.

        q = g^2 E[phi(sqrt(q) z)^2] + input_std^2 + bias_std^2,    z standard normal

    Args:
        activation: phi, one of `ACTIVATIONS`.
        gain: g; the entries of W are independent N(0, g^2/H).
        input_std: standard deviation of x_t U over the units, the same at every step. A few inputs
            of changing size are not described by their mean.
        bias_std: standard deviation of b over the units.

    Returns:
        q, of the three's common shape: the stable solution, which is 0 for tanh without input up
        to gain 1. inf from that gain on at which phi no longer holds the states back: 1 for the
        identity, sqrt(2) for ReLU and softplus. Differentiable in all three; where it has a kink
        (tanh, gain 1, no input), the derivative is that from below.

    Raises:
        ValueError: an unknown activation, or a gain or standard deviation that is not 0 or more.

    Source: Poole et al., "Exponential expressivity in deep neural networks through transient
    chaos" (2016), equation 3.
    """
    activation_named(activation)
    given = {"gain": gain, "input_std": input_std, "bias_std": bias_std}
    for name, value in given.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} is {value}; give 0 or more")
    dtype = jnp.promote_types(jnp.result_type(gain, input_std, bias_std, float), jnp.float32)
    g, input_std, bias_std = jnp.broadcast_arrays(*(jnp.asarray(v, dtype) for v in given.values()))
    return _jit_variance(activation, g, input_std * input_std + bias_std * bias_std)


def mean_field_chi(
    activation: str, gain: ArrayLike, input_std: ArrayLike = 0.0, bias_std: ArrayLike = 0.0
) -> Array:
    """chi = g^2 E[phi'(sqrt(q) z)^2], by which |dL/ds_t|^2 is multiplied with each step back.

    Arguments, shape, errors as in `mean_field_variance`, which gives q.

    Source: Schoenholz et al., "Deep information propagation" (2017), equation 6.

    >>> from rnn_jax.gradflow import mean_field
    >>> [round(float(mean_field.mean_field_chi("tanh", gain)), 3) for gain in (0.9, 2, 10)]
    [0.81, 1.363, 5.545]
    """
    variance = mean_field_variance(activation, gain, input_std, bias_std)
    g = jnp.broadcast_to(jnp.asarray(gain, variance.dtype), variance.shape)
    return g * g * _jit_mean_square_slope(activation, variance)


def mean_field_slope(
    activation: str, gain: ArrayLike, input_std: ArrayLike = 0.0, bias_std: ArrayLike = 0.0
) -> Prediction:
    """Slope of the gradient in a wide random network, 1/2 ln chi.

    Arguments, shape, errors as in `mean_field_variance`. ReLU's slope is ln(g / sqrt(2)) and the
    identity's ln g whatever q is, so they hold for states that grow without bound as well.
    A network of H units falls short of it by an amount in 1/H: measured over 10 steps of 90 tanh
    networks without input, by 0.005 at gain 2 and 0.008 at gain 5, H = 512.

    Source: Chen, Pennington & Schoenholz, "Dynamical isometry and a mean field theory of RNNs"
    (2018); for tanh without input, Sompolinsky, Crisanti & Sommers (1988).
    """
    return Prediction(
        slope=jnp.log(mean_field_chi(activation, gain, input_std, bias_std)) / 2,
        assumption=(
            "a wide network with independent normal weights, W of standard deviation "
            "gain/sqrt(H), stationary under an input of steady variance, far from the loss"
        ),
        source="Poole et al. 2016; Schoenholz et al. 2017; Chen, Pennington & Schoenholz 2018",
    )
