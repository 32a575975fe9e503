"""Lyapunov exponents: closed forms, known maps and flows, sum rules, derivatives."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from networks import CELLS, B, problem

import rnn_jax
from rnn_jax import gradflow

pytestmark = pytest.mark.usefixtures("x64")

spectrum = jax.jit(
    gradflow.lyapunov_spectrum,
    static_argnums=0,
    static_argnames=("num_exponents", "burn_in", "qr_every"),
)


def map_cell(step, size):
    """A map without input as a cell; its parameters are what the map has."""
    return rnn_jax.Cell(
        init=None,
        initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, size)),
        step=lambda params, state, x: step(params, state),
    )


def no_input(num_steps):
    return jnp.zeros((num_steps, 0))


def network(activation, W, num_steps, start, **options):
    """Exponents of an Elman network without input or bias, from s_0."""
    size = len(W)
    params = rnn_jax.ElmanParams(jnp.zeros((0, size)), jnp.asarray(W), jnp.zeros(size))
    return spectrum(
        rnn_jax.elman(size, activation), params, jnp.asarray(start), no_input(num_steps), **options
    )


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def moduli(W):
    return np.sort(np.log(np.abs(np.linalg.eigvals(W))))[::-1]


# Closed forms


@pytest.mark.parametrize("gain", [0.05, 1.0, 20.0])
def test_orthogonal_network(gain):
    W = gain * orthogonal(np.random.default_rng(0), 5)
    np.testing.assert_allclose(
        network("identity", W, 10_000, np.zeros(5)),
        np.full(5, np.log(gain)),
        rtol=1e-11,
        atol=1e-12,
    )


def test_linear_network_has_the_eigenvalues_of_its_matrix():
    W = np.random.default_rng(1).normal(size=(5, 5))
    assert np.any(np.linalg.eigvals(W).imag)
    exponents = network("identity", W, 10_000, np.zeros(5), burn_in=1000)
    # A pair of complex eigenvalues turns, and what it turned by is spread over the steps.
    np.testing.assert_allclose(exponents, moduli(W), atol=5e-4)
    np.testing.assert_allclose(np.sum(exponents), np.linalg.slogdet(W)[1], rtol=1e-12)


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_float32_keeps_its_digits_over_many_steps(gain):
    params = rnn_jax.ElmanParams(
        *(jnp.asarray(p, jnp.float32) for p in (np.zeros((0, 3)), gain * np.eye(3), np.zeros(3)))
    )
    start, xs = jnp.zeros(3, jnp.float32), jnp.zeros((20_000, 0), jnp.float32)
    exponents = spectrum(rnn_jax.elman(3, "identity"), params, start, xs)
    assert exponents.dtype == jnp.float32
    np.testing.assert_allclose(exponents, np.full(3, np.log(gain)), rtol=1e-5)


def test_tanh_network_at_rest():
    """Below spectral radius 1 the state goes to 0, where phi' = 1."""
    rng = np.random.default_rng(2)
    W = rng.normal(size=(5, 5))
    W *= 0.9 / np.abs(np.linalg.eigvals(W)).max()
    exponents = network("tanh", W, 10_000, rng.normal(size=5), burn_in=500)
    np.testing.assert_allclose(exponents, moduli(W), atol=5e-4)


def test_sum_rule_of_a_tanh_network():
    """sum of the exponents = ln|det W| + time mean of sum_i ln phi'(z_i), on any trajectory."""
    rng = np.random.default_rng(3)
    size, steps, burn_in = 6, 400, 50
    cell = rnn_jax.elman(size)
    params = rnn_jax.ElmanParams(
        0.5 * rng.normal(size=(2, size)), 1.5 * orthogonal(rng, size), 0.3 * rng.normal(size=size)
    )
    params, start, xs = jax.tree.map(
        jnp.asarray, (params, rng.normal(size=size), rng.normal(size=(steps, 2)))
    )
    states = rnn_jax.plain_unroll(cell, params, start, xs)
    U, W, b = map(np.asarray, params)
    z = np.asarray(xs) @ U + np.concatenate([start[None], states[:-1]]) @ W + b
    slopes = -2 * np.log(np.cosh(z[burn_in:]))
    exponents = spectrum(cell, params, start, xs, burn_in=burn_in)
    wanted = np.linalg.slogdet(W)[1] + slopes.sum(axis=1).mean()
    np.testing.assert_allclose(np.sum(exponents), wanted, rtol=1e-11)
    # One unit more, and the rule would say something else.
    assert abs(np.sum(exponents[:-1]) - wanted) > 0.1


# Known maps and flows


def test_logistic_map_at_four():
    cell = map_cell(lambda r, s: r * s * (1 - s), 1)
    exponents = spectrum(cell, 4.0, jnp.array([0.3]), no_input(20_000), burn_in=100)
    np.testing.assert_allclose(exponents, [np.log(2)], atol=1e-3)


@pytest.mark.parametrize("slope", [1.5, 1.9999])
def test_tent_map(slope):
    """Its slope is the same everywhere. At 2 itself binary numbers fall to 0 within 60 steps."""
    cell = map_cell(lambda mu, s: mu * jnp.minimum(s, 1 - s), 1)
    exponents = spectrum(cell, slope, jnp.array([0.3]), no_input(1000))
    np.testing.assert_allclose(exponents, [np.log(slope)], rtol=1e-12)


