"""ln|dL/ds_t| in float32, thousands of nats outside float32, against float64 by hand and mpmath.

Asserted errors are about three times those measured; all lie far below the 5e-3 + 1e-4 |log| that
the measurements need.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_scaled

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import LastStep

T, H = 10_000, 8
SLOPES = [-3.0, -1.0, -0.1, 0.0, 0.5, 3.0]
PLAIN = rnn_jax.elman(H, "identity")


def orthogonal(rng, size=H):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def linear(W):
    """An identity cell without input, whose states are 0 and whose Jacobians are W^T; float32."""
    W = jnp.asarray(W, jnp.float32)
    return rnn_jax.ElmanParams(jnp.zeros((1, H), jnp.float32), W, jnp.zeros(H, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def with_weights(cell, params, xs, weights):
    """L_t = weights_t . s_t, weights `[T, H]`, one sequence from the zero state."""

    def losses(states):
        return jnp.sum(weights * states, axis=-1)

    return gradflow.state_gradients(cell, params, cell.initial_state(params), xs, losses)


@functools.partial(jax.jit, static_argnums=0)
def with_last_step(cell, params, xs, weights):
    last = LastStep(lambda state: jnp.sum(weights * state, axis=-1))
    return gradflow.state_gradients(cell, params, cell.initial_state(params), xs, last)


def wanted(slopes, W, immediate):
    """By hand, from the same float32 weights."""
    slopes, immediate = (np.asarray(a, np.float64)[:, None] for a in (slopes, immediate))
    return reference_scaled.adjoints(slopes, np.asarray(W, np.float64), immediate).logs[:, 0]


def only_last(row):
    return np.concatenate([np.zeros((T - 1, H), row.dtype), row[None]])


def loud_and_quiet(rng, num_steps=T):
    """e_t of sizes from 1e-30 to 1e30, each step's its own."""
    sizes = 10 ** rng.uniform(-30, 30, size=(num_steps, 1))
    return np.asarray(sizes * rng.normal(size=(num_steps, H)), np.float32)


def assert_close(logs, wanted, rtol, atol):
    assert logs.dtype == jnp.float32
    assert np.all(np.isfinite(logs))
    np.testing.assert_allclose(logs, wanted, rtol=rtol, atol=atol)


XS = np.zeros((T, 1), np.float32)
LINEAR = {
    "orthogonal": lambda rng, slope: np.exp(slope) * orthogonal(rng),
    "gaussian": lambda rng, slope: with_radius(rng.normal(size=(H, H)), np.exp(slope)),
}


def with_radius(W, radius):
    return W * (radius / np.abs(np.linalg.eigvals(W)).max())


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("slope", SLOPES)
def test_linear_network_with_a_loss_at_the_last_step(kind, slope):
    rng = np.random.default_rng(1)
    params = linear(LINEAR[kind](rng, slope))
    row = np.asarray(rng.normal(size=H), np.float32)
    logs = with_last_step(PLAIN, params, XS, row)
    assert_close(logs, wanted(np.ones((T, H)), params.W, only_last(row)), rtol=4e-7, atol=2e-5)
    np.testing.assert_allclose((logs[-1] - logs[0]) / (T - 1), -slope, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("slope", SLOPES)
def test_orthogonal_network_falls_on_a_line(slope):
    rng = np.random.default_rng(2)
    row = np.asarray(rng.normal(size=H), np.float32)
    logs = with_last_step(PLAIN, linear(np.exp(slope) * orthogonal(rng)), XS, row)
    line = np.log(np.linalg.norm(row)) + slope * np.arange(T - 1, -1, -1)
    # float32's W is not quite orthogonal, which adds up over the steps.
    np.testing.assert_allclose(logs, line, rtol=4e-7, atol=2.5e-4)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("slope", SLOPES)
def test_losses_of_very_different_size_at_every_step(kind, slope):
    rng = np.random.default_rng(3)
    params, weights = linear(LINEAR[kind](rng, slope)), loud_and_quiet(rng)
    logs = with_weights(PLAIN, params, XS, weights)
    assert_close(logs, wanted(np.ones((T, H)), params.W, weights), rtol=4e-7, atol=1.4e-3)


@pytest.mark.parametrize(
    ("slope", "bias", "drive"), [(-3, 3.0, 0.3), (-1, 1.75, 0.3), (-0.1, 0.0, 0.2)]
)
@pytest.mark.parametrize("losses", ["last", "every"])
def test_saturating_tanh_network(slope, bias, drive, losses):
    """float64 runs forward by itself: the network forgets, so rounding does not add up."""
    rng = np.random.default_rng(4)
    cell = rnn_jax.elman(H)
    params = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32),
        rnn_jax.ElmanParams(
            drive * rng.normal(size=(1, H)), orthogonal(rng), bias * rng.choice([-1, 1], H)
        ),
    )
    xs = np.asarray(rng.normal(size=(T, 1)), np.float32)
    U, W, b = (np.asarray(p, np.float64) for p in params)
    s, slopes = np.zeros(H), []
    for x in xs.astype(np.float64):
        z = x @ U + s @ W + b
        s = np.tanh(z)
        slopes.append(np.cosh(z) ** -2)
    if losses == "last":
        row = np.asarray(rng.normal(size=H), np.float32)
        logs, weights = with_last_step(cell, params, xs, row), only_last(row)
        np.testing.assert_allclose((logs[-1] - logs[0]) / (T - 1), -slope, rtol=0.2)
    else:
        weights = loud_and_quiet(rng)
        logs = with_weights(cell, params, xs, weights)
    assert_close(logs, wanted(slopes, W, weights), rtol=1e-5, atol=1.2e-3)


