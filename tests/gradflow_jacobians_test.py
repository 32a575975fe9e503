"""ln of the singular values of ds_T/ds_0: closed forms, NumPy at T = 1, mpmath, determinants."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference_scaled
from marks import slow
from networks import CELLS, B, D, T, problem

import rnn_jax
from rnn_jax import gradflow

pytestmark = pytest.mark.usefixtures("x64")

jacobian_product = jax.jit(gradflow.jacobian_product, static_argnums=0)


@functools.lru_cache
def plain(size):
    return rnn_jax.elman(size, "identity")


def linear(W, num_steps, dtype=float):
    """Singular values in ln of W^T to the power num_steps."""
    size = len(W)
    params = rnn_jax.ElmanParams(
        jnp.zeros((1, size), dtype), jnp.asarray(W, dtype), jnp.zeros(size, dtype)
    )
    return jacobian_product(
        plain(size), params, jnp.zeros(size, dtype), jnp.zeros((num_steps, 1), dtype)
    )


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def log_svd(matrix):
    return np.log(np.linalg.svd(matrix, compute_uv=False))


# Closed forms


@pytest.mark.parametrize("num_steps", [1, 20, 5000])
def test_diagonal(num_steps):
    d = np.array([0.5, -2.0, 1.0, 1e-3, 0.5])
    wanted = num_steps * np.log(np.sort(np.abs(d))[::-1])
    np.testing.assert_allclose(linear(np.diag(d), num_steps), wanted, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("gain", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("num_steps", [1, 5000])
def test_orthogonal_has_one_value_repeated(gain, num_steps):
    W = gain * orthogonal(np.random.default_rng(0), 5)
    wanted = np.full(5, num_steps * np.log(gain))
    np.testing.assert_allclose(linear(W, num_steps), wanted, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 20, 5000])
def test_identity(num_steps):
    np.testing.assert_allclose(linear(np.eye(4), num_steps), np.zeros(4), atol=1e-11)


def test_symmetric_matrix_has_powers_of_its_eigenvalues():
    """Repeated and close values, and directions that no axis singles out."""
    rng = np.random.default_rng(1)
    eigenvalues = np.array([1.2, -1.2, 1.0, 0.999, 0.3])
    Q = orthogonal(rng, 5)
    wanted = 5000 * np.log(np.abs(eigenvalues))
    # Each step's rounding of the eigenvalues, 5000 times.
    np.testing.assert_allclose(linear(Q * eigenvalues @ Q.T, 5000), wanted, rtol=1e-12, atol=1e-9)


def test_repeated_values_of_one_matrix():
    rng = np.random.default_rng(2)
    values = np.array([3.0, 2.0, 2.0, 2.0, 0.1])
    W = orthogonal(rng, 5) * values @ orthogonal(rng, 5)
    np.testing.assert_allclose(linear(W, 1), np.log(values), rtol=1e-12)


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_float32_keeps_its_digits_over_many_steps(gain):
    """The logarithms add up over the steps: a sum of thousands must not lose what it adds."""
    W = gain * np.eye(3)
    for num_steps in (1000, 20_000):
        logs = linear(W, num_steps, jnp.float32)
        assert logs.dtype == jnp.float32
        wanted = np.full(3, num_steps * np.log(np.float64(np.float32(gain))))
        np.testing.assert_allclose(logs, wanted, rtol=1e-5)


# One step


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_one_step_equals_numpys_singular_values(size):
    W = np.random.default_rng(3).normal(size=(size, size))
    np.testing.assert_allclose(linear(W, 1), log_svd(W), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["elman", slow("leaky"), "lstm", slow("gru"), "user"])
def test_one_step_of_every_cell(name):
    """All units of all leaves: 2 H for an LSTM, whose product mixes c and h."""
    cell = CELLS[name]
    params, state, xs = problem(cell, (), num_steps=1)
    jacobian = networks.step_jacobians(cell, params, state, xs)[0]
    logs = jacobian_product(cell, params, state, xs)
    assert len(logs) == {"lstm": 8, "user": 12}.get(name, 4)
    np.testing.assert_allclose(logs, log_svd(jacobian), rtol=1e-6, atol=1e-6)


# Several steps


@pytest.mark.parametrize("name", ["elman", slow("leaky"), "lstm", slow("gru")])
def test_product_of_several_steps_against_sixty_digits(name):
    cell = CELLS[name]
    params, state, xs = problem(cell, (), num_steps=40)
    matrices = np.asarray(networks.step_jacobians(cell, params, state, xs))
    wanted = reference_scaled.mp_log_singular_values(matrices, digits=200)
    logs = jacobian_product(cell, params, state, xs)
    np.testing.assert_allclose(logs, wanted, rtol=1e-9, atol=1e-9)


def test_gaussian_products_against_many_digits():
    """A spread of hundreds of nats between the largest and the smallest value."""
    rng = np.random.default_rng(4)
    W = 0.8 * rng.normal(size=(4, 4))
    wanted = reference_scaled.mp_log_singular_values(np.array([W.T] * 300), digits=1200)
    assert wanted[0] - wanted[-1] > 200
    np.testing.assert_allclose(linear(W, 300), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["elman", "lstm", slow("leaky")])
def test_sum_is_the_logarithm_of_the_determinant(name):
    """sum_i ln sigma_i = sum_t ln|det J_t|, for any product."""
    cell = CELLS[name]
    params, state, xs = problem(cell, (), num_steps=50)
    matrices = networks.step_jacobians(cell, params, state, xs)
    wanted = np.linalg.slogdet(np.asarray(matrices))[1].sum()
    logs = jacobian_product(cell, params, state, xs)
    assert np.all(np.diff(logs) <= 0)
    np.testing.assert_allclose(np.sum(logs), wanted, rtol=1e-10)


@pytest.mark.parametrize("batch_shape", [(B,), (2, B)])
def test_batch_is_averaged(batch_shape):
    cell = CELLS["gru"]
    params, state, xs = problem(cell, batch_shape)
    state, xs = np.asarray(state), np.asarray(xs)
    alone = [
        jacobian_product(cell, params, state[index], xs[(slice(None), *index)])
        for index in np.ndindex(*batch_shape)
    ]
    logs = jacobian_product(cell, params, state, xs)
    np.testing.assert_allclose(logs, np.mean(alone, axis=0), rtol=1e-10)


# Exact zeros


def test_zero_exactly_where_the_product_is():
    """Every unit of a ReLU network dead at one step: nothing passes."""
    cell = CELLS["relu"]
    params, state, xs = problem(cell, ())
    params = params._replace(U=jnp.full_like(params.U, 5.0), W=0.1 * params.W)
    xs = jnp.asarray(np.where(np.arange(T)[:, None] == 2, -1e3, np.full((T, D), 10.0)))
    for num_steps, alive in ((2, True), (3, False), (T, False)):
        logs = jacobian_product(cell, params, jnp.abs(state), xs[:num_steps])
        assert np.all(np.isfinite(logs) if alive else np.isneginf(logs))


def test_a_unit_that_nothing_leaves():
    """W = diag(2, 0, 1/2): one singular value is 0 exactly, the others are as they were."""
    for num_steps in (1, 30):
        logs = linear(np.diag([2.0, 0.0, 0.5]), num_steps)
        wanted = num_steps * np.log(np.array([2.0, 0.5]))
        np.testing.assert_allclose(logs[:2], wanted, rtol=1e-12)
        # What is left of the third is the rounding of the other two, or nothing.
        assert logs[2] < logs[1] - 30
