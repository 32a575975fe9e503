"""ds_t/dtheta: against closed forms of a scalar recurrence, and autodiff of a plain scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from networks import CELLS, T, problem

import rnn_jax
from rnn_jax import gradflow

pytestmark = pytest.mark.usefixtures("x64")

SCALAR = rnn_jax.elman(1, "identity")

parameter_sensitivity = jax.jit(gradflow.parameter_sensitivity, static_argnums=0)


def scalar(a, xs):
    """Mean over the batch of (dh_t/dtheta)^2 in h <- a h + u x, u = 1; xs `[T, B]`."""
    params = rnn_jax.ElmanParams(jnp.ones((1, 1)), jnp.full((1, 1), a), jnp.zeros(1))
    start = jnp.zeros((xs.shape[1], 1))
    rms = parameter_sensitivity(SCALAR, params, start, jnp.asarray(xs[..., None]))
    return jax.tree.map(lambda r: np.asarray(r) ** 2, rms)


@pytest.mark.parametrize("a", [0.9, 0.99])
def test_expectation_over_white_input(a):
    """h is linear in x, so E over white x is the sum over inputs that are 1 at one step alone."""
    steps = 400
    squares = scalar(a, np.eye(steps))
    # dh_t/da = sum_k (t - k) a^(t-k-1) x_k and dh_t/du = sum_k a^(t-k) x_k.
    lag = np.arange(steps)
    by_a = np.cumsum(lag**2 * a ** (2.0 * (lag - 1)))
    by_u = np.cumsum(a ** (2.0 * lag))
    np.testing.assert_allclose(steps * squares.W, by_a, rtol=1e-11)
    np.testing.assert_allclose(steps * squares.U, by_u, rtol=1e-11)
    # dh_t/db does not depend on x at all.
    np.testing.assert_allclose(squares.b, np.cumsum(a**lag) ** 2, rtol=1e-11)
    if a == 0.9:
        closed = [(1 + a**2) / (1 - a**2) ** 3, 1 / (1 - a**2)]
        np.testing.assert_allclose(steps * np.array([squares.W[-1], squares.U[-1]]), closed)
        np.testing.assert_allclose(closed[0], 263.9, rtol=1e-4)


def test_near_the_edge_it_explodes():
    """At 0.99, long after the start, 2.513e5: from one input at step 1, whose effect on step t is
    that of an input at T - t + 1 on the last step. The state's gradient is 0.99 a step.
    """
    a, steps = 0.99, 2000
    xs = np.zeros((steps, 1))
    xs[0] = 1.0
    squares = scalar(a, xs)
    expected = np.sum(squares.W)
    np.testing.assert_allclose(expected, (1 + a**2) / (1 - a**2) ** 3, rtol=1e-9)
    np.testing.assert_allclose(expected, 2.513e5, rtol=2e-4)


def test_mean_over_random_sequences():
    """E (dh/da)^2 = 263.9: dh/da is Gaussian, so its mean square scatters by sqrt(2 / N)."""
    count = 4000
    xs = np.random.default_rng(0).normal(size=(250, count))
    squares = scalar(0.9, xs)
    error = np.sqrt(2 / count)
    assert abs(squares.W[-1] / 263.9 - 1) < 3 * error
    assert abs(squares.U[-1] * (1 - 0.81) - 1) < 3 * error


@pytest.mark.parametrize("name", ["elman", "lstm", slow("leaky"), "user"])
def test_equals_autodiff_of_a_plain_scan(name):
    cell = CELLS[name]
    given = problem(cell)

    @jax.jit
    def jacobians(params):
        return jax.jacrev(lambda p: rnn_jax.plain_unroll(cell, p, *given[1:]))(params)

    def root_mean_square(*leaves):
        """Leaves `[T, B, state, parameter]` of one parameter, one for each leaf of the state."""
        squares = sum(np.sum(np.square(leaf).reshape(*leaf.shape[:2], -1), -1) for leaf in leaves)
        return np.sqrt(np.mean(squares, axis=1))

    by_leaf = jax.tree.leaves(
        jacobians(given.params), is_leaf=lambda tree: isinstance(tree, type(given.params))
    )
    if isinstance(given.params, dict):
        by_leaf = list(jacobians(given.params).values())
    wanted = jax.tree.map(root_mean_square, *by_leaf)
    found = parameter_sensitivity(cell, *given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), found, wanted)
    assert all(leaf.shape == (T,) for leaf in jax.tree.leaves(found))
    assert all(np.all(leaf[1:] > 0) for leaf in jax.tree.leaves(found))


def test_unbatched_is_a_batch_of_one():
    cell = CELLS["lstm"]
    params, state, xs = problem(cell, ())
    batched = jax.tree.map(lambda s: s[None], state)
    one = parameter_sensitivity(cell, params, state, xs)
    batch = parameter_sensitivity(cell, params, batched, xs[:, None])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), one, batch)


def test_broken_arguments():
    params, state, xs = problem(CELLS["elman"])
    with pytest.raises(ValueError, match=r"xs is not finite: \[2, 1, 0\]"):
        gradflow.parameter_sensitivity(CELLS["elman"], params, state, xs.at[2, 1, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="state has shape"):
        gradflow.parameter_sensitivity(CELLS["elman"], params, state[:, 1:], xs)
