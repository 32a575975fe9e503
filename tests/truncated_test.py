"""Truncated BPTT, against the terms of the textbook's double sum, added up by hand."""

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
    library_params,
    ran,
    random_batch,
    step,
    train_state,
)

import rnn_jax
from rnn_jax import losses, objectives
from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.delayed_xor import delayed_xor
from rnn_jax.training import optim
from rnn_jax.training.truncated import truncated_objective

MODEL = rnn_jax.sequence_model(rnn_jax.elman(H), D)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def truncated(window, stride, loss=losses.squared_error):
    return truncated_objective(MODEL, loss, window, stride)


def window_start(t, window, stride, num_steps):
    """First step of the window that the loss of step t, counted from 0, is followed back in."""
    end = min((t // stride + 1) * stride, num_steps)
    return max(0, end - window)


def by_hand(weights, s_0, batch, window, stride):
    """dL/dW with only the terms inside the windows."""
    data = (weights, TANH, s_0, np.asarray(batch.inputs), np.asarray(batch.targets))
    terms = reference.textbook_terms(*data, reference.forward(*data))
    num_steps = len(batch.inputs)
    return sum(
        terms[t, k]
        for t in range(num_steps)
        for k in range(window_start(t, window, stride, num_steps), t + 1)
    )


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (2, 2), (3, 2), (4, 3), (4, 4)])
def test_the_gradient_has_the_terms_inside_the_windows_and_no_others(x64, rng, window, stride):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 2)
    s_0 = rng.normal(size=(2, H))
    run, (gradients, adjoints, _) = ran(truncated(window, stride), weights, s_0, batch)
    wanted = by_hand(weights, s_0, batch, window, stride)
    np.testing.assert_allclose(gradients.cell.W, wanted, rtol=1e-10, atol=1e-14)
    full, (uncut, _, _) = ran(elman_objective(), weights, s_0, batch)
    assert np.abs(uncut.cell.W - wanted).max() > 1e-3
    # The forward run is the whole one, and the readout's gradient knows no windows.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), run, full)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11),
        gradients.readout,
        uncut.readout,
    )
    # The adjoints are those of the gradient: db = sum_t phi'(z_t) lambda_t.
    slopes = 1 - run.states**2
    np.testing.assert_allclose(gradients.cell.b, np.sum(slopes * adjoints, axis=(0, 1)), rtol=1e-10)


@pytest.mark.parametrize(("window", "stride"), [(T, 1), (T, T), (T + 3, 2)])
def test_a_window_of_the_whole_sequence_is_full_bptt(x64, rng, window, stride):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 2)
    batch = batch._replace(lengths=jnp.array([T, 3]))
    s_0 = rng.normal(size=(2, H))
    given = ran(truncated(window, stride), weights, s_0, batch)
    wanted = ran(elman_objective(), weights, s_0, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), given, wanted)


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (3, 2)])
def test_lags_beyond_the_window_are_exactly_zero(x64, rng, window, stride):
    """One loss, at the last step: what is left of dL/ds_k and dL/dx_k."""

    def only_last(outputs, targets):
        return losses.squared_error(outputs, targets).at[:-1].set(0)

    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 2)
    objective = truncated(window, stride, only_last)
    _, (_, adjoints, inputs) = ran(objective, weights, rng.normal(size=(2, H)), batch)
    for gradient in (adjoints, inputs):
        assert not gradient[: T - window].any()
        assert (np.abs(gradient[T - window :]).sum(axis=-1) > 0).all()


