"""dL_t/ds_k for every pair: against products of Jacobians, at any scale, with any block size."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference_scaled
from marks import slow
from networks import CELLS, B, D, H, T, problem, step_losses

import rnn_jax
from rnn_jax import gradflow

LENGTHS = np.array([4, T, 1])
LATER = np.triu_indices(T, 1)

state_gradients = jax.jit(gradflow.state_gradients, static_argnums=(0, 4))
credit_matrix = jax.jit(gradflow.credit_matrix, static_argnums=(0, 4), static_argnames="max_rows")


def log_mean_square(logs):
    """ln of the root mean square over the last axis, whatever the size; -inf where all are."""
    largest = np.max(logs, axis=-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return 0.5 * np.log(np.mean(np.exp(2 * (logs - largest)), axis=-1)) + largest[..., 0]


def assert_matrix(matrix, wanted, finite=True, rtol=1e-12, atol=1e-12):
    """Equal, -inf exactly where k > t, and finite elsewhere."""
    assert matrix.shape == wanted.shape
    later = np.triu_indices(len(matrix), 1)
    assert np.all(np.asarray(matrix)[later] == -np.inf)
    if finite:
        assert np.all(np.isfinite(np.asarray(matrix)[np.tril_indices(len(matrix))]))
    np.testing.assert_allclose(matrix, wanted, rtol=rtol, atol=atol)


# Against explicit products


def by_products(params, activation, s_0, xs, e):
    """ln rms_b |(J_t ... J_{k+1})^T e_t| of an Elman cell in NumPy, every product a matrix."""
    U, W, b = (np.asarray(p) for p in params)
    num_steps, batch_size = xs.shape[:2]
    norms = np.zeros((num_steps, num_steps, batch_size))
    for example in range(batch_size):
        s, jacobians = s_0[example], []
        for x in xs[:, example]:
            z = x @ U + s @ W + b
            s = np.tanh(z) if activation == "tanh" else np.maximum(z, 0)
            slope = np.cosh(z) ** -2 if activation == "tanh" else (z > 0) * 1.0
            jacobians.append(np.diag(slope) @ W.T)
        for t in range(num_steps):
            for k in range(t + 1):
                product = np.eye(len(s))
                for j in range(k + 1, t + 1):
                    product = jacobians[j] @ product
                norms[t, k, example] = np.linalg.norm(product.T @ e[t, example])
    with np.errstate(divide="ignore"):
        return log_mean_square(np.log(norms))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", ["tanh", slow("relu")])
def test_every_entry_equals_a_product_of_jacobians(activation):
    rng = np.random.default_rng(0)
    params, s_0, xs = jax.tree.map(np.asarray, problem(CELLS["elman"]))
    e = rng.normal(size=(T, B, H))
    # A ReLU network may die; these examples keep at least one unit alive.
    params = params._replace(b=params.b + 1)

    def losses(states):
        return jnp.sum(e * states, axis=-1)

    matrix = credit_matrix(rnn_jax.elman(H, activation), params, s_0, xs, losses)
    assert_matrix(matrix, by_products(params, activation, s_0, xs, e))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    ["lstm", "user", slow("gru"), slow("leaky")],
)
def test_entries_are_norms_of_vectors_that_add_up_to_the_adjoints(name):
    """Each is the root mean square over the batch of |dL_t/ds_k|; sum_t dL_t/ds_k = lambda_k."""
    cell = CELLS[name]
    given = problem(cell)
    vectors = networks.credit_vectors(cell, *given)
    wanted = log_mean_square(networks.log_norm(vectors, 3))
    assert_matrix(credit_matrix(cell, *given, step_losses), wanted)
    total = networks.log_norm(jax.tree.map(lambda v: np.sum(v, axis=0), vectors), 2)
    logs = state_gradients(cell, *given, step_losses)
    np.testing.assert_allclose(logs, total, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_rows_add_up_to_the_adjoints():
    """One example, one unit, every factor positive: the entries are the derivatives themselves."""
    cell = rnn_jax.elman(1)
    params = rnn_jax.ElmanParams(jnp.ones((D, 1)), jnp.full((1, 1), 0.9), jnp.zeros(1))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, 1, D)))

    def losses(states):
        return jnp.sum(states, axis=-1)

    given = (cell, params, jnp.zeros((1, 1)), xs, losses)
    columns = np.exp(credit_matrix(*given)).sum(axis=0)
    np.testing.assert_allclose(columns, np.exp(state_gradients(*given))[:, 0], rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("max_rows", [1, 3, T, 100])
def test_block_size_changes_nothing(max_rows):
    given = problem(CELLS["elman"], num_steps=T)
    whole = credit_matrix(CELLS["elman"], *given, step_losses, max_rows=4)
    part = credit_matrix(CELLS["elman"], *given, step_losses, max_rows=max_rows)
    assert_matrix(part, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_shape", [(), (2, B)])
def test_batch_axes(batch_shape):
    cell = CELLS["gru"]
    given = problem(cell, batch_shape)
    vectors = networks.credit_vectors(cell, *given)
    logs = networks.log_norm(vectors, 2 + len(batch_shape)).reshape(T, T, -1)
    assert_matrix(credit_matrix(cell, *given, step_losses), log_mean_square(logs))


# Padding


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["elman", slow("user")])
def test_padding_counts_as_zero(name):
    cell = CELLS[name]
    params, state, xs = problem(cell)
    logs = np.full((T, T, B), -np.inf)
    for example, length in enumerate(LENGTHS):
        one = jax.tree.map(lambda s, b=example: s[b], state)
        vectors = networks.credit_vectors(cell, params, one, xs[:length, example])
        logs[:length, :length, example] = networks.log_norm(vectors, 2)
    matrix = credit_matrix(cell, params, state, xs, step_losses, lengths=LENGTHS, max_rows=4)
    assert_matrix(matrix, log_mean_square(logs))


# Far outside float32


@functools.partial(jax.jit, static_argnums=0, static_argnames="max_rows")
def linear_credit(cell, W, weights, max_rows=None):
    """L_t = weights_t . s_t of an identity cell that stays at 0, one sequence, float32."""
    size = W.shape[0]
    params = rnn_jax.ElmanParams(jnp.zeros((1, size)), W, jnp.zeros(size))

    def losses(states):
        return jnp.sum(weights * states, axis=-1)

    xs = jnp.zeros((weights.shape[0], 1))
    return gradflow.credit_matrix(cell, params, jnp.zeros(size), xs, losses, max_rows=max_rows)


PLAIN = rnn_jax.elman(H, "identity")


def scaled_by_hand(W, weights):
    """ln|(W^{t-k}) e_t| with every row brought back to size at every step."""
    slopes = np.ones((len(weights), 1, H))
    rows = []
    for t in range(len(weights)):
        e = np.zeros((len(weights), 1, H))
        e[t, 0] = weights[t]
        rows.append(reference_scaled.adjoints(slopes, np.asarray(W, np.float64), e).logs[:, 0])
    return np.array(rows)


@pytest.mark.parametrize("slope", [-3.0, 3.0])
@pytest.mark.parametrize("sizes", [0, 18, 30], ids=["e_t 1", "e_t to 1e18", "e_t to 1e30"])
def test_entries_far_outside_float32(slope, sizes):
    rng = np.random.default_rng(1)
    steps = 60
    W = np.asarray(np.exp(slope) * np.linalg.qr(rng.normal(size=(H, H)))[0], np.float32)
    weights = rng.normal(size=(steps, H)) * 10 ** rng.uniform(-sizes, sizes, size=(steps, 1))
    weights = np.asarray(weights, np.float32)
    matrix = linear_credit(PLAIN, W, weights)
    wanted = scaled_by_hand(W, weights)
    assert abs(wanted[-1, 0] - wanted[-1, -1]) > 170
    assert_matrix(matrix, wanted, rtol=3e-7, atol=2e-6)


@pytest.mark.parametrize("factor", [1e-34, 1e-25, 1e-18, 1e-12, 1e12, 1e18, 1e25, 1e37])
def test_a_step_may_change_a_vector_by_any_factor_at_once(factor):
    rng = np.random.default_rng(2)
    weights = np.asarray(rng.normal(size=(T, H)), np.float32)
    W = np.asarray(factor * np.linalg.qr(rng.normal(size=(H, H)))[0], np.float32)
    matrix = linear_credit(PLAIN, W, weights)
    assert_matrix(matrix, scaled_by_hand(W, weights), rtol=3e-7, atol=2e-6)


@pytest.mark.parametrize("size", [1e-37, 1e38, 2e38])
def test_immediate_gradients_at_the_ends_of_float32(size):
    rng = np.random.default_rng(4)
    weights = np.asarray(size * rng.uniform(0.5, 1, size=(T, H)), np.float32)
    W = np.asarray(0.5 * np.linalg.qr(rng.normal(size=(H, H)))[0], np.float32)
    matrix = linear_credit(PLAIN, W, weights)
    assert_matrix(matrix, scaled_by_hand(W, weights.astype(float)), rtol=3e-7, atol=2e-6)


def test_large_and_tiny_units_in_one_vector():
    W = np.zeros((H, H), np.float32)
    W[0, 1], W[1, 0], W[2, 2], W[3, 3] = 1e-17, 1e17, 1.0, 1e-3
    weights = np.asarray(np.random.default_rng(3).normal(size=(T, H)), np.float32)
    matrix = linear_credit(PLAIN, W, weights)
    # Logarithms up to ln 1e17 = 39 are added up, where float32 goes in steps of 4e-6.
    assert_matrix(matrix, scaled_by_hand(W, weights), rtol=3e-7, atol=8e-6)


# Exact zeros


@pytest.mark.usefixtures("x64")
def test_zero_exactly_where_nothing_depends():
    """A ReLU unit dead at step 3 cuts every path over it, and a step without a loss has no row."""
    cell = rnn_jax.elman(1, "relu")
    params = rnn_jax.ElmanParams(jnp.ones((1, 1)), jnp.full((1, 1), 0.5), jnp.zeros(1))
    xs = jnp.array([1.0, 1.0, -5.0, 1.0, 1.0, 1.0])[:, None, None]
    seen = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])[:, None]
    matrix = credit_matrix(
        cell, params, jnp.zeros((1, 1)), xs, lambda states: jnp.sum(states, axis=-1) * seen
    )
    t, k = np.meshgrid(np.arange(6), np.arange(6), indexing="ij")
    alive = (k <= t) & ((t < 2) | (k >= 2)) & (t != 4)
    wanted = np.where(alive, (t - k) * np.log(0.5), -np.inf)
    assert_matrix(matrix, wanted, finite=False)
