"""Each remedy, taken as it is worded, moves the number that it was named for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from rnn_jax import ElmanParams, gradflow
from rnn_jax.gradflow import LastStep
from rnn_jax.training import optim

B, H, T = 3, 8, 40
LAST = LastStep(lambda state: state.sum(-1))
LAST_H = LastStep(lambda state: state.h.sum(-1))
IDENTITY, RELU, TANH = (rnn_jax.elman(H, phi) for phi in ("identity", "relu", "tanh"))


LEAKY, LSTM = rnn_jax.leaky(H, "identity"), rnn_jax.lstm(H)


def random(std, shape, seed=0):
    values = std * np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def orthogonal(gain=1.0):
    return rnn_jax.initializers.orthogonal(gain)(jax.random.key(1), (H, H))


def elman(W, u=0.3, bias=0.0):
    return ElmanParams(random(u, (1, H)), jnp.asarray(W, jnp.float32), jnp.full(H, bias))


XS = random(1.0, (T, B, 1), seed=5)


def diagnosed(cell, params, xs=XS, losses=LAST):
    return gradflow.diagnose(cell, params, cell.initial_state(params, (B,)), xs, losses)


def remedy(found, name):
    """The remedy of that name; the diagnosis must contain it."""
    return {remedy.name: remedy for remedy in found.remedies}[name]


@pytest.mark.parametrize(
    ("cell", "gain", "u", "verdict"),
    [
        (IDENTITY, 0.7, 0.3, "vanishing"),
        (IDENTITY, 1.4, 0.3, "exploding"),
        (TANH, 0.5, 0.1, "vanishing"),
    ],
    ids=["identity-vanishing", "identity-exploding", "tanh"],
)
def test_scale_w(cell, gain, u, verdict):
    params = elman(orthogonal(gain), u)
    before = diagnosed(cell, params)
    assert before.verdict == verdict
    advice = remedy(before, "scale W")
    assert advice.moves == "slope"
    assert f"{advice.setting:.3g}" in advice.advice
    after = diagnosed(cell, params._replace(W=params.W * advice.setting))
    assert abs(after.slope) < 0.2 * abs(before.slope)
    assert after.verdict == "healthy"


@pytest.mark.parametrize(("leak", "w"), [(0.1, 4.0), (0.4, 0.0), (0.4, -1.0)])
def test_scale_w_of_a_leaky_cell(leak, w):
    """1 - leak of the gradient goes past W, so what scales W must count it, or say something else.

    W = w * identity and no input: each step back is a factor 1 - leak + leak w.
    """
    params = rnn_jax.LeakyParams(*elman(w * np.eye(H)), jnp.asarray(leak))
    before = diagnosed(LEAKY, params, jnp.zeros_like(XS))
    np.testing.assert_allclose(before.slope, np.log(abs(1 - leak + leak * w)), rtol=1e-5)
    for advice in before.remedies:
        if advice.name == "scale W":
            scaled = params._replace(W=params.W * advice.setting)
            after = diagnosed(LEAKY, scaled, jnp.zeros_like(XS))
            assert abs(after.slope) < 0.2 * abs(before.slope)


def test_orthogonal_w():
    W = rnn_jax.initializers.gaussian(0.7)(jax.random.key(0), (H, H))
    params = elman(W, u=0.1)
    before = diagnosed(TANH, params)
    advice = remedy(before, "orthogonal W")
    assert (before.verdict, advice.moves) == ("vanishing", "slope")
    values = np.linalg.svd(np.asarray(W, np.float64), compute_uv=False)
    assert f"from {values[-1]:.2g} to {values[0]:.2g}" in advice.advice
    after = diagnosed(TANH, params._replace(W=orthogonal(advice.setting)))
    assert abs(after.slope) < 0.2 * abs(before.slope)


def test_smaller_pre_activations():
    params = elman(orthogonal(), u=5.0)
    before = diagnosed(TANH, params)
    advice = remedy(before, "smaller pre-activations")
    assert before.saturation > 0.3
    assert f"{before.saturation:.0%}" in advice.advice
    assert advice.moves == "saturation"
    # W is orthogonal already.
    assert "orthogonal W" not in [other.name for other in before.remedies]
    scale = advice.setting
    smaller = params._replace(U=scale * params.U, W=scale * params.W)
    after = diagnosed(TANH, smaller, scale * XS)
    assert after.saturation < 0.75 * before.saturation


def test_a_relu_is_not_told_to_scale():
    """phi' of a ReLU is 0 or 1 at any scale."""
    params = elman(0.5 * orthogonal(), u=1.0)
    before = diagnosed(RELU, params)
    assert before.saturation > 0.3
    assert before.verdict in ("vanishing", "dead")
    for advice in before.remedies:
        if advice.name == "smaller pre-activations":
            scale = advice.setting
            smaller = params._replace(U=scale * params.U, W=scale * params.W)
            assert diagnosed(RELU, smaller, scale * XS).saturation < before.saturation


