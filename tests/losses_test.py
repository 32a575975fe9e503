"""Losses against NumPy and values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import losses


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_squared_error_has_no_half_and_means_over_outputs(x64, rng):
    outputs, targets = rng.normal(size=(2, 4, 3, 2))
    wanted = ((outputs - targets) ** 2).sum(axis=-1) / 2
    np.testing.assert_allclose(losses.squared_error(outputs, targets), wanted, rtol=1e-14)


def test_cross_entropy_is_in_nats(x64, rng):
    logits, labels = 3 * rng.normal(size=(4, 3, 8)), rng.integers(0, 8, size=(4, 3))
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    wanted = np.log(np.exp(logits).sum(axis=-1)) - chosen
    given = jax.jit(losses.cross_entropy)(logits, labels)
    np.testing.assert_allclose(given, wanted, rtol=1e-12)
    guess = jax.jit(losses.cross_entropy)(np.zeros((1, 8)), np.array([5]))
    np.testing.assert_allclose(guess, [np.log(8)], rtol=1e-14)


def test_accuracy_is_one_where_the_largest_logit_is_the_labels(x64):
    logits = jnp.array([[0.1, 0.9, 0.0], [2.0, 1.0, -1.0], [-3.0, -2.0, -1.0]])
    given = losses.accuracy(logits, jnp.array([1, 1, 2]))
    np.testing.assert_array_equal(given, [1, 0, 1])
    assert given.dtype == logits.dtype


def test_masked_mean_counts_only_what_is_marked(x64, rng):
    values, mask = rng.normal(size=(5, 4)), rng.random(size=(5, 4)) < 0.5
    mask[:, 2] = False
    # What is masked may be anything.
    values[~mask] = np.nan
    wanted = [values[mask[:, b], b].mean() if mask[:, b].any() else 0 for b in range(4)]
    np.testing.assert_allclose(losses.masked_mean(values, mask, axis=0), wanted, rtol=1e-13)
    np.testing.assert_allclose(losses.masked_mean(values, mask), values[mask].mean(), rtol=1e-13)
    assert losses.masked_mean(values, np.zeros_like(mask)) == 0


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(4, 3, 1\).*\(4, 3\)"):
        losses.squared_error(jnp.zeros((4, 3, 1)), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"\(4, 3, 8\).*\(4, 3, 1\)"):
        losses.cross_entropy(jnp.zeros((4, 3, 8)), jnp.zeros((4, 3, 1), int))
