"""Inputs that are a pytree, against the same numbers side by side in one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax import gradflow

T, B, D, H = 7, 3, 2, 4


def step_of_array(params, state, x):
    return step_of_tree(params, state, {"x": x[..., :D], "on": x[..., D:], "t": x[..., :0]})


def step_of_tree(params, state, x):
    U, W = params
    new = jnp.tanh(x["x"] @ U + state["h"] @ W)
    # A counter has no batch axis: it is the same for all examples.
    factor = jnp.where(x["t"] % 2 == 0, 1.0, 1.0) if x["t"].ndim == 0 else 1.0
    return {"h": factor * jnp.where(x["on"] > 0, new, 0.5 * state["h"])}


def initial_state(params, batch_shape=()):
    return {"h": jnp.zeros((*batch_shape, H), params[1].dtype)}


def cell_of(step):
    return rnn_jax.Cell(None, initial_state, step, lambda state: state["h"])


@pytest.fixture
def network(x64):
    rng = np.random.default_rng(0)
    params = tuple(jnp.asarray(0.7 * rng.normal(size=(n, H))) for n in (D, H))
    x, on = rng.normal(size=(T, B, D)), rng.normal(size=(T, B, 1))
    tree = {"x": jnp.asarray(x), "on": jnp.asarray(on), "t": jnp.arange(T)}
    state = {"h": jnp.asarray(rng.normal(size=(B, H)))}
    array = jnp.asarray(np.concatenate([x, on], axis=-1))
    return params, state, tree, array


def losses(states):
    return jnp.sum(jnp.sin(states["h"]), axis=-1)


LENGTHS = np.array([7, 2, 5])
MEASURES = {
    "state_gradients": lambda *given: gradflow.state_gradients(*given, losses, lengths=LENGTHS),
    "credit": lambda *given: gradflow.credit_matrix(*given, losses, lengths=LENGTHS),
    "terms": lambda *given: gradflow.parameter_terms(*given, losses, lengths=LENGTHS),
    "truncation": lambda *given: gradflow.truncation_bias(*given, losses, lengths=LENGTHS)[1:],
    "jacobians": gradflow.jacobian_product,
    "exponents": lambda *given: gradflow.lyapunov_spectrum(*given, burn_in=2, qr_every=2),
    "sensitivity": gradflow.parameter_sensitivity,
    "segments": lambda *given: gradflow.state_gradients(
        *given, gradflow.LastStep(lambda s: s["h"].sum(-1)), segment_length=3
    ),
    "value_and_grad": lambda cell, *given: gradflow.value_and_grad(cell, losses)(*given),
    "unroll": lambda *given: rnn_jax.unroll(*given, lengths=LENGTHS),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_tree_is_measured_as_the_same_numbers_in_one_array(network, name):
    params, state, tree, array = network
    got = MEASURES[name](cell_of(step_of_tree), params, state, tree)
    wanted = MEASURES[name](cell_of(step_of_array), params, state, array)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)  # noqa: E731
    jax.tree.map(close, got, wanted)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(got))


def test_diagnosis_and_origin_of_a_tree(network):
    params, state, tree, array = network
    found = gradflow.diagnose(cell_of(step_of_tree), params, state, tree, losses)
    wanted = gradflow.diagnose(cell_of(step_of_array), params, state, array, losses)
    assert str(found) == str(wanted)
    bad = {**tree, "x": tree["x"].at[3, 1].set(jnp.nan)}
    origin = gradflow.origin_of_nonfinite(cell_of(step_of_tree), params, state, bad, losses)
    assert origin.where == "xs"
    assert origin.step == 4


def test_a_tree_of_unequal_lengths_is_refused(network):
    params, state, tree, _ = network
    with pytest.raises(ValueError, match="every leaf wants time as its first axis"):
        rnn_jax.unroll(cell_of(step_of_tree), params, state, {**tree, "t": jnp.arange(T - 1)})
    with pytest.raises(ValueError, match="axes for the batch"):
        rnn_jax.unroll(cell_of(step_of_tree), params, {"h": jnp.zeros((B, H + 1))}, tree)


def test_terms_with_care_of_a_step_that_takes_the_whole_batch_alone(network):
    """Quiet examples beside one whose adjoint is 1e300 times larger and adds nothing."""
    params, state, tree, array = network

    def loud(states):
        return jnp.sum(states["h"], -1) * jnp.asarray([[1.0, 1e-300, 1e-290]])

    def steep(step):
        def batched(params, state, x):
            if state["h"].ndim != 2:
                raise ValueError("this step takes the whole batch")
            new = step(params, state, x)["h"]
            return {"h": new * jnp.asarray([[0.0], [1.0], [1.0]])}

        return cell_of(batched)

    def alone(params, state, x):
        quiet = x[..., D + 1 :]
        return {"h": step_of_array(params, state, x[..., : D + 1])["h"] * quiet}

    on = jnp.broadcast_to(jnp.asarray([[0.0], [1.0], [1.0]]), (T, B, 1))
    got = gradflow.parameter_terms(steep(step_of_tree), params, state, tree, loud)
    whole = jnp.concatenate([array, on], -1)
    wanted = gradflow.parameter_terms(cell_of(alone), params, state, whole, loud)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, wanted)