def test_henon_map():
    def step(params, state):
        a, b = params
        x, y = state[..., 0], state[..., 1]
        return jnp.stack([1 - a * x * x + y, b * x], axis=-1)

    exponents = spectrum(
        map_cell(step, 2), (1.4, 0.3), jnp.zeros(2), no_input(100_000), burn_in=100
    )
    np.testing.assert_allclose(exponents, [0.4192, -1.6232], atol=2e-3)
    np.testing.assert_allclose(np.sum(exponents), np.log(0.3), rtol=1e-12)


def test_lorenz_flow():
    dt = 0.01

    def velocity(s):
        x, y, z = s[..., 0], s[..., 1], s[..., 2]
        return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=-1)

    def runge_kutta(params, s):
        k1 = velocity(s)
        k2 = velocity(s + dt / 2 * k1)
        k3 = velocity(s + dt / 2 * k2)
        k4 = velocity(s + dt * k3)
        return s + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    start = jnp.array([1.0, 1.0, 20.0])
    exponents = spectrum(map_cell(runge_kutta, 3), None, start, no_input(60_000), burn_in=3000)
    per_time = exponents / dt
    np.testing.assert_allclose(per_time, [0.9056, 0, -14.572], atol=0.02)
    np.testing.assert_allclose(np.sum(per_time), -(10 + 1 + 8 / 3), rtol=1e-5)


# Counts


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_the_first_few_are_the_first_of_all(name):
    cell = CELLS[name]
    params, state, xs = problem(cell, (), num_steps=200)
    every = spectrum(cell, params, state, xs, burn_in=20)
    assert len(every) == {"elman": 4, "lstm": 8}[name]
    assert np.all(np.diff(every) <= 0)
    few = spectrum(cell, params, state, xs, num_exponents=2, burn_in=20)
    np.testing.assert_allclose(few, every[:2], rtol=1e-9)


@pytest.mark.parametrize("qr_every", [2, 7, 200])
def test_growth_between_decompositions_is_the_same(qr_every):
    """Blocks of any length, also where the last or the burn-in does not fill one."""
    rng = np.random.default_rng(4)
    W = orthogonal(rng, 4) * np.array([1.02, 1.0, 0.98, 0.96])
    start = rng.normal(size=4)
    each, some = (network("tanh", W, 200, start, burn_in=33, qr_every=n) for n in (1, qr_every))
    np.testing.assert_allclose(some, each, rtol=1e-9)


def test_burn_in_drops_the_first_steps():
    """A leading stretch of strong growth is seen without a burn-in and not after it."""
    cell = map_cell(lambda params, s: s, 1)
    cell = cell._replace(step=lambda params, s, x: s * jnp.where(x < 10, 3.0, 0.5))
    xs = jnp.arange(50.0)[:, None]
    whole = (10 * np.log(3) + 40 * np.log(0.5)) / 50
    for burn_in, wanted in ((0, whole), (10, np.log(0.5)), (49, np.log(0.5))):
        got = spectrum(cell, None, jnp.ones(1), xs, burn_in=burn_in)
        np.testing.assert_allclose(got, [wanted], rtol=1e-12)


@pytest.mark.parametrize("batch_shape", [(B,), (2, B)])
def test_batch_is_averaged(batch_shape):
    cell = CELLS["lstm"]
    params, state, xs = jax.tree.map(np.asarray, problem(cell, batch_shape))
    alone = [
        spectrum(cell, params, jax.tree.map(lambda s, i=i: s[i], state), xs[(slice(None), *i)])
        for i in np.ndindex(*batch_shape)
    ]
    np.testing.assert_allclose(
        spectrum(cell, params, state, xs), np.mean(alone, axis=0), rtol=1e-11
    )


# Derivatives


@pytest.mark.parametrize(
    "name", ["elman", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "user"))]
)
def test_derivatives_equal_central_differences(name):
    """By every parameter, s_0 and xs, of a sum in which no two exponents count alike."""
    cell = CELLS[name]
    given = problem(cell, (), num_steps=5)
    flat, unravel = ravel_pytree(given)

    def value(flat):
        exponents = gradflow.lyapunov_spectrum(
            cell, *unravel(flat), num_exponents=3, burn_in=1, qr_every=2
        )
        return jnp.dot(exponents, jnp.array([1.0, -0.7, 0.4]))

    gradient = jax.jit(jax.grad(value))(flat)
    step, run = 1e-5, jax.jit(value)
    differences = [
        (run(flat + row) - run(flat - row)) / (2 * step) for row in step * np.eye(flat.size)
    ]
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


def test_exponents_of_a_free_run():
    """A closed loop is a cell like any other."""
    model = rnn_jax.sequence_model(rnn_jax.elman(4), output_size=1)
    params = model.init(jax.random.key(0), 1)
    start = jnp.asarray(np.random.default_rng(0).normal(size=4))
    cell = rnn_jax.closed_loop(model)
    exponents = spectrum(cell, params, start, no_input(50))
    matrices = networks.step_jacobians(cell, params, start, no_input(50))
    wanted = np.linalg.slogdet(np.asarray(matrices))[1].mean()
    np.testing.assert_allclose(np.sum(exponents), wanted, rtol=1e-6)
