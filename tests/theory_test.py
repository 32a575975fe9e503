"""Predictions against closed forms, independent integration and gradients measured in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from scipy import integrate, optimize
from scipy.special import expit

import rnn_jax
from rnn_jax.cells import ACTIVATIONS
from rnn_jax.gradflow import mean_field, theory

pytestmark = pytest.mark.usefixtures("x64")

PHI = {
    "identity": (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": (expit, lambda z: expit(z) * expit(-z)),
    "softplus": (lambda z: np.logaddexp(0, z), expit),
    "tanh": (np.tanh, lambda z: 4 * expit(2 * z) * expit(-2 * z)),
}


def gaussian_mean(function, variance):
    """E[f(sqrt(variance) z)] by adaptive quadrature, cut where an activation bends."""
    std = np.sqrt(variance)
    cuts = sorted({0.0, *(sign * min(8, x / std) for x in (1, 5, 25) for sign in (-1, 1))})
    ends = [-12.0, *cuts, 12.0]

    def density(z):
        return function(std * z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    return sum(
        integrate.quad(density, low, high, epsabs=1e-15, epsrel=1e-13)[0]
        for low, high in itertools.pairwise(ends)
    )


def spectral_radius(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


def measured_slope(rng, activation, size, gain, input_std=0.0, bias_std=0.0):
    """Mean slope of ln|dL/ds_t| over ten steps of one random network, two runs of it."""
    num_steps, burn_in, runs = 10, 25, 2
    phi, derivative = PHI[activation]
    W = gain / np.sqrt(size) * rng.standard_normal((size, size))
    b = bias_std * rng.standard_normal(size)
    # Near 0, where a network without input may rest, but off it.
    state, slopes = 0.1 * rng.standard_normal((runs, size)), []
    for _ in range(burn_in + num_steps):
        # einsum runs on one thread: products this small only wait for each other on several.
        z = np.einsum("bi,ij->bj", state, W) + b + input_std * rng.standard_normal((runs, size))
        state = phi(z)
        slopes.append(derivative(z))
    adjoint = rng.standard_normal((runs, size))
    start = np.log(np.linalg.norm(adjoint, axis=1))
    for slope in reversed(slopes[-num_steps:]):
        adjoint = np.einsum("bj,ij->bi", adjoint * slope, W)
    return np.mean(np.log(np.linalg.norm(adjoint, axis=1)) - start) / num_steps


def test_the_published_figures_of_random_tanh_networks():
    gains = jnp.array([0.9, 1.1, 2, 3, 5, 10])
    chi = mean_field.mean_field_chi("tanh", gains)
    np.testing.assert_allclose(chi, [0.81, 1.0102, 1.3627, 1.8599, 2.9004, 5.5449], atol=5.1e-5)
    slope = mean_field.mean_field_slope("tanh", gains).slope
    exponents = [-0.1054, 0.0051, 0.1547, 0.3103, 0.5324, 0.8564]
    np.testing.assert_allclose(slope, exponents, atol=5.1e-5)


@pytest.mark.parametrize(
    ("activation", "gain", "input_std", "bias_std"),
    [
        ("tanh", 0.9, 0.3, 0.0),
        ("tanh", 1.05, 0.0, 0.0),
        ("tanh", 10.0, 0.0, 0.5),
        ("tanh", 300.0, 1.0, 0.0),
        ("sigmoid", 0.5, 0.0, 0.0),
        ("sigmoid", 6.0, 1.0, 2.0),
        ("softplus", 0.5, 0.0, 0.0),
        ("softplus", 1.3, 0.7, 0.2),
        slow("relu", 1.2, 0.6, 0.8),
        ("identity", 0.8, 2.0, 0.1),
    ],
)
def test_variance_and_chi_equal_adaptive_quadrature(activation, gain, input_std, bias_std):
    phi, derivative = PHI[activation]

    def change(q):
        return gain**2 * gaussian_mean(lambda z: phi(z) ** 2, q) + input_std**2 + bias_std**2 - q

    q = optimize.brentq(change, 1e-3, 1e6, xtol=1e-13, rtol=1e-14)
    chi = gain**2 * gaussian_mean(lambda z: derivative(z) ** 2, q)
    given = (activation, gain, input_std, bias_std)
    np.testing.assert_allclose(mean_field.mean_field_variance(*given), q, rtol=1e-11)
    np.testing.assert_allclose(mean_field.mean_field_chi(*given), chi, rtol=1e-11)
    np.testing.assert_allclose(
        mean_field.mean_field_slope(*given).slope, np.log(chi) / 2, atol=1e-11
    )


def test_the_critical_gain_of_tanh():
    gains = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_array_equal(mean_field.mean_field_variance("tanh", gains), 0)
    np.testing.assert_allclose(mean_field.mean_field_chi("tanh", gains), [0, 0.25, 1], rtol=1e-14)
    excess = np.array([1e-9, 1e-6, 1e-4])
    # E tanh(sqrt(q) z)^2 = q - 2 q^2 + 17/3 q^3 - ..., solved for q to second order.
    first = (1 - (1 + excess) ** -2) / 2
    q = first + 17 / 6 * first**2
    variance = mean_field.mean_field_variance("tanh", jnp.asarray(1 + excess))
    # Two numbers agree in all but 1e-9 of their size there: seven digits of the least are left.
    np.testing.assert_allclose(variance, q, rtol=5e-7)


def test_activations_that_do_not_saturate():
    gains = jnp.array([0.5, 1.4, 1.5, 20.0])
    for activation, limit in (("relu", np.sqrt(2)), ("identity", 1.0)):
        slope = mean_field.mean_field_slope(activation, gains, 0.3).slope
        np.testing.assert_allclose(slope, np.log(gains / limit), atol=1e-14)
        without_input = mean_field.mean_field_slope(activation, gains).slope
        np.testing.assert_allclose(without_input, slope, atol=1e-14)
        variance = np.asarray(mean_field.mean_field_variance(activation, gains, 0.3))
        kept = np.asarray(gains) < limit
        wanted = 0.09 / (1 - (np.asarray(gains)[kept] / limit) ** 2)
        np.testing.assert_allclose(variance[kept], wanted, rtol=1e-12)
        np.testing.assert_array_equal(variance[~kept], np.inf)
    assert mean_field.mean_field_variance("softplus", 1.5) == np.inf
    np.testing.assert_allclose(mean_field.mean_field_chi("softplus", 1.5), 1.125, rtol=1e-14)


def test_no_gradient_without_weights():
    assert mean_field.mean_field_slope("sigmoid", 0.0, 1.0).slope == -np.inf
    np.testing.assert_allclose(
        mean_field.mean_field_variance("tanh", 0.0, 0.3, 0.4), 0.25, rtol=1e-13
    )


@pytest.mark.parametrize("activation", [slow("relu"), "sigmoid", "tanh"])
def test_float32_agrees_with_float64(activation):
    gains = np.array([0.3, 0.9, 1.0, 1.2, 10.0, 1e3])
    wide = mean_field.mean_field_slope(activation, jnp.asarray(gains), 0.2).slope
    with jax.enable_x64(False):
        narrow = mean_field.mean_field_slope(activation, jnp.asarray(gains), 0.2).slope
        assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=2e-6, rtol=1e-6)


@pytest.mark.slow
def test_mean_field_under_vmap_jit_and_grad():
    def slope(gain, input_std, activation="tanh"):
        return mean_field.mean_field_slope(activation, gain, input_std).slope

    gains, stds = jnp.array([0.7, 1.5, 4.0]), jnp.array([0.0, 0.5, 2.0])
    table = jax.jit(jax.vmap(jax.vmap(slope, (None, 0)), (0, None)))(gains, stds)
    one_by_one = [[float(slope(float(g), float(s))) for s in stds] for g in gains]
    np.testing.assert_allclose(table, one_by_one, rtol=1e-12)
    np.testing.assert_allclose(slope(gains[:, None], stds), table, rtol=1e-12)

    step = 1e-5
    slopes = jax.jit(slope, static_argnums=2)
    gradient = jax.jit(jax.grad(slope, (0, 1)), static_argnums=2)
    for activation, gain, std in itertools.product(("tanh", "sigmoid"), (0.8, 2.0), (0.0, 0.4)):
        got = gradient(gain, std, activation)
        by_gain = slopes(gain + step, std, activation) - slopes(gain - step, std, activation)
        np.testing.assert_allclose(got[0], by_gain / (2 * step), atol=1e-8)
        # The slope is even in the standard deviation, whose negative is an error outside of jit.
        by_std = slopes(gain, std + step, activation) - slopes(gain, std - step, activation)
        np.testing.assert_allclose(got[1], by_std / (2 * step), atol=1e-8)
    # The kink: 1 from below, and 0 from above, where the variance makes up for the gain.
    np.testing.assert_allclose(gradient(1.0, 0.0, "tanh")[0], 1, rtol=1e-12)
    np.testing.assert_allclose(gradient(1 + 1e-5, 0.0, "tanh")[0], 0, atol=1e-4)


@pytest.mark.parametrize(
    ("activation", "gain", "input_std", "bias_std"),
    [
        ("tanh", 0.9, 0.0, 0.0),
        ("tanh", 2.0, 0.0, 0.0),
        ("tanh", 5.0, 0.0, 0.0),
        ("tanh", 2.0, 1.0, 0.0),
        ("tanh", 3.0, 0.5, 1.0),
        slow("relu", 1.0, 1.0, 0.0),
        ("sigmoid", 4.0, 1.0, 0.5),
    ],
)
def test_wide_random_networks_have_the_predicted_slope(activation, gain, input_std, bias_std):
    rng, networks = np.random.default_rng(0), 30
    means, errors = [], []
    for size in (256, 512):
        slopes = [
            measured_slope(rng, activation, size, gain, input_std, bias_std)
            for _ in range(networks)
        ]
        means.append(np.mean(slopes))
        errors.append(np.std(slopes, ddof=1) / np.sqrt(networks))
    # The theory is that of infinite width, and finite networks fall short by an amount in 1/H.
    infinite = 2 * means[1] - means[0]
    error = np.hypot(2 * errors[1], errors[0])
    predicted = mean_field.mean_field_slope(activation, gain, input_std, bias_std).slope
    assert error < 0.01
    assert abs(infinite - predicted) < 3 * error


def test_gradient_at_rest_falls_by_the_spectral_radius():
    rng = np.random.default_rng(1)
    W = rng.standard_normal((20, 20))
    W *= 0.9 / spectral_radius(W)
    state, adjoint, states = rng.standard_normal(20), rng.standard_normal(20), []
    for _ in range(4000):
        state = np.tanh(state @ W)
        states.append(state)
    log_norm = 0.0
    # The last state is as far as the gradient ever was from rest; the start is left out.
    for state in reversed(states[200:]):
        adjoint = W @ (adjoint * (1 - state**2))
        log_norm += np.log(np.linalg.norm(adjoint))
        adjoint /= np.linalg.norm(adjoint)
    predicted = theory.fixed_point_slope(jnp.asarray(W)).slope
    np.testing.assert_allclose(predicted, np.log(0.9), rtol=1e-12)
    np.testing.assert_allclose(log_norm / 3800, predicted, atol=2e-3)


def test_fixed_point_slope_away_from_zero():
    rng = np.random.default_rng(2)
    W, slopes = rng.standard_normal((3, 6, 6)), rng.uniform(0.1, 1, 6)
    wanted = [np.log(spectral_radius(np.diag(slopes) @ w.T)) for w in W]
    got = jax.jit(lambda W, s: theory.fixed_point_slope(W, s).slope)(W, slopes)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    np.testing.assert_allclose(
        theory.fixed_point_slope(W, 0.5).slope,
        [np.log(spectral_radius(w) / 2) for w in W],
        rtol=1e-12,
    )


def test_fixed_point_of_an_elman_cell():
    rng = np.random.default_rng(3)
    W, U = 0.3 * rng.standard_normal((8, 8)), rng.standard_normal((2, 8))
    b, x = rng.standard_normal(8), rng.standard_normal(2)
    state = np.zeros(8)
    for _ in range(3000):
        state = np.tanh(x @ U + state @ W + b)
    params = rnn_jax.ElmanParams(*map(jnp.asarray, (U, W, b)))
    found = theory.fixed_point(rnn_jax.elman(8), params, jnp.asarray(x))
    assert found.converged
    np.testing.assert_allclose(found.state, state, atol=1e-14)
    wanted = np.log(spectral_radius(np.diag(1 - state**2) @ W.T))
    np.testing.assert_allclose(found.slope, wanted, rtol=1e-12)
    np.testing.assert_allclose(
        theory.fixed_point_slope(params.W, 1 - found.state**2).slope, wanted, rtol=1e-12
    )


def test_fixed_point_of_a_cell_with_two_leaves():
    cell = rnn_jax.lstm(3)
    params = cell.init(jax.random.key(4), 2)
    params = jax.tree.map(lambda p: p.astype(float), params)
    x = jnp.array([0.3, -0.7])
    found = jax.jit(lambda p, x: theory.fixed_point(cell, p, x))(params, x)
    assert found.converged

    leaves = np.concatenate([found.state.c, found.state.h])
    columns = []
    for push in 1e-5 * np.eye(6):
        ends = [
            np.concatenate(cell.step(params, rnn_jax.LSTMState(s[:3], s[3:]), x))
            for s in (leaves + push, leaves - push)
        ]
        columns.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(found.slope, np.log(spectral_radius(columns)), atol=1e-8)


def test_fixed_point_says_when_it_found_none():
    size = 30
    W = 4 / np.sqrt(size) * np.random.default_rng(5).standard_normal((size, size))
    params = rnn_jax.ElmanParams(jnp.ones((1, size)), jnp.asarray(W), jnp.zeros(size))
    found = theory.fixed_point(rnn_jax.elman(size), params, jnp.ones(1), max_steps=500)
    assert not found.converged
    assert np.isnan(found.slope)
    assert found.residual > 0.01
    # Without input 0 is a fixed point, and an unstable one.
    at_zero = theory.fixed_point(rnn_jax.elman(size), params, jnp.zeros(1))
    assert at_zero.converged
    np.testing.assert_allclose(at_zero.slope, np.log(spectral_radius(W)), rtol=1e-12)


def test_largest_slopes_and_growths_are_those_of_the_activations():
    assert theory.LARGEST_SLOPES.keys() == mean_field.GROWTHS.keys() == ACTIVATIONS.keys()
    z = jnp.linspace(-40, 40, 8001)
    for name, (function, _) in ACTIVATIONS.items():
        derivative = jax.vmap(jax.grad(function))(z)
        np.testing.assert_allclose(derivative.max(), theory.LARGEST_SLOPES[name], rtol=1e-12)
        growth = gaussian_mean(lambda z, name=name: PHI[name][1](z) ** 2, 1e12)
        np.testing.assert_allclose(growth, mean_field.GROWTHS[name], atol=1e-5)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_no_trajectory_leaves_the_singular_value_bounds(activation):
    rng = np.random.default_rng(6)
    W = rng.standard_normal((5, 5))
    bounds = theory.singular_value_bounds(jnp.asarray(W), activation)
    gamma = theory.LARGEST_SLOPES[activation]
    values = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(bounds.largest, values[0], rtol=1e-12)
    np.testing.assert_allclose(bounds.upper_slope, np.log(gamma * values[0]), rtol=1e-12)
    lower = np.log(values[-1]) if activation == "identity" else -np.inf
    np.testing.assert_allclose(bounds.lower_slope, lower, rtol=1e-12)
    for z in rng.standard_normal((50, 5)):
        adjoint = rng.standard_normal(5)
        back = W @ (adjoint * PHI[activation][1](z))
        factor = np.linalg.norm(back) / np.linalg.norm(adjoint)
        assert np.exp(bounds.lower_slope) <= factor <= np.exp(bounds.upper_slope)


def test_when_gradients_must_vanish_and_when_they_can_explode():
    orthogonal = np.linalg.qr(np.random.default_rng(7).standard_normal((6, 6)))[0]
    scales = np.array([0.99, 1.01, 3.99, 4.01])
    W = jnp.asarray(scales[:, None, None] * orthogonal)
    for activation, vanishing in (
        ("tanh", [True, False, False, False]),
        ("sigmoid", [True, True, True, False]),
    ):
        bounds = theory.singular_value_bounds(W, activation)
        np.testing.assert_array_equal(bounds.vanishing_sufficient, vanishing)
        np.testing.assert_array_equal(bounds.exploding_possible, np.logical_not(vanishing))
    # An orthogonal matrix leaves the identity no room: both bounds are ln g.
    bounds = theory.singular_value_bounds(W, "identity")
    np.testing.assert_allclose(bounds.upper_slope, np.log(scales), rtol=1e-10)
    np.testing.assert_allclose(bounds.lower_slope, np.log(scales), rtol=1e-10)


def test_exponents_of_gaussian_products():
    np.testing.assert_allclose(theory.newman_exponents(2), [-0.2886, -0.9818], atol=5e-5)
    exponents = theory.newman_exponents(16)
    assert exponents.shape == (16,)
    np.testing.assert_allclose(exponents[jnp.array([0, -1])], [-0.0319, -2.0215], atol=5e-5)
    with jax.enable_x64(False):
        np.testing.assert_allclose(theory.newman_exponents(16), exponents, atol=2e-6)

    rng, size, num_steps = np.random.default_rng(8), 3, 5000
    frame, logs = np.eye(size), []
    for factor in rng.standard_normal((num_steps, size, size)) / np.sqrt(size):
        frame, triangle = np.linalg.qr(factor @ frame)
        logs.append(np.log(np.abs(np.diag(triangle))))
    errors = np.std(logs, axis=0) / np.sqrt(num_steps)
    assert np.all(np.abs(np.mean(logs, axis=0) - theory.newman_exponents(size)) < 3 * errors)


def test_lengths_over_which_a_gradient_can_be_trusted():
    slopes = np.array([-2.0, -0.5493, -0.05, -1e-4])
    lengths = np.asarray(theory.trainable_length(slopes, 0.01))
    assert np.all(np.exp(slopes * lengths) >= 0.01)
    assert np.all(np.exp(slopes * (lengths + 1)) < 0.01)
    np.testing.assert_array_equal(theory.stable_length(-slopes, 0.01), lengths)
    # PyTorch's default recurrent matrix, linearized, falls below a thousandth after 12 steps.
    assert theory.trainable_length(np.log(1 / np.sqrt(3))) == 12
    np.testing.assert_array_equal(theory.trainable_length(np.array([0.0, 0.3])), np.inf)
    np.testing.assert_array_equal(theory.stable_length(np.array([0.0, -0.3])), np.inf)
    assert theory.trainable_length(-np.inf) == 0
    assert np.isnan(theory.trainable_length(np.nan))


def test_a_whole_length_survives_rounding():
    wanted = np.arange(1, 500)
    for wide in (False, True):
        with jax.enable_x64(wide):
            slopes = jnp.log(1e-3) / jnp.asarray(wanted, float)
            np.testing.assert_array_equal(theory.trainable_length(slopes), wanted)


def test_forget_bias_gives_the_memory_asked_for():
    memory = np.array([1.5, 2.0, 100.0, 1e4])
    bias = np.asarray(theory.forget_bias_for(memory))
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 1 - 1 / memory, rtol=1e-12)
    assert theory.forget_bias_for(2) == 0
    # A cell that nothing enters keeps (1 - 1/tau)^k of its memory after k steps.
    cell = rnn_jax.lstm(1, forget_bias=float(theory.forget_bias_for(100)))
    params = jax.tree.map(lambda p: p.astype(float), cell.init(jax.random.key(0), 1))
    params = params._replace(U=0 * params.U, W=0 * params.W)
    state = rnn_jax.LSTMState(c=jnp.ones(1), h=jnp.zeros(1))
    states = rnn_jax.unroll(cell, params, state, jnp.zeros((100, 1)))
    np.testing.assert_allclose(states.c[-1, 0], 0.99**100, rtol=1e-5)


def test_sensitivity_of_a_scalar_recurrence():
    a = np.array([0.9, 0.99, 0.999])
    result = theory.scalar_sensitivity(a)
    np.testing.assert_allclose(result.sensitivity, [263.9, 2.513e5, 2.501e8], rtol=2e-4)
    for a in (-0.7, 0.0, 0.95):
        # h <- a h + x and v <- a v + h, v = dh/da: their second moments, step by step.
        hh = hv = vv = 0.0
        for _ in range(1500):
            hh, hv, vv = a * a * hh + 1, a * (a * hv + hh), a * a * vv + 2 * a * hv + hh
        result = theory.scalar_sensitivity(a)
        np.testing.assert_allclose((result.state, result.sensitivity), (hh, vv), rtol=1e-12)
    unstable = theory.scalar_sensitivity(np.array([-1.0, 1.0, 1.5]))
    np.testing.assert_array_equal(jnp.stack(unstable), np.inf)


def test_transient_growth_of_two_units():
    a, c, largest = 0.9, 3.0, 100
    k = np.arange(largest + 1)
    # W^k = [[a^k, k a^(k-1) c], [0, a^k]]: sigma^2 solves x^2 - (sum of squares) x + det^2 = 0.
    squares, determinant = 2 * a ** (2 * k) + (k * a ** (k - 1) * c) ** 2, a ** (2 * k)
    norms = np.sqrt((squares + np.sqrt(squares**2 - 4 * determinant**2)) / 2)
    growth = theory.transient_growth(jnp.array([[a, c], [0, a]]), largest)
    assert growth.peak_step == np.argmax(norms)
    assert 5 < growth.peak_step < 15
    np.testing.assert_allclose(growth.peak, np.log(norms.max()), rtol=1e-12)
    np.testing.assert_allclose(growth.initial_slope, np.log(norms[1]), rtol=1e-12)
    np.testing.assert_allclose(growth.asymptotic_slope, np.log(a), rtol=1e-7)


def test_transient_growth_of_matrices_that_leave_the_range_of_floats():
    orthogonal = np.linalg.qr(np.random.default_rng(9).standard_normal((4, 4)))[0]
    nilpotent = 5 * np.eye(4, k=3)
    W = jnp.asarray(np.stack([3 * orthogonal, 0.3 * orthogonal, nilpotent]), jnp.float32)
    growth = theory.transient_growth(W, 300)
    np.testing.assert_allclose(growth.peak, [300 * np.log(3), 0, np.log(5)], rtol=1e-5)
    np.testing.assert_array_equal(growth.peak_step, [300, 0, 1])
    np.testing.assert_allclose(growth.initial_slope, np.log([3, 0.3, 5]), rtol=1e-5)
    np.testing.assert_allclose(
        growth.asymptotic_slope, [np.log(3), np.log(0.3), -np.inf], rtol=1e-5
    )
    # Around this cycle of units a signal grows by 1e30 twice running, and then falls as far.
    cycle = jnp.asarray(np.roll(np.diag([1e-30, 1e-30, 1e30, 1e30]), 1, axis=1), jnp.float32)
    growth = theory.transient_growth(cycle, 400)
    np.testing.assert_allclose(growth.peak, 60 * np.log(10), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_field.mean_field_slope("gelu", 1.0), "'gelu'.*tanh"),
        (lambda: mean_field.mean_field_slope("tanh", -0.1), "gain is -0.1"),
        (lambda: mean_field.mean_field_chi("tanh", np.nan), "gain is nan"),
        (lambda: mean_field.mean_field_variance("tanh", 1.0, -1.0), "input_std is -1.0"),
        (lambda: mean_field.mean_field_variance("tanh", 1.0, 0.0, -2.0), "bias_std is -2.0"),
        (lambda: theory.fixed_point_slope(jnp.ones((2, 3))), r"\(2, 3\)"),
        (lambda: theory.fixed_point_slope(jnp.ones((2, 2)), jnp.ones(3)), r"\(3,\).*\(2, 2\)"),
        (lambda: theory.singular_value_bounds(jnp.ones(3)), r"\(3,\)"),
        (lambda: theory.singular_value_bounds(jnp.ones((2, 2)), "elu"), "'elu'.*softplus"),
        (lambda: theory.transient_growth(jnp.ones((2, 3)), 5), r"\(2, 3\)"),
        (lambda: theory.transient_growth(jnp.ones((2, 2)), 0), "largest_power is 0"),
        (lambda: theory.newman_exponents(0), "size is 0"),
        (lambda: theory.trainable_length(-0.1, 1.0), "survival is 1.0"),
        (lambda: theory.stable_length(0.1, 0.0), "survival is 0.0"),
        (lambda: theory.forget_bias_for(1.0), "memory_time is 1.0"),
        (lambda: theory.fixed_point(rnn_jax.elman(2), None, jnp.ones((1, 1))), r"\(1, 1\)"),
    ],
)
def test_errors_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
