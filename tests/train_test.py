"""Training steps against NumPy written by hand, and against the figures of the sine tutorial."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from absl import flags
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
    trace_a_step,
    train_state,
)

import rnn_jax
from experiments.cli import options
from experiments.setup.sine import SineConfig
from experiments.training.sine_training import train_one
from rnn_jax import initializers, losses, objectives, training
from rnn_jax.tasks import sine
from rnn_jax.training import optim

FLAGS_FILES = Path(__file__).parents[1] / "experiments" / "flags"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tutorial(rng):
    """Cell weights N(0, 0.001), readout uniform in +-1/sqrt(H), Adam 0.01: H 16, T 49, B 1."""
    weights = reference.random_weights(rng, 1, 16, 1, std=1e-3)
    readout = (rng.uniform(-0.25, 0.25, size=shape) for shape in ((16, 1), (1,)))
    optimizer = optim.recorded(optax.adam(0.01))
    state = train_state(
        library_params(reference.Weights(*weights[:3], *readout)), optimizer, np.zeros((1, 16))
    )
    return elman_objective(16, 1), optimizer, jax.jit(sine.sampler(1)), state


# One step, and many


def test_adam_updates_equal_those_by_hand(x64, rng):
    """Three iterations of the tutorial; Adam's first is nearly the sign of the gradient."""
    objective, optimizer, sample, state = tutorial(rng)
    weights, s = reference_weights(state.params), np.zeros((1, 16))
    adam = reference.adam_start(weights)
    for n in range(3):
        batch = sample(jax.random.fold_in(jax.random.key(5), n))
        x, y = np.asarray(batch.inputs), np.asarray(batch.targets)
        by_hand = reference.forward(weights, TANH, s, x, y)
        gradients = reference.backward(weights, TANH, s, x, y, by_hand)
        state, metrics = step(objective, optimizer, state, batch)
        np.testing.assert_allclose(metrics.loss, by_hand.loss, rtol=1e-12)
        np.testing.assert_allclose(
            metrics.step_losses, np.mean((by_hand.outputs - y) ** 2, axis=(1, 2)), rtol=1e-10
        )
        np.testing.assert_allclose(
            metrics.trace, np.linalg.norm(gradients.adjoints[:, 0], axis=1), rtol=1e-10
        )
        raw = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.weights))
        np.testing.assert_allclose(metrics.gradient_norm, raw, rtol=1e-11)
        weights, adam = reference.adam_update(weights, gradients.weights, adam, rate=0.01)
        s = by_hand.states[-1]
        assert int(state.step) == n + 1
        np.testing.assert_allclose(state.carry, s, rtol=1e-9, atol=1e-14)
        for given, wanted in zip(reference_weights(state.params), weights, strict=True):
            np.testing.assert_allclose(given, wanted, rtol=1e-9)


def test_scanned_steps_equal_single_steps(x64, rng):
    objective, optimizer, sample, state = tutorial(rng)
    key, single, seen = jax.random.key(3), state, []
    for n in range(5):
        single, metrics = step(objective, optimizer, single, sample(jax.random.fold_in(key, n)))
        seen.append(metrics)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *seen)
    scanned = training.train_chunk(objective, optimizer, sample, state, key, 5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-15),
        scanned,
        (single, stacked),
    )
    # Each step had a wave of its own, or the keys would not be tested.
    assert len(np.unique(stacked.step_losses[:, 0])) == 5


def test_the_same_bits_whatever_the_chunks():
    """A run that is stopped and taken up again is the same run."""
    objective, optimizer = elman_objective(16, 1), optim.recorded(optax.adam(0.01), 1.0)
    sample, key = sine.sampler(3, phases="real"), jax.random.key(3)
    init = jax.jit(training.init_state, static_argnums=(0, 1, 3, 4))
    start = jax.device_get(init(objective.model, optimizer, jax.random.key(1), 1, 3))

    def trained(sizes):
        state, chunks = jax.device_put(start), []
        for size in sizes:
            state, metrics = training.train_chunk(objective, optimizer, sample, state, key, size)
            chunks.append(jax.device_get(metrics))
        return jax.device_get(state), jax.tree.map(lambda *m: np.concatenate(m), *chunks)

    at_once = trained((10,))
    for sizes in ((7, 3), (7, 1, 1, 1)):
        jax.tree.map(np.testing.assert_array_equal, trained(sizes), at_once)


