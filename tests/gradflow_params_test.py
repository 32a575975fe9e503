"""The summands of dL/dtheta, one a step: by hand, and as gradients by parameters of their own."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
import reference_scaled
from marks import slow
from networks import CELLS, B, D, H, T, problem, step_losses

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import LastStep

parameter_terms = jax.jit(gradflow.parameter_terms, static_argnums=(0, 4))
LENGTHS = np.array([4, T, 1])


def log_norms(vectors):
    """ln of each step's Frobenius norm, a pytree of `[T]`."""
    with np.errstate(divide="ignore"):
        return jax.tree.map(
            lambda v: np.log(np.linalg.norm(np.reshape(v, (len(v), -1)), axis=1)), vectors
        )


def assert_close(given, wanted, rtol=1e-11, atol=1e-11):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), given, wanted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", ["tanh", slow("relu")])
@pytest.mark.parametrize("batch_size", [1, B])
def test_elman_equals_the_summands_by_hand(activation, batch_size):
    rng = np.random.default_rng(1)
    weights = reference.random_weights(rng, D, H, 3)
    shapes = ((batch_size, H), (T, batch_size, D), (T, batch_size, 3))
    s_0, x, y = (rng.normal(size=shape) for shape in shapes)
    phi = reference.PHI[activation]
    run = reference.forward(weights, phi, s_0, x, y)
    gradients = reference.backward(weights, phi, s_0, x, y, run)
    norms = reference.summand_norms(x, s_0, phi, run, gradients)

    def losses(states):
        outputs = states @ weights.V
        outputs = outputs + jnp.broadcast_to(weights.c, outputs.shape)
        # The mean over the batch of these sums is the reference's mean over everything.
        return jnp.mean((outputs - y) ** 2, axis=-1) / T

    params = rnn_jax.ElmanParams(*(jnp.asarray(w) for w in weights[:3]))
    terms = parameter_terms(rnn_jax.elman(H, activation), params, s_0, x, losses)
    # With one example of a ReLU network some steps add nothing.
    with np.errstate(divide="ignore"):
        assert_close(terms, rnn_jax.ElmanParams(*(np.log(norm) for norm in norms[:3])))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "batch_shape"),
    [
        ("lstm", (B,)),
        slow("gru", (1,)),
        slow("gru", (B,)),
        slow("leaky", (B,)),
        ("user", (1,)),
        ("user", (B,)),
    ],
)
def test_every_cell_equals_gradients_by_each_steps_own_parameters(name, batch_shape):
    cell = CELLS[name]
    given = problem(cell, batch_shape)
    vectors = networks.summands(cell, *given)
    assert_close(parameter_terms(cell, *given, step_losses), log_norms(vectors))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm", "user"])
def test_vectors_behind_the_norms_add_up_to_the_gradient(name):
    cell = CELLS[name]
    given = problem(cell)
    vectors = networks.summands(cell, *given)
    gradient = jax.jit(gradflow.value_and_grad(cell, step_losses))(*given)[1]
    assert_close(jax.tree.map(lambda v: np.sum(v, axis=0), vectors), gradient)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "batch_shape"), [("lstm", ()), ("user", ()), slow("gru", (2, B)), ("user", (2, B))]
)
def test_batch_axes(name, batch_shape):
    cell = CELLS[name]
    given = problem(cell, batch_shape)
    vectors = networks.summands(cell, *given)
    assert_close(parameter_terms(cell, *given, step_losses), log_norms(vectors))


@pytest.mark.usefixtures("x64")
def test_a_loss_at_the_last_step():
    cell = CELLS["gru"]
    given = problem(cell)

    def only_last(states):
        return step_losses(states).at[:-1].set(0)

    def last_loss(state):
        zeros = jax.tree.map(lambda s: jnp.zeros((T - 1, *s.shape), s.dtype), state)
        padded = jax.tree.map(lambda z, s: jnp.concatenate([z, s[None]]), zeros, state)
        return step_losses(padded)[-1]

    full = parameter_terms(cell, *given, only_last)
    assert_close(full, log_norms(networks.summands(cell, *given, only_last)))
    assert_close(parameter_terms(cell, *given, LastStep(last_loss)), full)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["elman", "user"])
def test_padding_adds_nothing(name):
    """Each example's summands up to its length, added up over the examples as vectors."""
    cell = CELLS[name]
    params, state, xs = problem(cell)

    def masked(states):
        return jnp.where(np.arange(T)[:, None] < LENGTHS, step_losses(states), 0)

    total = jax.tree.map(lambda p: np.zeros((T, *p.shape)), params)
    for example, length in enumerate(LENGTHS):
        one = jax.tree.map(lambda s, b=example: s[b : b + 1], state)
        vectors = networks.summands(cell, params, one, xs[:length, example : example + 1])
        for into, part in zip(jax.tree.leaves(total), jax.tree.leaves(vectors), strict=True):
            into[:length] += np.asarray(part) / B
    terms = parameter_terms(cell, params, state, xs, masked, lengths=LENGTHS)
    assert_close(terms, log_norms(total))


# Far outside float32

STEPS = 2000


