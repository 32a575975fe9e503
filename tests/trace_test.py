"""What a training step records: norms of adjoints, of gradients, of each step's summands."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from marks import slow
from training import (
    TANH,
    D,
    H,
    T,
    elman_objective,
    library_params,
    random_batch,
    reference_weights,
    step,
    train_state,
)

import rnn_jax
from rnn_jax import losses, objectives, optim, traces
from rnn_jax.types import Batch


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_trace_is_the_norm_of_the_adjoints(x64, rng):
    """Root mean square over three examples, each of its own loss."""
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 3)
    s_0 = rng.normal(size=(3, H))
    objective, optimizer = elman_objective(), optim.recorded(optax.sgd(1.0))
    _, metrics = step(
        objective, optimizer, train_state(library_params(weights), optimizer, s_0), batch
    )
    squares = []
    for b in range(3):
        x, y = (np.asarray(a)[:, b : b + 1] for a in batch[:2])
        data = (weights, TANH, s_0[b : b + 1], x, y)
        alone = reference.backward(*data, reference.forward(*data))
        squares.append(np.sum(alone.adjoints[:, 0] ** 2, axis=1))
    np.testing.assert_allclose(metrics.trace, np.sqrt(np.mean(squares, axis=0)), rtol=1e-11)


def test_copies_of_an_example_change_no_metric(x64, rng):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 1)
    objective, optimizer = elman_objective(), optim.recorded(optax.sgd(1.0))
    seen = []
    for copies in (1, 6):
        state = train_state(library_params(weights), optimizer, np.full((copies, H), 0.1))
        several = Batch(*(np.tile(a, (1, copies, 1)) for a in batch[:2]))
        seen.append(step(objective, optimizer, state, several, traces.trace_parameters)[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *seen)


def test_recorded_norm_is_that_before_clipping(x64, rng):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 3)
    s_0 = rng.normal(size=(3, H))
    data = (weights, TANH, s_0, np.asarray(batch.inputs), np.asarray(batch.targets))
    gradients = reference.backward(*data, reference.forward(*data)).weights
    raw = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    for clip_norm in (None, raw / 100, raw * 100):
        optimizer = optim.recorded(optax.sgd(1.0), clip_norm)
        start = train_state(library_params(weights), optimizer, s_0)
        end, metrics = step(elman_objective(), optimizer, start, batch)
        np.testing.assert_allclose(metrics.gradient_norm, raw, rtol=1e-11)
        np.testing.assert_array_equal(optim.raw_norm(end.opt_state), metrics.gradient_norm)
        share = 1 if clip_norm is None else min(1, clip_norm / raw)
        updates = jax.tree.map(np.subtract, *jax.device_get((start.params, end.params)))
        for given, wanted in zip(reference_weights(updates), gradients, strict=True):
            np.testing.assert_allclose(given, share * wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_summands_of_an_elman_cell_equal_those_by_hand(x64, rng, batch_size):
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, batch_size)
    s_0 = rng.normal(size=(batch_size, H))
    optimizer = optim.recorded(optax.sgd(1.0))
    state = train_state(library_params(weights), optimizer, s_0)
    _, metrics = step(elman_objective(), optimizer, state, batch, traces.trace_parameters)
    x, y = np.asarray(batch.inputs), np.asarray(batch.targets)
    by_hand = reference.forward(weights, TANH, s_0, x, y)
    gradients = reference.backward(weights, TANH, s_0, x, y, by_hand)
    wanted = reference.summand_norms(x, s_0, TANH, by_hand, gradients)
    for name in ("U", "W", "b"):
        given = getattr(metrics.trace.parameters, name)
        np.testing.assert_allclose(given, getattr(wanted, name), rtol=1e-10)
    _, plain = step(elman_objective(), optimizer, state, batch)
    np.testing.assert_allclose(metrics.trace.states, plain.trace, rtol=1e-12)


CELLS = {
    "leaky": rnn_jax.leaky(H),
    "lstm": rnn_jax.lstm(H),
    "gru": rnn_jax.gru(H),
    "generic gru": rnn_jax.gru(H)._replace(affine=None),
}


def explicit_summands(model, params, carry, batch, warmup_steps):
    """dL/dtheta_t where every time step has parameters of its own, all equal: leaves `[T, ...]`."""

    def loss(copies):
        def body(before, now):
            state, output = before
            t, theta, x, y = now
            x = jnp.where(t < warmup_steps, x, output)
            state = model.cell.step(theta, state, x)
            output = model.readout(params.readout, model.cell.emit(state))
            return (state, output), jnp.mean((output - y) ** 2)

        start = (carry, jnp.zeros_like(batch.inputs[0]))
        steps = (jnp.arange(T), copies, batch.inputs, batch.targets)
        return jnp.mean(jax.lax.scan(body, start, steps)[1])

    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (T, *p.shape)), params.cell)
    return jax.grad(loss)(copies)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("lstm", 1),
        ("lstm", 3),
        slow("gru", 1),
        slow("gru", 3),
        slow("generic gru", 1),
        ("generic gru", 3),
        slow("leaky", 3),
        ("lstm, closed loop", 3),
    ],
)
def test_summands_equal_those_of_separate_weights(x64, rng, name, batch_size):
    model = rnn_jax.sequence_model(CELLS[name.split(",")[0]], D)
    if "closed loop" in name:
        warmup_steps = 3
        objective = objectives.closed_loop_objective(model, losses.squared_error, warmup_steps)
    else:
        warmup_steps = T
        objective = objectives.next_step_objective(model, losses.squared_error)
    shapes = jax.eval_shape(lambda key: model.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape)), shapes)
    carry = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape)),
        jax.eval_shape(lambda: model.cell.initial_state(params.cell, (batch_size,))),
    )
    batch, optimizer = random_batch(rng, batch_size), optim.recorded(optax.sgd(1.0))
    start = train_state(params, optimizer, carry)
    end, metrics = step(objective, optimizer, start, batch, traces.trace_parameters)

    @jax.jit
    def by_hand(params):
        return explicit_summands(model, params, carry, batch, warmup_steps)

    summands = by_hand(params)
    gradient = jax.tree.map(np.subtract, *jax.device_get((start.params.cell, end.params.cell)))
    for given, leaf, total in zip(
        jax.tree.leaves(metrics.trace.parameters),
        jax.tree.leaves(summands),
        jax.tree.leaves(gradient),
        strict=True,
    ):
        wanted = np.linalg.norm(np.reshape(leaf, (T, -1)), axis=1)
        np.testing.assert_allclose(given, wanted, rtol=1e-9)
        np.testing.assert_allclose(total, leaf.sum(axis=0), rtol=1e-9, atol=1e-13)
