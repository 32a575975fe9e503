"""Gradients cut to a window, against autodiff of runs whose states are held constant further back.

The answer is a plain scan with `stop_gradient`, one run for each loss and each window.
"""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax
from marks import slow
from networks import CELLS, B, T, problem, step_losses

import rnn_jax
from rnn_jax import gradflow

LENGTHS = np.array([4, T, 1])
VALID = np.arange(T)[:, None] < LENGTHS
ALL = np.ones((T, B))
ONLY_LAST = ALL * (np.arange(T) == T - 1)[:, None]


@functools.partial(jax.jit, static_argnums=0)
def truncated(cell, params, state, xs, shares, lengths):
    """sum_t of the gradients of L_t cut to each window, leaves `[T, ...]`, row w - 1 for window w.

    L_t of example b is shares[t, b] of its step loss, nothing past its length. s_{t - w} is held
    constant.
    """
    steps = jnp.arange(1, T + 1)

    def gradient(t, window):
        def loss(params):
            def body(s, inputs):
                k, x = inputs
                held = k - 1 <= t - window
                s = jax.tree.map(lambda a: jnp.where(held, lax.stop_gradient(a), a), s)
                s = cell.step(params, s, x)
                return s, s

            states = lax.scan(body, state, (steps, xs))[1]
            counted = jnp.where(t <= lengths, shares[t - 1], 0)
            return jnp.mean(counted * step_losses(states)[t - 1])

        return jax.grad(loss)(params)

    def of_window(window):
        return jax.tree.map(
            lambda g: jnp.sum(g, axis=0), jax.vmap(lambda t: gradient(t, window))(steps)
        )

    return lax.map(of_window, steps)


@functools.partial(jax.jit, static_argnums=0)
def measured(cell, params, state, xs, shares, lengths=None, windows=None):
    """`truncation_bias` of the same losses."""

    def losses(states):
        return shares * step_losses(states)

    return gradflow.truncation_bias(cell, params, state, xs, losses, windows, lengths=lengths)


def assert_equal(bias, gradients, rtol=1e-11):
    rows = networks.flat_units(gradients, 1)
    norms, full = np.linalg.norm(rows, axis=1), np.linalg.norm(rows[-1])
    np.testing.assert_array_equal(bias.windows, np.arange(1, T + 1))
    np.testing.assert_allclose(bias.norm_ratio, norms / full, rtol=rtol)
    np.testing.assert_allclose(bias.cosine, rows @ rows[-1] / (norms * full), rtol=rtol, atol=rtol)
    np.testing.assert_allclose([bias.norm_ratio[-1], bias.cosine[-1]], 1, rtol=1e-14)
    # Cutting must matter, or the lines above would say nothing.
    assert np.all(np.abs(norms[: T // 2] / full - 1) > 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["elman", slow("leaky"), "lstm", "user"])
def test_every_window_equals_autodiff_of_cut_runs(name):
    """Losses at every step and at the last; padding, whose inputs and losses play no part."""
    cell = CELLS[name]
    params, state, xs = problem(cell)
    padded = jnp.where(VALID[..., None], xs, 1e3)
    for shares, lengths, inputs in (
        (ALL, np.full(B, T), xs),
        (ONLY_LAST, np.full(B, T), xs),
        (ALL, LENGTHS, padded),
    ):
        gradients = truncated(cell, params, state, xs, shares, lengths)
        assert_equal(measured(cell, params, state, inputs, shares, lengths), gradients)


@pytest.mark.usefixtures("x64")
def test_answer_is_the_gradient_where_nothing_is_cut():
    """The answer above, held to `networks.summands`."""
    cell = CELLS["lstm"]
    given = problem(cell)
    gradients = truncated(cell, *given, ALL, np.full(B, T))
    parts = networks.summands(cell, *given)
    jax.tree.map(
        lambda g, p: np.testing.assert_allclose(g[-1], np.sum(p, axis=0), rtol=1e-10),
        gradients,
        parts,
    )


@pytest.mark.usefixtures("x64")
def test_chosen_windows_in_their_order_without_lengths():
    cell = CELLS["elman"]
    given = problem(cell)
    every = measured(cell, *given, ALL)
    assert_equal(every, truncated(cell, *given, ALL, np.full(B, T)))
    chosen = measured(cell, *given, ALL, None, jnp.array([4, 1, T, 4]))
    rows = np.array([3, 0, T - 1, 3])
    np.testing.assert_array_equal(chosen.windows, rows + 1)
    np.testing.assert_allclose(chosen.norm_ratio, np.asarray(every.norm_ratio)[rows], rtol=1e-14)
    np.testing.assert_allclose(chosen.cosine, np.asarray(every.cosine)[rows], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_outside_the_range_of_floats(dtype):
    """W = g * identity at rest, loss at the last step: dL/db = sum_{lag < window} g^lag v."""
    cell, steps = rnn_jax.elman(2, "identity"), 400
    windows = np.arange(1, steps + 1)

    @jax.jit
    def bias_of(W):
        params = rnn_jax.ElmanParams(jnp.zeros((1, 2), dtype), W, jnp.zeros(2, dtype))
        state, xs = jnp.zeros((1, 2), dtype), jnp.zeros((steps, 1, 1), dtype)
        losses = lambda states: states.sum(-1).at[:-1].set(0)  # noqa: E731
        return gradflow.truncation_bias(cell, params, state, xs, losses)

    with jax.enable_x64(dtype == np.float64):
        for g in (10.0, 0.1):
            bias = bias_of(jnp.asarray(g * np.eye(2), dtype))
            assert bias.norm_ratio.dtype == dtype
            # (1 - g^w) / (1 - g^T), taken apart so that nothing overflows here either.
            small = -np.expm1(-np.log(10) * windows) / -np.expm1(-np.log(10) * steps)
            wanted = np.exp((windows - steps) * np.log(10)) * small if g > 1 else small
            # Each of 400 products rounds W's 10 or 0.1, and exp multiplies a logarithm's rounding
            # by the logarithm, up to 921.
            tolerance = 921 * 4 * np.finfo(dtype).eps
            normal = wanted > np.finfo(dtype).tiny
            np.testing.assert_allclose(bias.norm_ratio[normal], wanted[normal], rtol=tolerance)
            assert np.all(bias.norm_ratio[~normal] <= 2 * np.finfo(dtype).tiny)
            np.testing.assert_allclose(bias.cosine, 1, rtol=10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("windows", [[0], [T + 1], [-1, 2], [1.5], []])
def test_windows_off_the_sequence(windows):
    given = problem(CELLS["elman"], dtype=np.float32)
    with pytest.raises(ValueError, match=rf"windows are .*1\.\.{T}"):
        gradflow.truncation_bias(CELLS["elman"], *given, step_losses, np.asarray(windows))