def linear_terms(W, xs, weights):
    """L_t = weights_t . s_t, `[T, B, H]`, of an identity cell from the zero state; float32."""
    cell = rnn_jax.elman(H, "identity")
    params = rnn_jax.ElmanParams(jnp.zeros((D, H)), jnp.asarray(W), jnp.zeros(H))

    def losses(states):
        return jnp.sum(weights * states, axis=-1)

    return jax.jit(functools.partial(gradflow.parameter_terms, cell), static_argnums=3)(
        params, jnp.zeros((xs.shape[1], H)), xs, losses
    )


def sum_of_outer_products(left, adjoints):
    """ln |sum_b left_b lambda_b^T| / B at each step, from unit vectors and logarithms."""
    largest = adjoints.logs.max(axis=1)
    share = np.exp(adjoints.logs - largest[:, None])[..., None] * adjoints.vectors
    summands = np.einsum("tbm,tbn->tmn", np.asarray(left, np.float64), share) / left.shape[1]
    return np.log(np.linalg.norm(summands, axis=(1, 2))) + largest


@pytest.mark.parametrize("slope", [-3.0, 3.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_summands_far_outside_float32(slope, batch_size):
    """Examples of very different size share a batch; the last step alone has a loss."""
    rng = np.random.default_rng(2)
    W = np.asarray(np.exp(slope) * np.linalg.qr(rng.normal(size=(H, H)))[0], np.float32)
    xs = np.asarray(rng.normal(size=(STEPS, batch_size, D)), np.float32)
    weights = np.zeros((STEPS, batch_size, H), np.float32)
    weights[-1] = rng.normal(size=(batch_size, H)) * 10.0 ** np.arange(batch_size)[:, None]
    terms = linear_terms(W, xs, weights)
    adjoints = reference_scaled.adjoints(
        np.ones_like(weights, float), W.astype(float), 1.0 * weights
    )
    assert abs(adjoints.logs[0, 0]) > 5900
    np.testing.assert_allclose(terms.U, sum_of_outer_products(xs, adjoints), rtol=4e-7, atol=1e-5)
    ones = np.ones((STEPS, batch_size, 1))
    np.testing.assert_allclose(terms.b, sum_of_outer_products(ones, adjoints), rtol=4e-7, atol=1e-5)
    # U is 0, so every state is, and W's summands are zero exactly.
    assert np.all(np.isneginf(terms.W))


@pytest.mark.parametrize("ratio", [1e-20, 1e-45, 1e-60])
def test_a_quiet_example_counts_where_a_loud_one_adds_nothing(ratio):
    """The loud example's input is 0, so dL/dU is the quiet one's alone, whatever their ratio."""
    rng = np.random.default_rng(3)
    W = np.asarray(np.linalg.qr(rng.normal(size=(H, H)))[0], np.float32)
    xs = np.asarray(rng.normal(size=(T, 2, D)), np.float32)
    xs[:, 0] = 0
    weights = rng.normal(size=(T, 2, H)) * np.array([1 / np.sqrt(ratio), np.sqrt(ratio)])[:, None]
    terms = linear_terms(W, xs, np.asarray(weights, np.float32))
    adjoints = reference_scaled.adjoints(np.ones((T, 2, H)), W.astype(float), weights)
    quiet = reference_scaled.Adjoints(adjoints.vectors[:, 1:], adjoints.logs[:, 1:])
    wanted = sum_of_outer_products(xs[:, 1:], quiet) - np.log(2)
    np.testing.assert_allclose(terms.U, wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("difference", [0.1, 1e-2])
def test_examples_that_nearly_cancel(difference):
    """Two examples pull in opposite directions: what is left is small, and is not rounding."""
    rng = np.random.default_rng(4)
    W = np.asarray(np.linalg.qr(rng.normal(size=(H, H)))[0], np.float32)
    xs = np.asarray(rng.normal(size=(T, 1, D)), np.float32).repeat(2, axis=1)
    weights = rng.normal(size=(T, 1, H)) * np.array([1, -1 - difference])[:, None]
    weights = np.asarray(weights, np.float32)
    terms = linear_terms(W, xs, weights)
    adjoints = reference_scaled.adjoints(np.ones((T, 2, H)), W.astype(float), 1.0 * weights)
    wanted = sum_of_outer_products(xs, adjoints)
    # Inner products are of squares: they lose two digits for each that the examples cancel.
    np.testing.assert_allclose(terms.U, wanted, atol=2e-7 / difference**2)


# Exact zeros


def test_zero_exactly_where_a_step_adds_nothing():
    """A dead ReLU, no input, a zero state, and no loss from step 4 on."""
    cell = rnn_jax.elman(1, "relu")
    params = rnn_jax.ElmanParams(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
    xs = jnp.array([1.0, -5.0, 2.0, 0.0, 1.0, 1.0])[:, None, None]

    def losses(states):
        return jnp.sum(states, axis=-1).at[4:].set(0)

    terms = jax.jit(gradflow.parameter_terms, static_argnums=(0, 4))(
        cell, params, jnp.zeros((1, 1)), xs, losses
    )
    # s is 1, 0 (dead), 2, 2, 3, 4 and lambda 1, 1, 2, 1, 0, 0; phi' is 0 at step 2 alone.
    with np.errstate(divide="ignore"):
        wanted = rnn_jax.ElmanParams(
            *(
                np.log(np.array(row))
                for row in ([1, 0, 4, 0, 0, 0], [0, 0, 0, 2, 0, 0], [1, 0, 2, 1, 0, 0])
            )
        )
    assert_close(terms, wanted, rtol=1e-6, atol=1e-6)
