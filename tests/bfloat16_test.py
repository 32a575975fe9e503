"""Products of bfloat16 factors: what is rounded, what is not, and that hardware is told."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from marks import slow

import rnn_jax

H, B, D, T = 5, 3, 2, 9


def rounded(a):
    return np.asarray(a, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def test_elman_by_hand():
    """Forward with rounded factors, backward with the rounded W and adjoints left exact."""
    cell = rnn_jax.bfloat16_products(rnn_jax.elman(H))
    draw = np.random.default_rng(0)
    U, W, b = (draw.normal(size=shape) for shape in ((D, H), (H, H), (H,)))
    params = rnn_jax.ElmanParams(*(jnp.asarray(a, jnp.float32) for a in (U, W, b)))
    xs = jnp.asarray(draw.normal(size=(T, B, D)), jnp.float32)
    weights = draw.normal(size=(T, B, H))
    zeros = rnn_jax.zero_perturbations(cell.initial_state(params, (B,)), T)

    def loss(params, perturbations):
        start = cell.initial_state(params, (B,))
        states = rnn_jax.unroll(cell, params, start, xs, perturbations=perturbations)
        return jnp.sum(states * jnp.asarray(weights, jnp.float32))

    gradient, adjoints = jax.jit(jax.grad(loss, (0, 1)))(params, zeros)

    state, states = np.zeros((B, H)), []
    for x in np.asarray(xs):
        before = rounded(x) @ rounded(U) + rounded(state) @ rounded(W) + b
        states.append((state, np.tanh(before)))
        state = states[-1][1]
    wanted, recurrent = np.zeros((T, B, H)), np.zeros((H, H))
    future = np.zeros((B, H))
    for t in reversed(range(T)):
        previous, now = states[t]
        wanted[t] = weights[t] + future
        delta = wanted[t] * (1 - now**2)
        recurrent += rounded(previous).T @ delta
        future = delta @ rounded(W).T
    np.testing.assert_allclose(adjoints, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient.W, recurrent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", [rnn_jax.elman, rnn_jax.lstm, slow(rnn_jax.gru)])
def test_accelerators_multiply_in_bfloat16_and_add_in_float32(maker):
    cell = rnn_jax.bfloat16_products(maker(H))
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((T, B, D), jnp.float32)

    def loss(params, xs):
        states = rnn_jax.unroll(cell, params, cell.initial_state(params, (B,)), xs)
        return jnp.sum(cell.emit(states))

    for platform in ("cuda", "tpu"):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, xs)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert len(products) >= 5
        for line in products:
            assert "lhs_precision_type = bf16, rhs_precision_type = bf16" in line
            assert "accumulation_type = f32" in line


def test_a_cell_without_parts_is_refused():
    cell = rnn_jax.elman(H)._replace(affine=None)
    with pytest.raises(ValueError, match="wants a cell with `affine` parts"):
        rnn_jax.bfloat16_products(cell)
