"""Every measurement under `jit`, `vmap` and `grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from networks import CELLS, B, H, T, problem, step_losses

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import LastStep

pytestmark = pytest.mark.usefixtures("x64")


def last_loss(state):
    return sum(jnp.sum(leaf**2, axis=-1) for leaf in jax.tree.leaves(state))


MEASURES = {
    "state_gradients": lambda *given: gradflow.state_gradients(*given, step_losses),
    "segments": lambda *given: gradflow.state_gradients(
        *given, LastStep(last_loss), segment_length=4
    ),
    "leaf_gradients": lambda *given: gradflow.leaf_gradients(*given, step_losses),
    "credit_matrix": lambda *given: gradflow.credit_matrix(*given, step_losses),
    "parameter_terms": lambda *given: gradflow.parameter_terms(*given, step_losses),
    "jacobian_product": gradflow.jacobian_product,
    "lyapunov_spectrum": gradflow.lyapunov_spectrum,
    "value_and_grad": lambda cell, *given: gradflow.value_and_grad(cell, step_losses)(*given),
}


def stacked(trees, axis=0):
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves, axis)), *trees)


def assert_close(given, wanted, rtol=1e-11, atol=1e-11):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), given, wanted)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "state_gradients" else pytest.mark.slow)
        for name in MEASURES
        if name != "leaf_gradients"
    ],
)
def test_vmap_over_networks_equals_each_alone(name):
    cell, measure = CELLS["elman"], MEASURES[name]
    several = [problem(cell, seed=seed) for seed in range(3)]
    alone = jax.jit(lambda given: measure(cell, *given))
    mapped = jax.jit(jax.vmap(lambda given: measure(cell, *given)))(stacked(several))
    assert_close(mapped, stacked([alone(given) for given in several]))


def test_vmap_over_examples_equals_the_batch():
    cell = CELLS["lstm"]
    params, state, xs = problem(cell)
    measure = MEASURES["leaf_gradients"]
    mapped = jax.vmap(lambda s, x: measure(cell, params, s, x), in_axes=(0, 1), out_axes=1)
    assert_close(jax.jit(mapped)(state, xs), jax.jit(lambda: measure(cell, params, state, xs))())


# Derivatives


def weigh(result):
    """A scalar in which no two finite numbers count alike; what is -inf counts as nothing."""
    rng = np.random.default_rng(9)
    finite = [jnp.where(jnp.isneginf(leaf), 0, leaf) for leaf in jax.tree.leaves(result)]
    return sum(jnp.sum(leaf * rng.normal(size=leaf.shape)) for leaf in finite)


def check_derivatives(value, params):
    """By every parameter, against central differences."""
    flat, unravel = ravel_pytree(params)
    gradient = ravel_pytree(jax.jit(jax.grad(value))(params))[0]
    step, run = 1e-5, jax.jit(value)
    differences = [
        (run(unravel(flat + row)) - run(unravel(flat - row))) / (2 * step)
        for row in step * np.eye(flat.size)
    ]
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("measure", "name"),
    [
        ("state_gradients", "elman"),
        pytest.param("state_gradients", "lstm", marks=pytest.mark.slow),
        pytest.param("credit_matrix", "elman", marks=pytest.mark.slow),
        ("parameter_terms", "elman"),
        pytest.param("jacobian_product", "elman", marks=pytest.mark.slow),
    ],
)
def test_derivatives_equal_central_differences(measure, name):
    cell = CELLS[name]
    given = problem(cell)
    check_derivatives(
        lambda params: weigh(MEASURES[measure](cell, params, given.state, given.xs)), given.params
    )


def test_derivative_far_outside_float32():
    """ln|lambda_1| of a linear network is homogeneous: <d ln|lambda_1| / dW, W> = T - 1."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(0)
        steps = 2000
        W = jnp.asarray(np.exp(-3) * rng.normal(size=(H, H)), jnp.float32)
        cell = rnn_jax.elman(H, "identity")

        def first(W):
            params = rnn_jax.ElmanParams(jnp.zeros((1, H)), W, jnp.zeros(H))
            last = LastStep(lambda state: jnp.sum(state, axis=-1))
            logs = gradflow.state_gradients(cell, params, jnp.zeros(H), jnp.zeros((steps, 1)), last)
            return logs[0]

        value, gradient = jax.jit(jax.value_and_grad(first))(W)
    assert gradient.dtype == jnp.float32
    assert value < -1000
    np.testing.assert_allclose(np.vdot(gradient, W), steps - 1, rtol=1e-4)


def test_derivative_beside_padding():
    cell = CELLS["elman"]
    given = problem(cell)

    def value(params):
        logs = gradflow.state_gradients(
            cell, params, *given[1:], LastStep(last_loss), lengths=jnp.array([3, T, 1])
        )
        return weigh(logs)

    check_derivatives(value, given.params)


def test_derivative_beside_exact_zeros():
    """A dead step makes the rows before it -inf; the others keep their derivatives."""
    cell = CELLS["relu"]
    params, state, xs = problem(cell)
    params = params._replace(U=jnp.full_like(params.U, 5.0), W=0.1 * params.W)
    dead = np.arange(T)[:, None, None] == 2
    xs = jnp.asarray(np.where(dead, -1e3, 1.0) * np.ones((T, B, 2)))

    def logs(W):
        params_ = params._replace(W=W)
        return gradflow.state_gradients(cell, params_, state, xs, LastStep(last_loss))

    rows = jax.jit(logs)(params.W)
    assert np.all(np.isneginf(rows[:2]))
    assert np.all(np.isfinite(rows[2:]))
    check_derivatives(lambda W: weigh(logs(W)), params.W)
