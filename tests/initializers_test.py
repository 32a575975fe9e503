"""Sparse initial weights, by the properties that they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import initializers


@pytest.fixture(scope="module")
def weights():
    with jax.enable_x64(True):
        init = initializers.sparse(nonzeros=15, rho=0.95)
        return np.asarray(init(jax.random.key(3), (60, 60), jnp.float64))


def test_each_row_has_as_many_entries_as_asked_in_columns_of_its_own(weights):
    filled = weights != 0
    np.testing.assert_array_equal(filled.sum(axis=1), 15)
    assert len(np.unique(filled, axis=0)) == 60
    # A column has 15 on average; binomial, standard deviation 3.4.
    assert filled.sum(axis=0).min() >= 3
    assert filled.sum(axis=0).max() <= 30


def test_the_spectral_radius_is_exact(weights):
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(weights)).max(), 0.95, rtol=1e-12)


def test_entries_are_normal(weights):
    """Of 900 normal numbers 31.7 % lie beyond one standard deviation, give or take 1.6 %."""
    entries = weights[weights != 0]
    assert abs(entries.mean()) < 4 * entries.std() / np.sqrt(900)
    assert abs(np.mean(np.abs(entries) > entries.std()) - 0.317) < 4 * 0.016


def test_a_number_of_entries_that_no_row_has():
    with pytest.raises(ValueError, match=r"nonzeros is 15.*\(10, 10\): give at most 10"):
        initializers.sparse()(jax.random.key(0), (10, 10))
    for nonzeros in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"nonzeros is {nonzeros}"):
            initializers.sparse(nonzeros)


def test_the_type_asked_for():
    assert initializers.sparse(3)(jax.random.key(0), (8, 8), jnp.float32).dtype == jnp.float32
