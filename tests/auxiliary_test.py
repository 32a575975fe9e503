"""The auxiliary loss against NumPy, on tasks with one answer and with many, padded or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax.losses import squared_error
from rnn_jax.objectives import mean_loss, task_objective
from rnn_jax.tasks.task import Task
from rnn_jax.training.auxiliary import auxiliary_model, auxiliary_objective
from rnn_jax.types import Batch

T, B, D, O, H, LAG = 6, 3, 2, 4, 5, 2
LENGTHS = np.array([T, 4, 3])
CELL = rnn_jax.elman(H)


def problem(last_only, lengths):
    rng = np.random.default_rng(0)
    make = rnn_jax.last_only if last_only else rnn_jax.sequence_model
    task = Task("own", None, D, O, squared_error, squared_error, last_only, 1.0, 1.0)
    model = auxiliary_model(make, CELL, O, D)
    shapes = jax.eval_shape(lambda key: model.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes)
    inputs = jnp.asarray(rng.normal(size=(T, B, D)))
    targets = jnp.asarray(rng.normal(size=(B, O) if last_only else (T, B, O)))
    batch = Batch(inputs, targets, lengths)
    return model, task, params, batch


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("last_only", [True, False])
def test_loss_is_the_tasks_and_that_of_recalling_an_input(x64, last_only, lengths):
    model, task, params, batch = problem(last_only, lengths)
    state = jnp.zeros((B, H))
    zeros = rnn_jax.zero_perturbations(state, T)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(weight, params, perturbations):
        objective = task_objective(model, task)
        if weight:
            objective = auxiliary_objective(model, task, weight, LAG)
        return mean_loss(objective.run(params, state, batch, perturbations))

    p, (V, c) = jax.tree.map(np.asarray, (params.cell, params.readout))
    assert V.shape == (H, O + D)
    states, h = [], np.zeros((B, H))
    for x in np.asarray(batch.inputs):
        h = np.tanh(x @ p.U + h @ p.W + p.b)
        states.append(h)
    wanted = 0.0
    for b, length in enumerate([T] * B if lengths is None else lengths):
        errors = [
            np.mean((states[t][b] @ V[:, O:] + c[O:] - batch.inputs[t - LAG, b]) ** 2)
            for t in range(LAG, length)
        ]
        wanted += 0.7 * np.mean(errors) / B
    plain, both = loss(0.0, params, zeros), loss(0.7, params, zeros)
    np.testing.assert_allclose(both - plain, wanted, rtol=1e-10)
    # Its gradient reaches states that the last answer's would have to come back to.
    gradient, adjoints = jax.jit(jax.grad(lambda p, z: loss(0.7, p, z), (0, 1)))(params, zeros)
    assert np.all(gradient.readout.V[:, O:] != 0)
    adjoint = np.asarray(adjoints)
    step = np.zeros((T, B, H))
    step[1, 0, 2] = 1e-5
    difference = (loss(0.7, params, zeros + step) - loss(0.7, params, zeros - step)) / 2e-5
    np.testing.assert_allclose(adjoint[1, 0, 2], difference, rtol=1e-6)


def test_answers_are_those_of_the_first_columns(x64):
    model, _, params, batch = problem(True, None)
    plain = rnn_jax.last_only(CELL, O)
    short = params._replace(
        readout=rnn_jax.ReadoutParams(params.readout.V[:, :O], params.readout.c[:O])
    )
    state = jnp.zeros((B, H))
    answers = [
        rnn_jax.apply(m, p, state, batch.inputs)[0] for m, p in ((model, params), (plain, short))
    ]
    np.testing.assert_array_equal(*answers)


def test_a_lag_that_no_sequence_has():
    model, task, params, batch = problem(True, None)
    objective = auxiliary_objective(model, task, 1.0, T)
    state = jnp.zeros((B, H))
    with pytest.raises(ValueError, match=r"lag of the auxiliary loss is 6, .* give 1..5"):
        objective.run(params, state, batch, rnn_jax.zero_perturbations(state, T))
