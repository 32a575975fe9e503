"""Padding may hold anything: what is there changes no loss, no gradient and no measurement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import LENGTHS, PADDING, B, D, H, T, problem

import rnn_jax
from rnn_jax import gradflow, plain_unroll, training, unroll
from rnn_jax.gradflow import LastStep
from rnn_jax.losses import squared_error
from rnn_jax.objectives import next_step_objective, task_objective
from rnn_jax.tasks.task import Task
from rnn_jax.training.optim import recorded
from rnn_jax.training.regularizers import pascanu
from rnn_jax.training.traces import trace_parameters
from rnn_jax.training.truncated import truncated_objective
from rnn_jax.types import Batch

RUBBISH = {"nan": np.nan, "inf": np.inf, "huge": 1e30, "mixed": (np.nan, -np.inf, 1e30)}


def direction() -> rnn_jax.Cell:
    """A user's own cell that reads only the direction of x: it has no derivative at 0."""

    def step(params, state, x):
        unit = x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
        return jnp.tanh(state @ params["W"] + unit @ params["U"])

    def init(key, input_size):
        return {"U": jnp.ones((input_size, H)), "W": jax.random.normal(key, (H, H))}

    return rnn_jax.Cell(init, lambda params, batch=(): jnp.zeros((*batch, H)), step)


CELLS = {
    **problems.CELLS,
    "relu": rnn_jax.elman(H, "relu"),
    "layer_norm": rnn_jax.layer_norm_elman(H),
    "stack": rnn_jax.stack([rnn_jax.gru(H), rnn_jax.elman(4), problems.CELLS["user"]]),
    "learned": rnn_jax.learned_initial_state(rnn_jax.lstm(H)),
    "dropout": rnn_jax.variational_dropout(rnn_jax.gru(H)),
    "bfloat16": rnn_jax.bfloat16_products(rnn_jax.lstm(H)),
    "segmented": rnn_jax.segmented(rnn_jax.stack([rnn_jax.lstm(H), rnn_jax.leaky(H)]), 3),
    "direction": direction(),
}


def padded_with(array, value):
    """The array with that value, or those in turn, on its padding."""
    array, lost = np.array(array), np.array(PADDING)
    array[lost] = np.resize(np.asarray(value, array.dtype), array[lost].shape)
    return jnp.asarray(array)


def assert_same_bits(given, wanted):
    jax.tree.map(np.testing.assert_array_equal, given, wanted)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wanted) if leaf.dtype != int)


def results(cell, run):
    """States, and gradients by everything, as a function of what lies on the padding."""
    given = problem(cell)
    evaluate = jax.jit(functools.partial(problems.loss, cell), static_argnums=1)
    gradient = jax.jit(jax.grad(lambda given: evaluate(given, run, LENGTHS)))

    def with_padding(value):
        perturbations = jax.tree.map(lambda p: padded_with(p, value), given.perturbations)
        changed = given._replace(xs=padded_with(given.xs, value), perturbations=perturbations)
        return jax.device_get(gradient(changed))

    return with_padding


@pytest.mark.parametrize("name", CELLS)
def test_gradients_with_any_padding_are_those_with_zeros(name):
    gradient = results(CELLS[name], unroll)
    zeros = gradient(0.0)
    assert np.all(np.abs(np.asarray(zeros.xs)[~PADDING]).max(axis=-1) > 0)
    for value in RUBBISH.values():
        assert_same_bits(gradient(value), zeros)


@pytest.mark.parametrize("name", ["elman", "layer_norm", "stack", "direction"])
def test_autodiff_through_a_plain_scan_does_not_meet_the_padding(name):
    gradient = results(CELLS[name], plain_unroll)
    zeros = gradient(0.0)
    for value in RUBBISH.values():
        assert_same_bits(gradient(value), zeros)


