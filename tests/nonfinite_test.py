"""Where a NaN or inf began, each put there at a known place."""

import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax import ElmanParams, gradflow
from rnn_jax.gradflow import Immediate, LastStep

B, H, D, T = 2, 2, 1, 10
IDENTITY, RELU = rnn_jax.elman(H, "identity"), rnn_jax.elman(H, "relu")


def total(states):
    return states.sum(-1)


def network(w=1.0, x=1.0):
    """W = w * identity, U = 1; xs all x."""
    params = ElmanParams(jnp.ones((D, H)), w * jnp.eye(H), jnp.zeros(H))
    return params, jnp.zeros((B, H)), jnp.full((T, B, D), x)


def origin(given, losses=total, cell=IDENTITY):
    return gradflow.origin_of_nonfinite(cell, *given, losses)


def test_all_is_finite():
    found = origin(network())
    assert (found.where, found.step) == ("", 0)
    assert "all is finite" in found.what


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("step", [1, 7, T])
def test_input(bad, step):
    params, state, xs = network()
    found = origin((params, state, xs.at[step - 1, 1, 0].set(bad)))
    assert (found.where, found.step) == ("xs", step)
    assert f"[{step - 1}, 1, 0] is {bad}" in found.what


def test_first_of_several_steps():
    params, state, xs = network()
    xs = xs.at[8, 0, 0].set(jnp.nan).at[4, 1, 0].set(jnp.inf)
    assert origin((params, state, xs))[:2] == ("xs", 5)


def test_weights_and_initial_state():
    params, state, xs = network()
    broken = params._replace(W=params.W.at[1, 0].set(jnp.inf))
    found = origin((broken, state, xs))
    assert (found.where, found.step) == ("params", 0)
    assert "W[1, 0] is inf" in found.what
    started = state.at[1, 1].set(jnp.nan)
    assert origin((broken, started, xs))[:2] == ("state", 0)
    assert origin((broken, started, xs.at[2].set(jnp.nan)))[:2] == ("xs", 3)


@pytest.mark.parametrize("cell", [IDENTITY, RELU])
def test_forward_overflow(cell):
    """s_t is about 1e10^(t-1), and float32 ends at 3.4e38."""
    found = origin(network(w=1e10), cell=cell)
    assert (found.where, found.step) == ("states", 5)
    assert "time step 5" in found.what
    assert origin(network(w=1e10, x=1e20), cell=cell)[:2] == ("states", 3)


def test_loss():
    """s_t = t, whose distance to 5.5 has no logarithm from step 6 on."""
    found = origin(network(), lambda states: jnp.log(5.5 - states).sum(-1))
    assert (found.where, found.step) == ("losses", 6)
    assert "time step 6" in found.what


def test_one_examples_loss():
    def losses(states):
        values = total(states)
        return values.at[3, 1].set(jnp.nan).at[8, 0].set(jnp.inf)

    assert origin(network(), losses)[:2] == ("losses", 4)


@pytest.mark.parametrize(("last", "step"), [(T, 6), (8, 4)])
def test_backward_overflow(last, step):
    """At rest, with a loss at one step: dL/ds_t is 1e10^(last - t), beyond 3.4e38 four back."""

    def losses(states):
        seen = jnp.arange(T)[:, None] == last - 1
        return jnp.where(jnp.broadcast_to(seen, (T, B)), total(states), 0)

    found = origin(network(w=1e10, x=0.0), losses)
    assert (found.where, found.step) == ("adjoints", step)
    assert f"time step {step}" in found.what


def test_loss_without_a_derivative():
    """The square root of 0, at step 7 alone."""

    def losses(states):
        return jnp.sqrt(jnp.abs(states[..., 0] - 7))

    params, state, xs = network()
    found = origin((params, state, xs), losses)
    assert (found.where, found.step) == ("adjoints", 7)


def test_gradient_of_the_weights():
    """States of 1e25 and adjoints of 1e20 are finite; their product, dL/dW, is not."""

    def losses(states):
        return jnp.sin(1e20 * (states - jnp.broadcast_to(states[:1], states.shape))).sum(-1)

    params, state, xs = network(w=0.0, x=1e25)
    assert np.isfinite(losses(jnp.ones((T, B, H)))).all()
    found = origin((params, state, xs), losses)
    assert found.where != ""


def test_losses_of_another_shape():
    with pytest.raises(ValueError, match="step_losses returned shape"):
        origin(network(), lambda states: states.sum())


# The other ways to give a loss


def test_loss_of_the_last_step():
    """Its value, its derivative, and a gradient that explodes going back from it."""
    given = network()
    assert origin(given, LastStep(lambda s: s.sum(-1))).where == ""
    found = origin(given, LastStep(lambda s: jnp.log(5.5 - s).sum(-1)))
    assert (found.where, found.step) == ("losses", T)
    assert f"the loss of time step {T} is not finite" in found.what
    # s_T is T, where the root has no derivative.
    found = origin(given, LastStep(lambda s: jnp.sqrt(jnp.abs(s[..., 0] - T))))
    assert (found.where, found.step) == ("adjoints", T)
    found = origin(network(w=1e10, x=0.0), LastStep(lambda s: s.sum(-1)))
    assert (found.where, found.step) == ("adjoints", 6)


def test_direct_gradients():
    """e_t in the loss's place; dL/ds_t is 1e10^(8 - t) times e_8."""
    e = np.zeros((T, B, H))
    e[7] = 1
    assert origin(network(), Immediate(e)).where == ""
    assert origin(network(w=1e10, x=0.0), Immediate(e))[:2] == ("adjoints", 4)
    e[3, 1, 0] = np.nan
    found = origin(network(), Immediate(e))
    assert (found.where, found.step) == ("losses", 4)
    assert "e_t is not finite at time step 4" in found.what


def test_padding_may_hold_anything():
    """Inputs, losses and direct gradients past an example's length; not so before it."""
    params, state, xs = network()
    lengths = np.array([T, 6])
    padding = (np.arange(T)[:, None] >= lengths)[..., None]
    given = (params, state, jnp.where(padding, jnp.nan, xs))
    targets = jnp.where(padding[..., 0], jnp.nan, 0.0)

    def losses(states):
        return total(states) - targets

    e = jnp.where(padding, jnp.inf, jnp.ones((T, B, H)))
    for loss in (losses, Immediate(e), LastStep(lambda s: s.sum(-1))):
        assert gradflow.origin_of_nonfinite(IDENTITY, *given, loss, lengths=lengths).where == ""
    broken = (params, state, given[2].at[5, 1, 0].set(jnp.nan))
    found = gradflow.origin_of_nonfinite(IDENTITY, *broken, losses, lengths=lengths)
    assert (found.where, found.step) == ("xs", 6)