def test_padded_sequences_are_cut_as_if_alone(x64, rng):
    lengths, window, stride = np.array([T, 2, 4]), 2, 2
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 3)
    s_0 = rng.normal(size=(3, H))
    padded = batch._replace(lengths=jnp.asarray(lengths))
    run, (gradients, adjoints, inputs) = ran(truncated(window, stride), weights, s_0, padded)
    wanted = np.zeros((H, H))
    for b, length in enumerate(lengths):
        x, y = (a[:, b : b + 1] for a in batch[:2])
        data = (weights, TANH, s_0[b : b + 1], np.asarray(x[:length]), np.asarray(y[:length]))
        terms = reference.textbook_terms(*data, reference.forward(*data))
        for t in range(length):
            # The windows end where the batch's do, not where the example's does.
            start = window_start(t, window, stride, T)
            wanted += terms[t, start : t + 1].sum(axis=0) / 3
        assert not adjoints[length:, b].any()
        assert not inputs[length:, b].any()
    np.testing.assert_allclose(gradients.cell.W, wanted, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(run.mask, np.arange(T)[:, None] < lengths)


def test_one_answer_has_one_window_before_each_examples_end(x64, rng):
    task, lengths, window = adding(9, 3, shortest=2), np.array([9, 2, 5]), 4
    batch = doubled(task.sample(jax.random.key(1)))._replace(lengths=jnp.asarray(lengths))
    weights, s_0 = reference.random_weights(rng, 2, H, 1), rng.normal(size=(3, H))
    model = rnn_jax.last_only(rnn_jax.elman(H), 1)
    objective = truncated_objective(model, task, window, 1)
    run, (gradients, adjoints, _) = ran(objective, weights, s_0, batch)
    full, (_, uncut, _) = ran(objectives.task_objective(model, task), weights, s_0, batch)
    np.testing.assert_allclose(run.step_losses, full.step_losses, rtol=1e-12)
    np.testing.assert_array_equal(run.carry, s_0)
    times = np.arange(9)[:, None]
    inside = (times < lengths) & (times >= lengths - window)
    wanted = np.where(inside[..., None], uncut, 0)
    np.testing.assert_allclose(adjoints, wanted, rtol=1e-11)
    slopes = 1 - full.states**2
    db = np.sum(slopes * wanted, axis=(0, 1))
    np.testing.assert_allclose(gradients.cell.b, db, rtol=1e-10)


def test_a_task_with_a_late_first_loss_keeps_its_mask(x64, rng):
    task = delayed_xor(2, 7, 2)
    batch = doubled(task.sample(jax.random.key(1)))
    weights, s_0 = reference.random_weights(rng, 1, H, 1), np.zeros((2, H))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), 1)
    given, (_, adjoints, _) = ran(truncated_objective(model, task, 2, 1), weights, s_0, batch)
    wanted, _ = ran(objectives.task_objective(model, task), weights, s_0, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), given, wanted)
    assert not adjoints[:3].any()
    assert adjoints[3].any()


def test_it_trains_and_carries_its_state_on(x64, rng):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 2)
    optimizer, s_0 = optim.recorded(optax.sgd(1.0)), rng.normal(size=(2, H))
    start = train_state(library_params(weights), optimizer, jnp.asarray(s_0))
    end, metrics = step(truncated(3, 2), optimizer, start, batch)
    update = jax.tree.map(np.subtract, *jax.device_get((start.params, end.params)))
    wanted = by_hand(weights, s_0, batch, 3, 2)
    np.testing.assert_allclose(update.cell.W, wanted, rtol=1e-9, atol=1e-13)
    data = (weights, TANH, s_0, np.asarray(batch.inputs), np.asarray(batch.targets))
    np.testing.assert_allclose(end.carry, reference.forward(*data).states[-1], rtol=1e-12)
    assert metrics.trace.shape == (T,)


@pytest.mark.parametrize(
    ("window", "stride", "said"),
    [
        (0, 1, "window is 0"),
        (2, 0, "stride is 0"),
        (2.5, 1, "window is 2.5"),
        (2, 3, "stride is 3, but window is 2"),
    ],
)
def test_windows_that_leave_losses_out(window, stride, said):
    with pytest.raises(ValueError, match=said):
        truncated(window, stride)