def test_forward_mode_does_not_meet_the_padding():
    cell, given = CELLS["lstm"], problem(CELLS["lstm"])

    @jax.jit
    def derivative(xs):
        def states(params):
            return plain_unroll(cell, params, given.state, xs, lengths=LENGTHS)

        return jax.jvp(states, (given.params,), (given.params,))

    assert_same_bits(
        derivative(padded_with(given.xs, np.nan)), derivative(padded_with(given.xs, 0))
    )


def test_both_directions():
    network = rnn_jax.bidirectional(rnn_jax.lstm(H), rnn_jax.elman(H))
    params = network.init(jax.random.key(0), D)
    state = network.initial_state(params, (B,))
    xs = problem(CELLS["elman"]).xs
    zeros = jax.tree.map(
        lambda s: jnp.zeros((T, *s.shape), s.dtype), network.initial_state(params, (B,))
    )

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, xs, perturbations):
        states = rnn_jax.bidirectional_unroll(
            network, params, state, xs, perturbations=perturbations, lengths=LENGTHS
        )
        return jnp.sum(jnp.sin(network.emit(states)))

    wanted = gradient(params, padded_with(xs, 0), zeros)
    for value in RUBBISH.values():
        assert_same_bits(gradient(params, padded_with(xs, value), zeros), wanted)


# Objectives


def log_score(outputs, targets):
    """A loss of the user's own without a derivative at 0."""
    return -jnp.log(jnp.abs(outputs[..., 0])) + squared_error(outputs, targets)


OBJECTIVES = {
    "next": lambda model: next_step_objective(model, log_score),
    "task": lambda model: task_objective(model, answered_from(2, squared_error)),
    "truncated": lambda model: truncated_objective(model, squared_error, 4, 2),
    "truncated_task": lambda model: truncated_objective(
        model, answered_from(2, squared_error), 3, 1
    ),
}


def answered_from(first, loss):
    return Task(
        name="random",
        sample=None,
        input_size=D,
        output_size=D,
        loss=loss,
        wrong=None,
        last_only=False,
        chance_loss=1.0,
        chance_wrong=1.0,
        first_loss_step=first,
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_step_with_any_padding_is_the_one_with_zeros(name):
    """Inputs and targets; the gradient of every step, and Omega, are part of it."""
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D)
    objective = OBJECTIVES[name](model)
    optimizer = recorded(optax.sgd(0.1))
    start = training.init_state(model, optimizer, jax.random.key(0), D, B)
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(2, T, B, D)).astype(np.float32)

    @jax.jit
    def step(inputs, targets):
        batch = Batch(inputs, targets, jnp.asarray(LENGTHS))
        return training.train_step(
            objective, optimizer, start, batch, trace_parameters, pascanu(0.1)
        )

    zeros = step(padded_with(inputs, 0), padded_with(targets, 0))
    assert zeros[1].gradient_norm > 0
    for value in RUBBISH.values():
        assert_same_bits(step(padded_with(inputs, value), padded_with(targets, value)), zeros)


def test_answers_before_the_first_that_counts_may_be_anything():
    """Without lengths, too: targets where nothing is asked."""
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D)
    objective = task_objective(model, answered_from(3, squared_error))
    params = model.init(jax.random.key(0), D)
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(2, T, B, D)).astype(np.float32)
    zeros = jnp.zeros((T, B, H))

    @jax.jit
    @jax.grad
    def gradient(params, targets):
        run = objective.run(params, jnp.zeros((B, H)), Batch(inputs, targets), zeros)
        return rnn_jax.objectives.mean_loss(run)

    targets[:3] = 0
    wanted = gradient(params, targets)
    targets[:3] = np.nan
    assert_same_bits(gradient(params, targets), wanted)


# Measurements

TARGETS = np.random.default_rng(1).normal(size=(T, B)).astype(np.float32)


