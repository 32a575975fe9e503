"""A cell that nobody knows: which of its parameters has a hold on the gradient is measured."""

import jax
import jax.numpy as jnp
import numpy as np
from remedied_networks import (
    B,
    H,
    T,
    independent_horizon,
    independent_logs,
    independent_rate,
    inputs,
)

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import LastStep

XS = inputs(0.1)
LAST = LastStep(lambda state: state.sum(-1))


def cell_of(step, units=H):
    return rnn_jax.Cell(
        init=None,
        initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, units)),
        step=step,
    )


def diagnosed(cell, params, state=None, xs=XS):
    state = cell.initial_state(params, (B,)) if state is None else state
    return gradflow.diagnose(cell, params, state, xs, LAST)


def normal(shape, std, seed=0):
    return jnp.asarray(std * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def names(found):
    return [remedy.name for remedy in found.remedies]


def test_the_matrix_that_the_jacobian_scales_with_is_found():
    """Two matrices of the same shape: one acts on the state, the other on the inputs."""
    cell = cell_of(
        lambda p, s, x: jnp.tanh(s @ p["mix"] + jnp.broadcast_to(x, (*x.shape[:-1], H)) @ p["also"])
    )
    params = {"also": normal((H, H), 0.3, 1), "mix": normal((H, H), 0.5 / np.sqrt(H))}
    found = diagnosed(cell, params)
    assert (found.verdict, names(found)[0]) == ("vanishing", "gain")
    assert names(found)[-1] == "gated cell"
    assert f"rnn_jax.lstm({H}, forget_bias=3.7)" in found.remedies[-1].advice
    first = found.remedies[0]
    assert f"multiply params['mix'] by {first.setting:.3g}" in first.advice
    scaled = {**params, "mix": first.setting * params["mix"]}
    state = cell.initial_state(params, (B,))
    rate, before = (
        independent_rate(independent_logs(cell, p, state, XS)) for p in (scaled, params)
    )
    assert abs(rate) < 0.2 * abs(before)
    np.testing.assert_allclose([first.before, first.after], [before, rate], atol=0.01)


def test_the_bias_of_a_gate_is_found_among_biases_side_by_side():
    """Gates n, f: the memory is in the second half of b."""

    def step(p, s, x):
        b, x = (jnp.broadcast_to(a, (*s.shape[:-1], 2 * H)) for a in (p["b"], x))
        z = s @ p["W"] + b + x
        f = jax.nn.sigmoid(z[..., H:])
        return f * s + (1 - f) * jnp.tanh(z[..., :H])

    cell = cell_of(step)
    params = {"W": normal((H, 2 * H), 0.05), "b": jnp.zeros(2 * H)}
    found = diagnosed(cell, params)
    bias = {remedy.name: remedy for remedy in found.remedies}["bias"]
    assert f"add {bias.setting:.3g} to params['b'][{H}:{2 * H}]" in bias.advice
    assert bias.setting > 1
    shifted = {**params, "b": params["b"].at[H:].add(bias.setting)}
    state = cell.initial_state(params, (B,))
    before, after = (
        independent_horizon(independent_logs(cell, p, state, XS)) for p in (params, shifted)
    )
    assert after > 2 * before


def test_a_start_far_from_where_the_state_settles():
    """A state above 1 is halved at each step, one below stays as it is."""
    cell = cell_of(lambda p, s, x: jnp.where(s > 1, s / 2, s) + 0 * p)
    start = jnp.full((B, H), 2.0**30)
    found = diagnosed(cell, jnp.ones(()), start)
    assert found.verdict == "vanishing"
    assert names(found) == ["initial state", "gated cell"]
    advice = found.remedies[0]
    # It halves until it is 1.
    assert (advice.setting, advice.after) == (1.0, np.inf)
    assert f"units of s_0 are {2.0**30:.2g} in size, those of s_T 1;" in advice.advice
    after = diagnosed(cell, jnp.ones(()), jnp.full((B, H), advice.setting))
    assert after.verdict == "healthy"


def test_a_state_that_stays_zero_teaches_its_weights_nothing():
    """s_t = 1.3 s_{t-1} from 0: dL/ds grows, dL/dtheta is 0."""
    cell = cell_of(lambda p, s, x: p * s + 0 * x)
    found = diagnosed(cell, jnp.asarray(1.3))
    assert found.verdict == "exploding"
    advice = {remedy.name: remedy for remedy in found.remedies}["initial state"]
    assert (advice.setting, advice.before) == (0.1, 0.0)
    # d/dp of the sum over H units of p^T s_0.
    np.testing.assert_allclose(advice.after, H * T * 1.3 ** (T - 1) * 0.1, rtol=1e-4)


def test_parameters_that_are_a_bare_array():
    found = diagnosed(
        cell_of(lambda W, s, x: jnp.tanh(s @ W + x)), normal((H, H), 0.6 / np.sqrt(H))
    )
    assert names(found)[0] == "gain"
    assert "multiply params by" in found.remedies[0].advice
    assert "draw params orthogonal" in found.remedies[1].advice


def test_no_parameter_at_all():
    found = diagnosed(cell_of(lambda p, s, x: jnp.tanh(0.5 * s + x)), ())
    assert names(found) == ["gated cell"]
    assert (
        gradflow.diagnose(cell_of(lambda p, s, x: 2 * s), (), jnp.ones((B, H)), XS, LAST).remedies
        == ()
    )
