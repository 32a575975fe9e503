"""bfloat16 and float16 are taken at their values; whatever is measured of them is in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CELLS, B, T, problem, step_losses

from rnn_jax import gradflow, norms
from rnn_jax.gradflow import Immediate, LastStep, mean_field, theory

NARROW = [jnp.bfloat16, jnp.float16]


def last_loss(state):
    return sum(jnp.sum(leaf.reshape(B, -1) ** 2, axis=1) for leaf in jax.tree.leaves(state))


MEASURES = {
    "state_gradients": lambda *given: gradflow.state_gradients(*given, step_losses),
    "segments": lambda *given: gradflow.state_gradients(
        *given, LastStep(last_loss), segment_length=4
    ),
    "leaf_gradients": lambda *given: gradflow.leaf_gradients(*given, step_losses),
    "direct": lambda *given: gradflow.state_gradients(
        *given, Immediate(jax.tree.map(lambda s: jnp.ones((T, *s.shape), s.dtype), given[2]))
    ),
    "credit_matrix": lambda *given: gradflow.credit_matrix(*given, step_losses),
    "parameter_terms": lambda *given: gradflow.parameter_terms(*given, step_losses),
    "truncation_bias": lambda *given: gradflow.truncation_bias(*given, step_losses)[1:],
    "parameter_sensitivity": gradflow.parameter_sensitivity,
    "jacobian_product": gradflow.jacobian_product,
    "lyapunov_spectrum": gradflow.lyapunov_spectrum,
}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def dtypes_of(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", MEASURES)
def test_every_result_is_in_float32(name, dtype):
    cell = CELLS["user"]
    given = cast(problem(cell, dtype=np.float32), dtype)
    result = jax.eval_shape(lambda *given: MEASURES[name](cell, *given), *given)
    assert dtypes_of(result) == {"float32"}


def test_numbers_are_those_of_float32_from_the_same_values():
    """To the last digit: nothing is computed in the narrow type."""
    cell = CELLS["elman"]
    run = jax.jit(lambda *given: MEASURES["parameter_terms"](cell, *given))
    given = cast(problem(cell, dtype=np.float32), jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, run(*given), run(*cast(given, jnp.float32)))


def test_parameters_alone_and_inputs_alone():
    """xs may have fewer digits than the rest; other mixtures are refused as `unroll` does."""
    cell = CELLS["elman"]
    given = problem(cell, dtype=np.float32)
    xs = given.xs.astype(jnp.bfloat16)
    logs = gradflow.state_gradients(cell, given.params, given.state, xs, step_losses)
    wanted = gradflow.state_gradients(
        cell, given.params, given.state, xs.astype(jnp.float32), step_losses
    )
    np.testing.assert_array_equal(logs, wanted)
    with pytest.raises(ValueError, match=r"params are bfloat16, xs is float32"):
        gradflow.state_gradients(
            cell, *cast((given.params, given.state), jnp.bfloat16), given.xs, step_losses
        )


def test_states_beyond_float16_are_refused_as_they_would_be_met():
    """float32 would hold them."""
    cell = CELLS["relu"]
    params, state, xs = cast(problem(cell, dtype=np.float32), jnp.float16)
    params = params._replace(U=100 * jnp.ones_like(params.U))
    xs = jnp.where(jnp.arange(T)[:, None, None] == 2, 1000, jnp.zeros_like(xs))
    with pytest.raises(ValueError, match="leave the finite range at time step 3 of"):
        gradflow.state_gradients(cell, params, state, xs, step_losses)


def test_diagnosis():
    cell = CELLS["elman"]
    given = cast(problem(cell, dtype=np.float32), jnp.bfloat16)
    found = gradflow.diagnose(cell, *given, LastStep(last_loss))
    assert found == gradflow.diagnose(cell, *cast(given, jnp.float32), LastStep(last_loss))


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)
def test_norms_and_predictions(dtype):
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(T, B, 100)), dtype)
    norm = norms.state_norm(states, 2)
    assert norm.dtype == jnp.float32
    wanted = np.linalg.norm(np.asarray(states, np.float64), axis=-1)
    np.testing.assert_allclose(norm, wanted, rtol=1e-6)
    assert norms.adjoint_norms(states).dtype == jnp.float32
    W = jnp.asarray(rng.normal(size=(4, 4)), dtype)
    exact = jax.tree.map(np.asarray, theory.fixed_point_slope(W.astype(jnp.float32)).slope)
    np.testing.assert_array_equal(theory.fixed_point_slope(W).slope, exact)
    number = jnp.asarray(0.75, dtype)
    for predicted in (
        theory.singular_value_bounds(W).upper_slope,
        theory.transient_growth(W, 3).peak,
        theory.trainable_length(-number),
        theory.forget_bias_for(1 + number),
        theory.scalar_sensitivity(number).sensitivity,
        mean_field.mean_field_slope("tanh", number, number).slope,
    ):
        assert predicted.dtype == jnp.float32
    np.testing.assert_array_equal(
        mean_field.mean_field_chi("tanh", number, number),
        mean_field.mean_field_chi("tanh", np.float32(0.75), np.float32(0.75)),
    )
