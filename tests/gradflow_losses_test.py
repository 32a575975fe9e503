"""The three ways to give a loss: each function takes all of them, or refuses at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CELLS, B, H, T, problem, step_losses

from rnn_jax import gradflow
from rnn_jax.gradflow import Immediate, LastStep

pytestmark = pytest.mark.usefixtures("x64")
CELL = CELLS["elman"]
LENGTHS = np.array([4, T, 1])
VALID = np.arange(T)[:, None] < LENGTHS
MEASURES = {
    "state_gradients": gradflow.state_gradients,
    "segments": functools.partial(gradflow.state_gradients, segment_length=4),
    "credit_matrix": functools.partial(gradflow.credit_matrix, max_rows=T),
    "truncation_bias": gradflow.truncation_bias,
}
REFUSED = {"last": {"credit_matrix"}, "every": {"segments"}, "direct": set()}


def last_loss(state):
    return jnp.sum(jnp.sin(state) * state, axis=-1)


@functools.cache
def program(kind):
    """All measures but those that refuse this kind of loss, on a padded batch."""

    def run(given, e):
        losses = {"every": step_losses, "last": LastStep(last_loss), "direct": Immediate(e)}[kind]
        return {
            name: measure(CELL, *given, losses, lengths=LENGTHS)
            for name, measure in MEASURES.items()
            if name not in REFUSED[kind]
        }

    return jax.jit(run)


def states_by_hand(given):
    params, s, xs = jax.tree.map(np.asarray, tuple(given))
    states = []
    for x, valid in zip(xs, VALID, strict=True):
        s = np.where(valid[:, None], np.tanh(x @ params.U + s @ params.W + params.b), s)
        states.append(s)
    return np.array(states)


def assert_close(given, wanted):
    assert given.keys() >= wanted.keys()
    for name, value in wanted.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
            given[name],
            value,
        )


def test_direct_gradients_in_the_place_of_losses():
    """e_t by hand, with rubbish on padding, where it does not count."""
    given = problem(CELL)
    e = jax.grad(lambda s: jnp.sum(step_losses(s)))(states_by_hand(given))
    e = jnp.where(VALID[..., None], e, np.nan)
    found, wanted = program("direct")(given, e), program("every")(given, None)
    assert len(wanted) == len(MEASURES) - 1
    assert_close(found, wanted)
    np.testing.assert_allclose(found["segments"], found["state_gradients"], rtol=1e-14)


def test_loss_of_the_last_step_in_the_place_of_losses():
    """Each example's last true step is its own."""
    given = problem(CELL)
    final = states_by_hand(given)[-1]
    at_last = (np.arange(T)[:, None] == LENGTHS - 1)[..., None]
    e = jnp.where(at_last, np.sin(final) + final * np.cos(final), 0)
    found, wanted = program("last")(given, None), program("direct")(given, e)
    del wanted["credit_matrix"]
    assert_close(found, wanted)


def test_rubbish_on_padding_is_not_looked_at_outside_jit_either():
    given = problem(CELL)
    e = jnp.where(VALID[..., None], jnp.ones((T, B, H)), np.nan)
    logs = gradflow.state_gradients(CELL, *given, Immediate(e), lengths=LENGTHS)
    np.testing.assert_array_equal(np.isfinite(logs), VALID)


@pytest.mark.parametrize("batch_shape", [(B,), ()])
def test_diagnosis_from_direct_gradients(batch_shape):
    given = problem(CELL, batch_shape, num_steps=40)
    e = np.zeros((40, *batch_shape, H))
    e[-1] = 1 + np.arange(H)

    def losses(states):
        return jnp.sum(jnp.asarray(e) * states, axis=-1)

    found = gradflow.diagnose(CELL, *given, Immediate(e))
    assert found == gradflow.diagnose(CELL, *given, losses)
    assert found.verdict != "dead"


def test_value_and_gradients_of_a_loss_at_the_last_step():
    """Its mean over the batch; further arguments are handed on."""
    given = problem(CELL)

    def of_last(state, factor):
        return factor * last_loss(state)

    def of_states(states, factor):
        return jnp.mean(factor * last_loss(states[-1]))

    found, wanted = (
        jax.jit(gradflow.value_and_grad(CELL, loss))(*given, 3.0, lengths=LENGTHS)
        for loss in (LastStep(of_last), of_states)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, wanted)
    with pytest.raises(ValueError, match="an Immediate has none"):
        gradflow.value_and_grad(CELL, Immediate(given.state))


def test_a_matrix_of_one_row_is_refused():
    with pytest.raises(ValueError, match="its one row is state_gradients"):
        gradflow.credit_matrix(CELL, *problem(CELL), LastStep(last_loss))


EVERY = {
    **MEASURES,
    "leaf_gradients": gradflow.leaf_gradients,
    "parameter_terms": gradflow.parameter_terms,
    "diagnose": gradflow.diagnose,
    "origin": gradflow.origin_of_nonfinite,
}


@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_loss_is_refused_at_once(name):
    given, measure = problem(CELL), EVERY[name]
    with pytest.raises(ValueError, match=r"step_losses is of type ndarray; .*Immediate\(e\)"):
        measure(CELL, *given, np.zeros((T, B)))
    for wrong in (jnp.zeros((T - 1, B, H)), {"h": jnp.zeros((T, B, H))}):
        with pytest.raises(ValueError, match=rf"Immediate has shape .*have \({T}, {B}, {H}\)"):
            measure(CELL, *given, Immediate(wrong))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "origin"])
def test_direct_gradients_that_are_not_finite_are_refused_with_their_place(name):
    e = np.zeros((T, B, H))
    e[2, 1, 3] = np.inf
    with pytest.raises(ValueError, match=r"Immediate is not finite: \[2, 1, 3\] is inf"):
        EVERY[name](CELL, *problem(CELL), Immediate(e))
