"""Every measurement in float32 where single steps use all of its range, against mpmath.

A step multiplies by a factor of its own between 1e-37 and 1e38, and nothing but the Jacobians, the
inputs and the losses is that large or small: the states stay 0.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import Immediate

T, B, H = 6, 2, 3
DIGITS = 400


def step(params, state, x):
    """s_t = g_t s_{t-1} W + y_t b, x_t = (g_t, y_t)."""
    gain, size = x[..., :1], x[..., 1:]
    recurrent = jnp.broadcast_to(gain, state.shape) * (state @ params["W"])
    return recurrent + jnp.broadcast_to(size, state.shape) * params["b"].reshape(
        (1,) * (state.ndim - 1) + (H,)
    )


GAINS = rnn_jax.Cell(
    init=None,
    initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, H), jnp.float32),
    step=step,
)


def draw(seed, low=-37, high=38):
    """W orthogonal, b = 0; factors, inputs and direct gradients of any size."""
    rng = np.random.default_rng(seed)

    def sizes(*shape):
        values = rng.uniform(1, 2, size=shape) * 10 ** rng.uniform(low, high, size=shape)
        return np.minimum(values, 3e38).astype(np.float32)

    W = np.linalg.qr(rng.normal(size=(H, H)))[0].astype(np.float32)
    params = {"W": W, "b": np.zeros(H, np.float32)}
    e = (rng.uniform(-1, 1, size=(T, B, H)) * sizes(T, B, 1)).astype(np.float32)
    return params, np.zeros((B, H), np.float32), sizes(T, B, 2), e


def exactly(function):
    """NumPy arrays of mpmath numbers, which have no range to leave."""

    @functools.wraps(function)
    def run(*arrays):
        with mpmath.workdps(DIGITS):
            return function(*(np.vectorize(mpmath.mpf, otypes=[object])(a) for a in arrays))

    return run


def log_norm(vector):
    size = mpmath.sqrt(sum(v * v for v in np.ravel(vector)))
    return float(mpmath.log(size)) if size else -np.inf


@exactly
def by_hand(W, xs, e):
    """ln|lambda_t| `[T, B]`, ln rms|dL_t/ds_k| `[T, T]`, ln|summand of dL/db| `[T]`."""
    lam = np.zeros((T, B, H), object)
    future = np.zeros((B, H), object)
    credit = np.full((T, T), -np.inf)
    for t in reversed(range(T)):
        lam[t] = e[t] + future
        future = xs[t, :, :1] * (lam[t] @ W.T)
        row = e[t]
        for k in range(t, -1, -1):
            credit[t, k] = log_norm(row) - np.log(B) / 2
            row = xs[k, :, :1] * (row @ W.T)
    logs = np.array([[log_norm(lam[t, b]) for b in range(B)] for t in range(T)])
    summands = (xs[:, :, 1:] * lam).sum(axis=1)
    return logs, credit, np.array([log_norm(s) for s in summands]) - np.log(B)


measured = jax.jit(
    lambda params, state, xs, e: {
        "logs": gradflow.state_gradients(GAINS, params, state, xs, Immediate(e)),
        "segments": gradflow.state_gradients(
            GAINS, params, state, xs, Immediate(e), segment_length=4
        ),
        "credit": gradflow.credit_matrix(GAINS, params, state, xs, Immediate(e), max_rows=T),
        "terms": gradflow.parameter_terms(GAINS, params, state, xs, Immediate(e)),
    }
)


@pytest.mark.parametrize("seed", range(6))
def test_adjoints_credit_and_summands(seed):
    params, state, xs, e = draw(seed)
    found = measured(params, state, xs, e)
    logs, credit, terms = by_hand(params["W"], xs, e)
    for name, wanted in (("logs", logs), ("segments", logs), ("credit", credit)):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=3e-6, err_msg=name)
    np.testing.assert_allclose(found["terms"]["b"], terms, rtol=1e-6, atol=3e-6)
    # The states are 0.
    assert np.all(np.isneginf(found["terms"]["W"]))


@exactly
def singular_values_by_hand(W, gains):
    product = mpmath.eye(H)
    for gain in gains:
        product = mpmath.matrix((gain * W.T).tolist()) * product
    values = mpmath.svd_r(product, compute_uv=False)
    return np.array(sorted((float(mpmath.log(v)) for v in values), reverse=True))


products = jax.jit(
    lambda params, state, xs: (
        gradflow.jacobian_product(GAINS, params, state, xs),
        gradflow.lyapunov_spectrum(GAINS, params, state, xs, qr_every=4),
    )
)


@pytest.mark.parametrize("seed", range(3))
def test_products_of_jacobians(seed):
    params, state, xs, _ = draw(seed)
    # Not a multiple of an orthogonal matrix.
    params["W"] = params["W"] * np.array([1.0, 0.5, 0.3], np.float32)
    logs, exponents = products(params, state[0], xs[:, 0])
    wanted = singular_values_by_hand(params["W"], xs[:, 0, 0])
    np.testing.assert_allclose(logs, wanted, rtol=1e-6, atol=1e-5)
    # Whatever the frame, the exponents sum to ln|det|.
    np.testing.assert_allclose(T * np.sum(exponents), np.sum(wanted), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e20, 1.2e38])
@pytest.mark.parametrize("qr_every", [1, 3])
def test_exponents_of_a_multiple_of_the_identity(size, qr_every):
    params = {"W": np.eye(H, dtype=np.float32), "b": np.zeros(H, np.float32)}
    xs = np.full((T, 2), size, np.float32)
    exponents = jax.jit(
        lambda *given: gradflow.lyapunov_spectrum(GAINS, *given, qr_every=qr_every)
    )(params, jnp.zeros(H), xs)
    np.testing.assert_allclose(exponents, np.full(H, np.log(xs[0, 0], dtype=float)), rtol=1e-6)


@exactly
def sensitivity_by_hand(W, xs):
    """Root mean square over the batch of |ds_t/db|, ds_t/db = g_t ds_{t-1}/db W + y_t."""
    squares = []
    change = np.zeros((B, H, H), object)
    for gains, sizes in zip(xs[..., 0], xs[..., 1], strict=True):
        identity = sizes[:, None, None] * np.eye(H, dtype=int)
        change = gains[:, None, None] * (change @ W) + identity
        squares.append(np.sum(change**2) / B)
    return np.array([float(mpmath.log(s)) / 2 for s in squares])


@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_to_parameters(seed):
    """A norm that float32 does not hold is inf or 0, and those after it are as they should be."""
    params, state, xs, _ = draw(seed)
    wanted = sensitivity_by_hand(params["W"], xs)
    found = jax.jit(lambda *given: gradflow.parameter_sensitivity(GAINS, *given))(params, state, xs)
    limits = np.log([np.finfo(np.float32).tiny, np.finfo(np.float32).max], dtype=float)
    inside = (wanted > limits[0] + 0.1) & (wanted < limits[1] - 0.1)
    np.testing.assert_allclose(np.log(found["b"][inside]), wanted[inside], atol=1e-5)
    np.testing.assert_array_equal(found["b"] == np.inf, wanted > limits[1])
    assert np.all(found["W"] == 0)


@pytest.mark.parametrize("size", [1e-37, 1.2e38])
def test_windows_of_truncation(size):
    """W = size * identity at rest, loss at the last step: the longest lag is all, or nothing."""
    cell = rnn_jax.elman(2, "identity")
    params = rnn_jax.ElmanParams(jnp.zeros((1, 2)), size * jnp.eye(2), jnp.zeros(2))
    last = gradflow.LastStep(lambda state: state.sum(-1))
    bias = jax.jit(lambda p: gradflow.truncation_bias(cell, p, jnp.zeros((1, 2)), XS, last))(params)
    short = 0.0 if size > 1 else 1.0
    np.testing.assert_array_equal(bias.norm_ratio, [short] * (T - 1) + [1])
    np.testing.assert_allclose(bias.cosine, 1, rtol=1e-6)


XS = jnp.zeros((T, 1, 1))


@exactly
def summands_by_hand(W, xs, e):
    """ln|sum_b x_b lambda_b^T| `[T]` of s_t = x_t U + s_{t-1} W, e at the last step alone."""
    logs, lam = [], e
    for x in xs[::-1]:
        logs.append(log_norm(x.T @ lam) - np.log(len(e)))
        lam = lam @ W.T
    return np.array(logs[::-1])


FACTORS = rnn_jax.elman(H, "identity")
terms = jax.jit(
    lambda cell, *given: gradflow.parameter_terms(
        cell, *given[:-1], gradflow.LastStep(lambda state: jnp.sum(given[-1] * state, axis=-1))
    ),
    static_argnums=0,
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cell", [FACTORS, FACTORS._replace(affine=None)], ids=["factors", "step"])
def test_summands_of_inputs_of_any_size(cell, seed):
    rng = np.random.default_rng(seed)
    _, state, xs, e = draw(seed)
    # Where a loud example's input is 0 it adds nothing, and must not drown the quiet one.
    xs = np.where(rng.uniform(size=(T, B, 1)) < 0.4, 0, xs).astype(np.float32)
    W = (10 ** rng.uniform(-37, 37) * np.linalg.qr(rng.normal(size=(H, H)))[0]).astype(np.float32)
    params = rnn_jax.ElmanParams(np.zeros((2, H), np.float32), W, np.zeros(H, np.float32))
    found = terms(cell, params, state, xs, e[-1])
    wanted = summands_by_hand(W, xs, e[-1])
    np.testing.assert_allclose(found.U, wanted, rtol=1e-6, atol=3e-6)