def measurements(targets):
    """Every function of gradflow that takes lengths, with losses on padding against targets."""

    def losses(states):
        return jnp.square(jnp.sum(states, axis=-1) - targets)

    last = LastStep(lambda state: jnp.sum(jnp.square(state), axis=-1))
    return {
        "state_gradients": functools.partial(gradflow.state_gradients, step_losses=losses),
        "last": functools.partial(gradflow.state_gradients, step_losses=last),
        "segments": functools.partial(gradflow.state_gradients, step_losses=last, segment_length=3),
        "leaf_gradients": functools.partial(gradflow.leaf_gradients, step_losses=losses),
        "credit_matrix": functools.partial(gradflow.credit_matrix, step_losses=losses),
        "parameter_terms": functools.partial(gradflow.parameter_terms, step_losses=losses),
        "truncation_bias": functools.partial(gradflow.truncation_bias, step_losses=losses),
        "origin": functools.partial(gradflow.origin_of_nonfinite, step_losses=losses),
        "diagnose": functools.partial(gradflow.diagnose, step_losses=losses),
    }


def measured(name, value):
    params, state, xs, _ = problem(CELLS["elman"])
    xs, targets = padded_with(xs, value), padded_with(TARGETS, value)

    def measure(xs, targets):
        return measurements(targets)[name](CELLS["elman"], params, state, xs, lengths=LENGTHS)

    return measure, xs, targets


@pytest.mark.parametrize("name", measurements(TARGETS))
def test_a_measurement_with_any_padding_is_the_one_with_zeros(name):
    measure, *zeros = measured(name, 0)
    measure = measure if name in ("diagnose", "origin") else jax.jit(measure)
    wanted = measure(*zeros)
    assert name != "origin" or wanted.where == ""
    for value in (np.nan, RUBBISH["mixed"]):
        jax.tree.map(np.testing.assert_array_equal, measure(*measured(name, value)[1:]), wanted)


@pytest.mark.parametrize("name", ["state_gradients", "segments"])
def test_padding_is_not_refused_for_not_being_finite(name):
    """Where numbers are looked at: without jit."""
    measure, *zeros = measured(name, 0)
    np.testing.assert_array_equal(measure(*measured(name, np.nan)[1:]), measure(*zeros))


def test_loss_gradient_and_adjoints_with_any_padding():
    cell = CELLS["lstm"]
    params, state, xs, _ = problem(cell)

    def losses(states, targets):
        return jnp.square(jnp.sum(states.h, axis=-1) - targets)

    evaluate = jax.jit(gradflow.value_and_grad(cell, losses))

    def measure(value):
        return evaluate(
            params, state, padded_with(xs, value), padded_with(TARGETS, value), lengths=LENGTHS
        )

    zeros = measure(0)
    for value in (np.nan, RUBBISH["mixed"]):
        assert_same_bits(measure(value), zeros)


def test_a_loss_that_is_not_finite_is_not_hidden():
    """What is read on padding of the last true state has a gradient, and its NaN stays."""
    cell = CELLS["elman"]
    params, state, xs, _ = problem(cell)
    broken = jnp.zeros_like(state)

    def loss(states):
        return jnp.sum(jnp.sqrt(jnp.sum(jnp.square(states[-1] - states[-1]), axis=-1)))

    _, _, adjoints = gradflow.value_and_grad(cell, loss)(params, broken, xs, lengths=LENGTHS)
    assert np.isnan(adjoints[-1]).any()


def test_a_nan_before_the_padding_is_named():
    cell = CELLS["elman"]
    params, state, xs, _ = problem(cell)
    (step, example) = np.argwhere(~PADDING)[-1]
    broken = padded_with(xs, np.nan).at[step, example, 1].set(np.inf)
    with pytest.raises(ValueError, match=rf"xs is not finite: .*\[{step}, {example}, 1\] is inf"):
        gradflow.state_gradients(
            cell, params, state, broken, lambda states: states.sum(-1), lengths=LENGTHS
        )
