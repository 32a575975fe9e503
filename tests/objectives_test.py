"""Objectives of tasks and of padded batches, against NumPy that runs each sequence by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from training import (
    TANH,
    D,
    H,
    T,
    doubled,
    elman_objective,
    ran,
    random_batch,
    reference_weights,
    step,
    trace_a_step,
    train_state,
)

import rnn_jax
from rnn_jax import losses, objectives
from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.copy_memory import copy_memory
from rnn_jax.tasks.delayed_xor import delayed_xor
from rnn_jax.tasks.temporal_order import temporal_order
from rnn_jax.training import optim, traces
from rnn_jax.types import Batch

B = 3
LENGTHS = np.array([4, T, 1])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def states_of(weights, s, xs):
    """States of one sequence `[T, D]` from s `[H]`."""
    states = []
    for x in xs:
        s = np.tanh(x @ weights.U + s @ weights.W + weights.b)
        states.append(s)
    return np.array(states)


def test_an_answer_is_read_from_each_examples_last_true_step(x64, rng):
    task = adding(9, B, shortest=2)
    batch = doubled(task.sample(jax.random.key(1)))
    batch = batch._replace(lengths=jnp.array([9, 2, 5]))
    # What lies on padding must not matter.
    batch = batch._replace(inputs=batch.inputs.at[2:, 1].set(7.0).at[5:, 2].set(-3.0))
    weights, s_0 = reference.random_weights(rng, 2, H, 1), rng.normal(size=(B, H))
    model = rnn_jax.last_only(rnn_jax.elman(H), 1)
    objective = objectives.task_objective(model, task)
    run, (gradients, adjoints, inputs) = ran(objective, weights, s_0, batch)

    def loss(weights):
        errors = []
        for b, length in enumerate(batch.lengths):
            x = np.asarray(batch.inputs[:length, b])
            answer = states_of(weights, s_0[b], x)[-1] @ weights.V + weights.c
            errors.append((answer - batch.targets[b]) ** 2)
        return np.array(errors)[:, 0]

    np.testing.assert_allclose(run.step_losses, loss(weights), rtol=1e-12)
    assert run.mask is None
    np.testing.assert_array_equal(run.carry, s_0)
    for name, given in zip(weights._fields, reference_weights(gradients), strict=True):
        direction, eps = rng.normal(size=given.shape), 1e-6
        ends = (
            loss(weights._replace(**{name: getattr(weights, name) + sign * eps * direction})).mean()
            for sign in (1, -1)
        )
        up, down = ends
        np.testing.assert_allclose(np.sum(given * direction), (up - down) / (2 * eps), rtol=1e-7)
    padding = np.arange(9)[:, None] >= np.asarray(batch.lengths)
    assert not inputs[padding].any()
    assert not adjoints[padding].any()
    assert (np.abs(inputs[~padding]).sum(axis=-1) > 0).all()


@pytest.mark.slow
def test_steps_before_the_first_loss_have_none(x64, rng):
    task = delayed_xor(2, 7, B)
    batch = doubled(task.sample(jax.random.key(1)))
    weights, s_0 = reference.random_weights(rng, 1, H, 1), rng.normal(size=(B, H))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), 1)
    run, (_, adjoints, _) = ran(objectives.task_objective(model, task), weights, s_0, batch)
    logits = np.stack(
        [
            states_of(weights, s_0[b], np.asarray(batch.inputs[:, b])) @ weights.V + weights.c
            for b in range(B)
        ],
        axis=1,
    )
    right = np.where(batch.targets > 0, logits, -logits)
    wanted = np.log1p(np.exp(-right))[..., 0]
    np.testing.assert_allclose(run.step_losses[4:], wanted[4:], rtol=1e-12)
    np.testing.assert_array_equal(run.step_losses[:4], 0)
    np.testing.assert_array_equal(run.mask, np.arange(7)[:, None].repeat(B, 1) >= 4)
    np.testing.assert_allclose(objectives.mean_loss(run), wanted[4:].mean(), rtol=1e-12)
    # With lengths too, both masks hold.
    padded = batch._replace(lengths=jnp.array([7, 5, 6]))
    run, (_, adjoints, _) = ran(objectives.task_objective(model, task), weights, s_0, padded)
    mean = np.mean([wanted[4:length, b].mean() for b, length in enumerate((7, 5, 6))])
    np.testing.assert_allclose(objectives.mean_loss(run), mean, rtol=1e-12)
    assert not adjoints[5:, 1].any()
    assert adjoints[4, 1].any()


def test_a_task_with_an_answer_at_every_step_has_no_mask(x64, rng):
    task = copy_memory(2, B, symbols=2, recalled=1)
    batch = doubled(task.sample(jax.random.key(1)))
    weights, s_0 = reference.random_weights(rng, 4, H, 3), np.zeros((B, H))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), 3)
    run, _ = ran(objectives.task_objective(model, task), weights, s_0, batch)
    logits = np.stack(
        [
            states_of(weights, s_0[b], np.asarray(batch.inputs[:, b])) @ weights.V + weights.c
            for b in range(B)
        ],
        axis=1,
    )
    chosen = np.take_along_axis(logits, np.asarray(batch.targets)[..., None], axis=-1)[..., 0]
    wanted = np.log(np.exp(logits).sum(axis=-1)) - chosen
    assert run.mask is None
    np.testing.assert_allclose(run.step_losses, wanted, rtol=1e-12)


def test_a_padded_batch_is_trained_as_its_sequences_alone(x64, rng):
    """Losses, gradient, adjoints and carry of `next_step_objective` with lengths."""
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, B)
    s_0 = rng.normal(size=(B, H))
    batch = batch._replace(lengths=jnp.asarray(LENGTHS))
    run, (gradients, adjoints, inputs) = ran(elman_objective(), weights, s_0, batch)
    total = [np.zeros_like(weight) for weight in weights]
    for b, length in enumerate(LENGTHS):
        x, y = (np.asarray(a)[:length, b : b + 1] for a in batch[:2])
        data = (weights, TANH, s_0[b : b + 1], x, y)
        alone = reference.forward(*data)
        backward = reference.backward(*data, alone)
        for part, gradient in zip(total, backward.weights, strict=True):
            part += gradient / B
        np.testing.assert_allclose(adjoints[:length, b], backward.adjoints[:, 0] / B, rtol=1e-10)
        np.testing.assert_allclose(run.carry[b], alone.states[-1, 0], rtol=1e-12)
        own = np.mean((alone.outputs - y) ** 2, axis=(1, 2))
        np.testing.assert_allclose(run.step_losses[:length, b], own, rtol=1e-12)
        for padded in (adjoints, inputs, run.step_losses):
            assert not padded[length:, b].any()
    for given, wanted in zip(reference_weights(gradients), total, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(run.mask, np.arange(T)[:, None] < LENGTHS)


@pytest.mark.parametrize("cell", [rnn_jax.elman(H), rnn_jax.lstm(H)], ids=["elman", "lstm"])
def test_summands_on_padding_are_zero_and_the_others_untouched(x64, rng, cell):
    model = rnn_jax.sequence_model(cell, D)
    objective = objectives.next_step_objective(model, losses.squared_error)
    shapes = jax.eval_shape(lambda key: model.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape)), shapes)
    carry = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape)),
        jax.eval_shape(lambda: cell.initial_state(params.cell, (1,))),
    )
    whole, optimizer = random_batch(rng, 1), optim.recorded(optax.sgd(1.0))
    padded = whole._replace(lengths=jnp.array([3]))
    short = Batch(whole.inputs[:3], whole.targets[:3])
    found = []
    for batch in (padded, short):
        state = train_state(params, optimizer, carry)
        found.append(step(objective, optimizer, state, batch, traces.trace_parameters)[1].trace)

    def compare(given, wanted):
        np.testing.assert_allclose(given[:3], wanted, rtol=1e-11)
        np.testing.assert_array_equal(given[3:], 0)

    jax.tree.map(compare, *found)


# What does not fit


@pytest.mark.parametrize(
    ("make", "task", "outputs", "said"),
    [
        (
            rnn_jax.sequence_model,
            adding(6, B),
            1,
            r"\(6, 3, 1\).*'adding' wants \(3, 1\).*last_only\(cell, 1\)",
        ),
        (
            rnn_jax.last_only,
            temporal_order(10, B),
            2,
            r"\(3, 2\).*wants \(3, 4\).*last_only\(cell, 4\)",
        ),
        (
            rnn_jax.last_only,
            delayed_xor(1, 5, B),
            1,
            r"\(3, 1\).*wants \(5, 3, 1\).*sequence_model\(cell, 1\)",
        ),
    ],
)
def test_a_model_that_gives_no_answers_to_the_task_is_named(make, task, outputs, said):
    model = make(rnn_jax.elman(H), outputs)
    objective = objectives.task_objective(model, task)

    def run(key):
        params, carry = model.init(key, task.input_size), jnp.zeros((B, H))
        return objective.run(params, carry, task.sample(key), None)

    with pytest.raises(ValueError, match=said):
        jax.eval_shape(run, jax.random.key(0))


def test_a_closed_loop_has_no_padding(rng):
    model = rnn_jax.sequence_model(rnn_jax.elman(H), D)
    objective = objectives.closed_loop_objective(model, losses.squared_error, 2)
    batch = random_batch(rng, B)._replace(lengths=jnp.asarray(LENGTHS))
    with pytest.raises(ValueError, match="lengths=None"):
        trace_a_step(objective, batch)
