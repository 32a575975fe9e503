"""What is wrong is said: NaN, inf and overflow with their place, shapes and counts with both."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CELLS, B, H, T, problem, step_losses

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import LastStep, finite


def last_loss(state):
    return sum(jnp.sum(leaf**2, axis=-1) for leaf in jax.tree.leaves(state))


def all_losses(states):
    return sum(jnp.sum(leaf**2, axis=-1) for leaf in jax.tree.leaves(states))


MEASURES = {
    "state_gradients": lambda *given: gradflow.state_gradients(*given, all_losses),
    "segments": lambda *given: gradflow.state_gradients(
        *given, LastStep(last_loss), segment_length=given[-1].shape[0]
    ),
    "leaf_gradients": lambda *given: gradflow.leaf_gradients(*given, all_losses),
    "credit_matrix": lambda *given: gradflow.credit_matrix(*given, all_losses),
    "parameter_terms": lambda *given: gradflow.parameter_terms(*given, all_losses),
    "jacobian_product": gradflow.jacobian_product,
    "lyapunov_spectrum": gradflow.lyapunov_spectrum,
    "value_and_grad": lambda cell, *given: gradflow.value_and_grad(cell, all_losses)(*given),
}


@pytest.fixture(params=MEASURES)
def measure(request):
    return MEASURES[request.param]


# Bad numbers


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_are_refused_with_their_place(measure, bad):
    cell = CELLS["lstm"]
    given = problem(cell)
    index = (3, 1, 1)
    xs = given.xs.at[index].set(bad).at[5, 2, 0].set(bad)
    with pytest.raises(ValueError, match=rf"^xs is not finite: \[3, 1, 1\] is {bad}"):
        measure(cell, given.params, given.state, xs)
    state = given.state._replace(h=given.state.h.at[2, 3].set(bad))
    with pytest.raises(ValueError, match=rf"^state is not finite: h\[2, 3\] is {bad}"):
        measure(cell, given.params, state, given.xs)
    params = given.params._replace(W=given.params.W.at[1, 0].set(bad))
    with pytest.raises(ValueError, match=rf"^params is not finite: W\[1, 0\] is {bad}"):
        measure(cell, params, given.state, given.xs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_the_first_bad_number_of_any_float_is_found(dtype):
    values = jnp.zeros((4, 3), dtype)
    assert finite.first_nonfinite({"a": values, "n": jnp.arange(3), "z": values}) is None
    bad = {"a": values, "n": jnp.arange(3), "z": values.at[2, 1].set(np.nan).at[3, 0].set(np.inf)}
    assert finite.first_nonfinite(bad) == "z[2, 1] is nan"


def exploding(num_steps=8):
    """s_t = 1e10^(t-1): more than float32 holds at step 5, inf - inf at step 6."""
    params = rnn_jax.ElmanParams(jnp.ones((1, H)), 1e10 * jnp.eye(H), jnp.zeros(H))
    xs = jnp.zeros((num_steps, B, 1)).at[0].set(1)
    return rnn_jax.elman(H, "identity"), params, jnp.zeros((B, H)), xs


def test_states_that_explode_are_refused_with_their_step(measure):
    with pytest.raises(ValueError, match="leave the finite range at time step 5 of 8"):
        measure(*exploding())


@pytest.mark.parametrize("segment_length", [1, 3])
def test_states_that_explode_between_segments(segment_length):
    with pytest.raises(ValueError, match="leave the finite range at time step 5 of 8"):
        gradflow.state_gradients(*exploding(), LastStep(last_loss), segment_length=segment_length)


def test_under_jit_a_bad_number_goes_through():
    cell = CELLS["elman"]
    params, state, xs = problem(cell)
    run = jax.jit(gradflow.state_gradients, static_argnums=(0, 4))
    logs = run(cell, params, state, xs.at[3, 1, 0].set(np.nan), all_losses)
    bad = np.isnan(logs)
    assert np.all(bad[:, 1])
    assert not np.any(bad[:, [0, 2]])


# Shapes and counts


@pytest.mark.parametrize(
    "losses",
    [
        lambda states: jnp.sum(states**2),
        lambda states: jnp.sum(states**2, axis=(1, 2)),
        lambda states: states**2,
        lambda states: jnp.sum(states[1:] ** 2, axis=-1),
        lambda states: jnp.sum(states**2, axis=-1).T,
    ],
    ids=["scalar", "[T]", "[T, B, H]", "[T - 1, B]", "[B, T]"],
)
@pytest.mark.parametrize(
    "function", [gradflow.state_gradients, gradflow.credit_matrix, gradflow.parameter_terms]
)
def test_losses_of_another_shape(function, losses):
    given = problem(CELLS["elman"])
    shape = jax.eval_shape(losses, jnp.zeros((T, B, H))).shape
    message = re.escape(f"returned shape {shape}, but the states want ({T}, {B})")
    with pytest.raises(ValueError, match=message):
        function(CELLS["elman"], *given, losses)


def test_value_and_grad_wants_a_scalar_or_all_steps():
    evaluate = gradflow.value_and_grad(CELLS["elman"], lambda states: jnp.sum(states, axis=(1, 2)))
    with pytest.raises(ValueError, match=rf"shape \({T},\), but the states want \({T}, {B}\)"):
        evaluate(*problem(CELLS["elman"]))


@pytest.mark.parametrize("segment_length", [None, 2])
def test_last_step_of_another_shape(segment_length):
    last = LastStep(lambda state: jnp.sum(state**2))
    with pytest.raises(ValueError, match=rf"shape \(\), but the batch has \({B},\)"):
        gradflow.state_gradients(
            CELLS["elman"], *problem(CELLS["elman"]), last, segment_length=segment_length
        )


def test_state_of_another_shape(measure):
    params, state, xs = problem(CELLS["elman"])
    message = rf"shape \(2, {H}\), but .* want \({B}, {H}\)"
    with pytest.raises(ValueError, match=message):
        measure(CELLS["elman"], params, state[:2], xs)


def test_inputs_of_another_size(measure):
    params, state, xs = problem(CELLS["elman"])
    with pytest.raises(ValueError, match=rf"x of shape \({B}, 1\)"):
        measure(CELLS["elman"], params, state, xs[..., :1])


def test_no_steps(measure):
    params, state, xs = problem(CELLS["elman"])
    with pytest.raises(ValueError, match="no time step"):
        measure(CELLS["elman"], params, state, xs[:0])


@pytest.mark.parametrize("segment_length", [0, -1, T + 1])
def test_segments_that_do_not_fit(segment_length):
    with pytest.raises(ValueError, match=rf"segment_length is {segment_length}.* 1\.\.{T}"):
        gradflow.state_gradients(
            CELLS["elman"],
            *problem(CELLS["elman"]),
            LastStep(last_loss),
            segment_length=segment_length,
        )


def test_segments_want_a_loss_of_the_last_step():
    with pytest.raises(ValueError, match=r"wrap it as gradflow\.LastStep"):
        gradflow.state_gradients(
            CELLS["elman"], *problem(CELLS["elman"]), step_losses, segment_length=2
        )


def test_credit_wants_the_losses_of_all_steps():
    with pytest.raises(ValueError, match="wants the losses of all steps"):
        gradflow.credit_matrix(CELLS["elman"], *problem(CELLS["elman"]), LastStep(last_loss))


@pytest.mark.parametrize("max_rows", [0, -3])
def test_credit_wants_a_row_at_least(max_rows):
    with pytest.raises(ValueError, match=f"max_rows is {max_rows}"):
        gradflow.credit_matrix(
            CELLS["elman"], *problem(CELLS["elman"]), step_losses, max_rows=max_rows
        )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_exponents", 0, rf"1\.\.{H}"),
        ("num_exponents", H + 1, rf"1\.\.{H}"),
        ("burn_in", -1, rf"0\.\.{T - 1}"),
        ("burn_in", T, rf"0\.\.{T - 1}"),
        ("qr_every", 0, rf"1\.\.{T}"),
        ("qr_every", T + 1, rf"1\.\.{T}"),
    ],
)
def test_counts_that_do_not_fit(name, value, allowed):
    with pytest.raises(ValueError, match=rf"^{name} is {value}.*{allowed}"):
        gradflow.lyapunov_spectrum(CELLS["elman"], *problem(CELLS["elman"]), **{name: value})


# The smallest of everything


@pytest.mark.usefixtures("x64")
def test_one_step_one_example_one_unit():
    """Each number by hand: s_1 = tanh(z), L = s_1^2."""
    cell = rnn_jax.elman(1)
    U, W, b, s_0, x = 0.7, -1.3, 0.2, 0.4, 0.9
    params = rnn_jax.ElmanParams(*(jnp.full(s, v) for s, v in (((1, 1), U), ((1, 1), W), (1, b))))
    given = (cell, params, jnp.full((1, 1), s_0), jnp.full((1, 1, 1), x))
    s_1 = np.tanh(U * x + W * s_0 + b)
    slope, adjoint = 1 - s_1**2, 2 * s_1
    log_adjoint, log_jacobian = np.log(abs(adjoint)), np.log(abs(slope * W))
    terms = [np.log(abs(adjoint * slope * left)) for left in (x, s_0, 1.0)]
    wanted = {
        "state_gradients": np.full((1, 1), log_adjoint),
        "segments": np.full((1, 1), log_adjoint),
        "leaf_gradients": np.full((1, 1), log_adjoint),
        "credit_matrix": np.full((1, 1), log_adjoint),
        "parameter_terms": rnn_jax.ElmanParams(*(np.full(1, term) for term in terms)),
        "jacobian_product": np.full(1, log_jacobian),
        "lyapunov_spectrum": np.full(1, log_jacobian),
        "value_and_grad": (
            s_1**2,
            rnn_jax.ElmanParams(
                *(
                    np.full(np.shape(p), adjoint * slope * left)
                    for p, left in zip(params, (x, s_0, 1.0), strict=True)
                )
            ),
            np.full((1, 1, 1), adjoint),
        ),
    }
    got = jax.jit(lambda: {name: measure(*given) for name, measure in MEASURES.items()})()
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(np.shape, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, wanted)