def lstm_params(forget, output=0.0):
    params = LSTM.init(jax.random.key(2), 1)
    b = jnp.repeat(jnp.array([0.0, forget, 0.0, output]), H)
    return params._replace(U=0.3 * params.U, W=0.1 * params.W, b=b)


def test_forget_gate_bias():
    params = lstm_params(forget=-0.5)
    before = diagnosed(LSTM, params, losses=LAST_H)
    advice = remedy(before, "forget-gate bias")
    assert (before.verdict, advice.moves) == ("vanishing", "horizon")
    np.testing.assert_allclose(advice.setting, np.log(T - 1))
    assert f"{1 / (1 + np.exp(0.5)):.3f}" in advice.advice
    mended = params._replace(b=params.b.at[H : 2 * H].set(advice.setting))
    after = diagnosed(LSTM, mended, losses=LAST_H)
    assert after.horizon > 5 * before.horizon
    assert after.verdict == "healthy"


def test_open_forget_gate_is_not_told_to_close():
    """Here the output gate is shut, and no bias of the forget gate is to blame."""
    params = lstm_params(forget=7.0, output=-12.0)
    before = diagnosed(LSTM, params, losses=LAST_H)
    assert before.verdict == "vanishing"
    for advice in before.remedies:
        if advice.name == "forget-gate bias":
            assert advice.setting > 7.0


def test_gated_cell():
    before = diagnosed(TANH, elman(orthogonal(0.5)))
    advice = remedy(before, "gated cell")
    assert (before.verdict, advice.moves) == ("vanishing", "horizon")
    assert f"rnn_jax.lstm({H}, forget_bias={advice.setting:.1f})" in advice.advice
    params = rnn_jax.lstm(H, forget_bias=advice.setting).init(jax.random.key(3), 1)
    after = diagnosed(LSTM, params, losses=LAST_H)
    assert after.horizon > 5 * before.horizon


def test_clip_the_gradient():
    params = elman(orthogonal(1.5))
    before = diagnosed(IDENTITY, params)
    advice = remedy(before, "clip the gradient")
    assert (before.verdict, advice.moves) == ("exploding", "gradient norm")
    growth = float(advice.advice.partition("grows ")[2].partition("-fold")[0])
    np.testing.assert_allclose(growth, 1.5 ** (T - 1), rtol=1e-2)
    assert f"clip_norm={advice.setting}" in advice.advice
    evaluate = gradflow.value_and_grad(IDENTITY, lambda states: states[-1].sum())
    grads = evaluate(params, IDENTITY.initial_state(params, (B,)), XS)[1]
    optimizer = optim.recorded(optax.sgd(1.0), clip_norm=advice.setting)
    updates, opt_state = optimizer.update(grads, optimizer.init(params))
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in grads))
    np.testing.assert_allclose(optim.raw_norm(opt_state), norm, rtol=1e-5)
    assert norm > 1e5
    np.testing.assert_allclose(optax.tree.norm(updates), advice.setting, rtol=1e-5)


def test_growth_beyond_the_range_of_floats_is_told_in_tens():
    before = diagnosed(IDENTITY, elman(1e12 * np.eye(H)), xs=jnp.zeros_like(XS))
    assert before.verdict == "exploding"
    assert f"10^{12 * (T - 1)}-fold" in remedy(before, "clip the gradient").advice


def test_nothing_to_mend():
    assert diagnosed(IDENTITY, elman(0.97 * np.eye(H))).remedies == ()
