"""Cures that are a switch of the training: each does to the gradient what it is named for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from experiments import series
from experiments.cli.options import UsageError
from experiments.memory import MemoryConfig, groups_of
from experiments.setup.method import Method, optimizer_of, regularizer_of
from rnn_jax.model import ModelParams
from rnn_jax.training import optim, regularizers
from rnn_jax.training.noise import with_noise_key
from rnn_jax.training.spectrum import recurrent_matrices, soft_orthogonal, spectral_penalty

H, D = 5, 2


def updates_of(method, gradients, params, count=1):
    """Updates of plain descent at rate 1, one after the other, and the last optimizer state."""
    optimizer = optimizer_of(method, jnp.float32(1.0), 10)
    state, found = optimizer.init(params), []
    for _ in range(count):
        updates, state = optimizer.update(gradients, state, params)
        found.append(updates)
    return found, state


# Adaptive clipping


def test_adaptive_clipping_bounds_each_unit_by_its_own_weights():
    rng = np.random.default_rng(0)
    params = {"W": jnp.asarray(rng.normal(size=(H, H)), jnp.float32)}
    gradients = {"W": jnp.asarray(10.0 ** np.arange(-4, 1) * rng.normal(size=(H, H)), jnp.float32)}
    (updates,), state = updates_of(Method(optimizer="sgd", adaptive_clip=0.01), gradients, params)
    weights, given, taken = (
        np.linalg.norm(tree["W"], axis=0) for tree in (params, gradients, updates)
    )
    np.testing.assert_allclose(taken, np.minimum(given, 0.01 * weights), rtol=1e-4)
    assert np.any(given > 0.01 * weights)
    assert np.any(given < 0.01 * weights)
    # What is recorded is the gradient as the network produced it.
    np.testing.assert_allclose(optim.raw_norm(state), np.linalg.norm(gradients["W"]), rtol=1e-5)


# Gradient noise


def test_gradient_noise_is_normal_and_dies_out():
    params = {"W": jnp.zeros((200, 200))}
    method = Method(optimizer="sgd", gradient_noise=0.3, noise_decay=0.55)
    updates, state = updates_of(method, params, params, count=3)
    for n, update in enumerate(updates, 1):
        # Relative standard error of a standard deviation from 40,000 numbers: 0.35 %.
        np.testing.assert_allclose(np.std(update["W"]), np.sqrt(0.3 / n**0.55), rtol=0.02)
    correlation = np.corrcoef(np.ravel(updates[0]["W"]), np.ravel(updates[1]["W"]))[0, 1]
    assert abs(correlation) < 0.03
    assert optim.raw_norm(state) == 0


def test_every_network_draws_noise_of_its_own():
    """Two networks with the same weights and no gradient are moved by the noise alone."""
    optimizer = optimizer_of(Method(optimizer="sgd", gradient_noise=1.0), jnp.float32(1.0), 10)
    params = {"W": jnp.zeros(20_000)}
    state = optimizer.init(params)
    states = [with_noise_key(state, jax.random.key(n)) for n in (0, 1, 0)]
    one, other, again = (optimizer.update(params, own, params)[0]["W"] for own in states)
    np.testing.assert_array_equal(one, again)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.04
    plain = optax.sgd(1.0).init(params)
    assert with_noise_key(plain, jax.random.key(0)) is plain


def test_the_networks_of_a_run_do_so():
    algorithm, hparams, state = algorithm_of(gradient_noise=0.5)
    other = jax.jit(algorithm.init)(hparams, jax.random.key(1))
    keys = [optax.tree_utils.tree_get(s.opt_state, "key_data") for s in (state, other)]
    assert np.any(keys[0] != keys[1])


def test_clipping_comes_before_the_noise():
    """A bound on the gradient says nothing about the noise, which is there to leave a plateau."""
    params = {"W": jnp.zeros((100, 100))}
    method = Method(optimizer="sgd", gradient_noise=1.0, clip_norm=1e-3)
    (update,), _ = updates_of(method, {"W": jnp.ones((100, 100))}, params)
    np.testing.assert_allclose(np.std(update["W"]), 1, rtol=0.05)


# Weight decay on W's spectrum


@pytest.mark.parametrize(
    ("cell", "count"),
    [(rnn_jax.elman(H), 1), (rnn_jax.lstm(H), 4), (rnn_jax.stack([rnn_jax.gru(H)] * 2), 6)],
)
def test_penalty_is_that_of_the_singular_values_of_every_gate(x64, cell, count):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    matrices = recurrent_matrices(params)
    assert len(matrices) == count
    values = np.linalg.svd(np.asarray(matrices))[1]
    np.testing.assert_allclose(spectral_penalty(params), np.sum((values**2 - 1) ** 2), rtol=1e-12)


def test_its_gradient_moves_w_alone_and_draws_singular_values_to_1(x64):
    cell = rnn_jax.elman(H, recurrent_init=rnn_jax.initializers.gaussian(1.0))
    params = ModelParams(cell.init(jax.random.key(0), D), {"V": jnp.ones((H, 1))})
    regularize = jax.jit(
        lambda p: soft_orthogonal(0.3)(None, p, None, None, None)  # Of the parameters alone.
    )
    gradient = regularize(params)
    W = np.asarray(params.cell.W)
    np.testing.assert_allclose(gradient.cell.W, 0.3 * 4 * W @ (W.T @ W - np.eye(H)), atol=1e-12)
    others = (gradient.cell.U, gradient.cell.b, gradient.readout["V"])
    assert not any(np.any(leaf) for leaf in others)
    before = np.abs(np.linalg.svd(W)[1] - 1).max()
    for _ in range(200):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, regularize(params))
    after = np.abs(np.linalg.svd(np.asarray(params.cell.W))[1] - 1).max()
    assert after < 0.05 < 0.5 < before


def test_two_regularizers_are_added():
    one = regularizers.both(*(lambda *a, n=n: {"W": jnp.full(2, n)} for n in (1.0, 2.5)))
    np.testing.assert_array_equal(one(None, None, None, None, None)["W"], [3.5, 3.5])
    assert regularizer_of(Method()) is None
    assert regularizer_of(Method(soft_orthogonal=1.0, omega=1.0)) is not None


def test_a_cell_without_w_has_no_spectrum_to_hold():
    params = rnn_jax.min_gru(H).init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="have no square leaf W"):
        spectral_penalty(params)


def test_without_switches_the_optimizer_is_the_plain_one():
    params = {"W": jnp.ones((2, 2))}
    (updates,), _ = updates_of(Method(optimizer="sgd"), params, params)
    np.testing.assert_array_equal(updates["W"], -np.ones((2, 2)))
    assert isinstance(optimizer_of(Method(), jnp.float32(1), 1), optax.GradientTransformation)


# Chance that comes with the inputs


def algorithm_of(**settings):
    """A memory experiment's algorithm, and one network's hyperparameters and state."""
    config = MemoryConfig(length="8", hidden_size=H, batch_size=3, test_every=2, **settings)
    algorithm = groups_of(config)[0].program.algorithm
    hparams = {"learning_rate": jnp.float32(0.05)}
    return algorithm, hparams, jax.jit(algorithm.init)(hparams, jax.random.key(0))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"detach": 0.5}, id="detach"),
        pytest.param(
            {"zoneout": 0.4, "detach": 0.5, "dilation": 2}, id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_training_draws_and_evaluation_does_not(settings):
    """Weights have the sizes of a plain network; a test is the same twice, an iteration is not."""
    algorithm, hparams, state = algorithm_of(cell="lstm", **settings)
    plain, _, untreated = algorithm_of(cell="lstm")
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, untreated.params)
    key = jax.random.key(0)
    evaluate = jax.jit(algorithm.evaluate)
    one = evaluate(state, key)
    assert np.array_equal(one["test_loss"], evaluate(state, key)["test_loss"])
    if "zoneout" not in settings:
        # Nothing is cut in a test, which has no backward pass anyway.
        np.testing.assert_allclose(
            one["test_loss"], jax.jit(plain.evaluate)(untreated, key)["test_loss"], rtol=1e-5
        )
    step = jax.jit(algorithm.train_chunk, static_argnums=3)
    trained = [step(hparams, state, key, 1)[0].params.cell.W for _ in range(2)]
    np.testing.assert_array_equal(*trained)
    other = jax.jit(plain.train_chunk, static_argnums=3)(hparams, untreated, key, 1)[0]
    assert np.any(np.abs(other.params.cell.W - trained[0]) > 1e-4)


def test_a_free_run_has_no_inputs_to_bring_chance_along(tmp_path):
    with pytest.raises(UsageError, match=r"--zoneout=0.1 and --detach=0: a network that runs free"):
        series.run(series.SeriesConfig(zoneout=0.1, workdir=str(tmp_path / "run")))
