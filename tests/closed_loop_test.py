"""The objective that trains a network through its own free run, against a loop by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from training import D, H, T, library_params, random_batch, trace_a_step

import rnn_jax
from experiments.analysis.sine_network import measured_arguments
from rnn_jax import gradflow, losses, objectives


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("warmup_steps", [1, 3, T - 1])
def test_closed_loop_reads_its_own_outputs_after_the_warmup(x64, rng, warmup_steps):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 3)
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D)
    objective = objectives.closed_loop_objective(model, losses.squared_error, warmup_steps)
    s_0 = rng.normal(size=(3, H))

    s, x, inputs, states, step_losses = s_0, np.asarray(batch.inputs[0]), [], [], []
    for t in range(T):
        inputs.append(x)
        s = np.tanh(x @ weights.U + s @ weights.W + weights.b)
        states.append(s)
        output = s @ weights.V + weights.c
        step_losses.append(np.mean((output - batch.targets[t]) ** 2, axis=1))
        if t + 1 < T:
            x = np.asarray(batch.inputs[t + 1]) if t + 1 < warmup_steps else output

    result = jax.jit(objective.run)(
        library_params(weights), jnp.asarray(s_0), batch, jnp.zeros((T, 3, H))
    )
    assert objective.num_steps(batch) == T
    np.testing.assert_allclose(result.inputs, inputs, rtol=1e-11)
    np.testing.assert_allclose(result.states, states, rtol=1e-11)
    np.testing.assert_allclose(result.step_losses, step_losses, rtol=1e-11)
    # The next iteration starts from the same state, not from where this one ended.
    np.testing.assert_array_equal(result.carry, s_0)


@pytest.mark.parametrize("warmup_steps", [0, -1, T, T + 1])
def test_closed_loop_wants_a_warmup_within_the_batch(rng, warmup_steps):
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D)
    objective = objectives.closed_loop_objective(model, losses.squared_error, warmup_steps)
    with pytest.raises(ValueError, match=f"warmup_steps is {warmup_steps}.* has {T} steps"):
        trace_a_step(objective, random_batch(rng, 3))


def test_closed_loop_wants_outputs_that_are_inputs(rng):
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D + 1)
    objective = objectives.closed_loop_objective(model, losses.squared_error, 2)
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 3\) and inputs \(3, 2\)"):
        trace_a_step(objective, random_batch(rng, 3))


@pytest.mark.parametrize(
    "given", [3, *(pytest.param(given, marks=pytest.mark.slow) for given in (None, 1))]
)
def test_the_way_back_that_is_followed_is_that_of_training(x64, rng, given):
    """ln|dL/ds_t| of the network told of in a failure, against the adjoints of the objective."""
    batch = random_batch(rng, 3)
    params = library_params(reference.random_weights(rng, D, H, D))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D)
    objective = objectives.next_step_objective(model, losses.squared_error)
    if given is not None:
        objective = objectives.closed_loop_objective(model, losses.squared_error, given)
    carry = jnp.asarray(rng.normal(size=(3, H)))

    def loss(perturbations):
        return objectives.mean_loss(objective.run(params, carry, batch, perturbations))

    adjoints = 3 * jax.grad(loss)(jnp.zeros((T, 3, H)))
    logs = gradflow.state_gradients(*measured_arguments(model, given)(params, carry, batch))
    np.testing.assert_allclose(np.exp(logs), np.linalg.norm(adjoints, axis=-1), rtol=1e-9)