@pytest.mark.parametrize("slope", SLOPES)
def test_against_forty_digits(slope):
    rng = np.random.default_rng(5)
    params = linear(LINEAR["gaussian"](rng, slope))
    steps = 300
    weights = loud_and_quiet(rng, steps)
    logs = with_weights(PLAIN, params, XS[:steps], weights)
    want = reference_scaled.mp_log_adjoints(np.ones((steps, H)), np.asarray(params.W), weights)
    assert_close(logs, want, rtol=4e-7, atol=1e-5)
    # The other reference of this file is held to the same.
    by_hand = wanted(np.ones((steps, H)), params.W, weights)
    np.testing.assert_allclose(by_hand, want, rtol=1e-13, atol=1e-12)


def test_chaotic_tanh_network():
    """Where rounding of the states is itself amplified, float64 follows float32's states."""
    rng = np.random.default_rng(6)
    size, gain = 32, 3.0
    cell = rnn_jax.elman(size)
    params = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32),
        rnn_jax.ElmanParams(
            np.ones((1, size)),
            gain / np.sqrt(size) * rng.normal(size=(size, size)),
            np.zeros(size),
        ),
    )
    xs = np.asarray(rng.normal(size=(T, 1)), np.float32)
    row = np.asarray(rng.normal(size=size), np.float32)
    logs = with_last_step(cell, params, xs, row)
    states = jax.jit(rnn_jax.unroll, static_argnums=0)(cell, params, jnp.zeros(size), xs)
    U, W, _ = (np.asarray(p, np.float64) for p in params)
    previous = np.concatenate([np.zeros((1, size)), states[:-1]])
    slopes = np.cosh(xs @ U + previous @ W) ** -2
    immediate = np.concatenate([np.zeros((T - 1, size)), row[None]])
    assert logs[0] > 500
    # A rounding or two in each of 10,000 steps, all of one sign.
    assert_close(logs, wanted(slopes, W, immediate), rtol=1e-6, atol=T * 1.5e-6)


def log_slope(activation, z):
    """ln phi'(z), z > 0, without the loss of digits in 1 - tanh(z)^2."""
    if activation == "tanh":
        return np.log(4) - 2 * z - 2 * np.log1p(np.exp(-2 * z))
    return -z - 2 * np.log1p(np.exp(-z))


@pytest.mark.parametrize(("activation", "z"), [("tanh", 4.5), ("tanh", 5.5), ("sigmoid", 9.5)])
def test_saturated_units(activation, z):
    """phi' comes from phi(z), which still tells it from 0 until it rounds to 1."""
    cell, steps = rnn_jax.elman(1, activation), 50
    params = rnn_jax.ElmanParams(
        *(jnp.full(s, v) for s, v in (((1, 1), z - 0.5), ((1, 1), 0.5), (1, 0)))
    )
    row = np.ones(1, np.float32)
    logs = with_last_step(cell, params, np.ones((steps, 1), np.float32), row)
    # s_t is 1 to float32's last digit, s_0 is 0 and has no gradient of its own here.
    line = (np.log(0.5) + log_slope(activation, z)) * np.arange(steps - 1, -1, -1)
    # phi(z) is right to three of float32's roundings, and 1 - phi(z) is no better in each step.
    atol = 3 * 2**-24 * 2 / np.exp(log_slope(activation, z)) * steps
    np.testing.assert_allclose(logs, line, rtol=1e-4, atol=5e-3 + atol)