def test_fresh_state_is_at_step_zero_with_zero_carry():
    model = rnn_jax.sequence_model(rnn_jax.lstm(H, recurrent_init=initializers.normal(1.0)), D)
    init = jax.jit(training.init_state, static_argnums=(0, 1, 3, 4))
    state = init(model, optim.recorded(optax.sgd(1.0)), jax.random.key(0), D, 3)
    assert int(state.step) == 0
    jax.tree.map(
        np.testing.assert_array_equal, state.carry, rnn_jax.LSTMState(*np.zeros((2, 3, H)))
    )
    wanted = jax.eval_shape(lambda key: model.init(key, D), jax.random.key(0))
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, wanted)


# Truncated back-propagation


def test_carry_is_carried_and_its_gradient_cut(x64, rng):
    """The second iteration's update is dL/dtheta with its first state a constant."""
    weights = reference.random_weights(rng, D, H, D)
    first, second = random_batch(rng, 3), random_batch(rng, 3)
    objective, optimizer = elman_objective(), optim.recorded(optax.sgd(0.1))
    start = train_state(library_params(weights), optimizer, rng.normal(size=(3, H)))
    middle, _ = step(objective, optimizer, start, first)
    end, _ = step(objective, optimizer, middle, second)

    before = reference.forward(weights, TANH, np.asarray(start.carry), *map(np.asarray, first[:2]))
    np.testing.assert_allclose(middle.carry, before.states[-1], rtol=1e-12)

    updated = reference_weights(middle.params)
    data = (updated, TANH, before.states[-1], np.asarray(second.inputs), np.asarray(second.targets))
    cut = reference.backward(*data, reference.forward(*data))
    given = jax.tree.map(lambda a, b: (a - b) / 0.1, *jax.device_get((middle.params, end.params)))
    for a, b in zip(reference_weights(given), cut.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

    def uncut_loss(params):
        _, states = rnn_jax.apply(objective.model, params, start.carry, first.inputs)
        outputs, _ = rnn_jax.apply(objective.model, params, states[-1], second.inputs)
        return jnp.mean(losses.squared_error(outputs, second.targets))

    uncut = jax.jit(jax.grad(uncut_loss))(middle.params)
    assert np.abs(uncut.cell.W - given.cell.W).max() > 1e-3


def test_mean_loss_counts_only_masked_steps(x64, rng):
    """First over each example's own steps, then over examples."""
    step_losses = rng.normal(size=(T, 3)) ** 2
    lengths = np.array([1, T, 3])
    mask = np.arange(T)[:, None] < lengths
    given = objectives.mean_loss(objectives.Run(jnp.asarray(step_losses), None, None, None, mask))
    wanted = np.mean([step_losses[:length, b].mean() for b, length in enumerate(lengths)])
    np.testing.assert_allclose(given, wanted, rtol=1e-13)
    given = objectives.mean_loss(objectives.Run(jnp.asarray(step_losses), None, None, None))
    np.testing.assert_allclose(given, step_losses.mean(), rtol=1e-13)


def test_targets_of_another_shape_are_named(rng):
    batch = random_batch(rng, 3)._replace(targets=jnp.zeros((T, 3)))
    with pytest.raises(ValueError, match=r"\(5, 3, 2\).*\(5, 3\)"):
        trace_a_step(elman_objective(), batch)


# The tutorial


def config_of(flags_file):
    values = flags.FlagValues()
    options.define_flags(SineConfig, values, "sine")
    values(["sine", f"--flagfile={FLAGS_FILES / flags_file}"])
    return options.from_flags(SineConfig, values)


def test_two_hundred_iterations_reach_the_published_loss():
    """Mean loss of the last 100 iterations, averaged over three seeds.

    Published, in PyTorch, three seeds: 5.9e-3 to 6.9e-3. Seeds differ: over 24 of them this run has
    mean 5.7e-3 and standard deviation 0.7e-3, so that means of three lie in 4.5e-3..8e-3. Outside
    are a state that is not carried on (2.7e-3) and orthogonal initial weights (2.8e-3).
    """
    config = config_of("sine_200.flags")
    assert config.train_steps == 200
    last = [
        train_one(dataclasses.replace(config, seed=seed), None).history.loss[-100:].mean()
        for seed in range(3)
    ]
    assert 4.5e-3 < np.mean(last) < 8e-3
