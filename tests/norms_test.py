"""Norms over the state against NumPy, also where squares leave float32's range."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import norms


class Pair(NamedTuple):
    """A state of two leaves."""

    c: object
    h: object


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_norm_is_over_all_units_of_all_leaves(x64, rng):
    c, h = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 3, 2, 2))
    wanted = np.sqrt((c**2).sum(axis=2) + (h**2).sum(axis=(2, 3)))
    np.testing.assert_allclose(norms.state_norm(Pair(c, h), 2), wanted, rtol=1e-14)
    np.testing.assert_allclose(norms.state_norm(c, 2), np.linalg.norm(c, axis=2), rtol=1e-14)
    np.testing.assert_allclose(
        norms.state_norm(c, 1), np.linalg.norm(c.reshape(4, -1), axis=1), rtol=1e-14
    )


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norm_survives_float32(size):
    """The squares of these numbers are 0 and inf in float32."""
    units = jnp.full((2, 4), size, jnp.float32)
    np.testing.assert_allclose(norms.state_norm(units, 1), [2 * size] * 2, rtol=1e-6)
    rms = norms.adjoint_norms(jnp.full((2, 3, 4), size, jnp.float32))
    np.testing.assert_allclose(rms, [3 * 2 * size] * 2, rtol=1e-6)


def test_what_is_not_finite_stays_so_and_zero_stays_zero():
    units = jnp.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0], [0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(norms.state_norm(units, 1), [np.nan, np.inf, np.inf, 0, 5])


def test_adjoint_norms_take_the_batch_size_out(x64, rng):
    """Example b of B holds 1/B of its own gradient; the root mean square is over the examples."""
    own = rng.normal(size=(4, 3, 5))
    wanted = np.sqrt((np.linalg.norm(own, axis=2) ** 2).mean(axis=1))
    np.testing.assert_allclose(norms.adjoint_norms(own / 3), wanted, rtol=1e-14)
    one = own[:, :1]
    np.testing.assert_allclose(norms.adjoint_norms(one), np.linalg.norm(one[:, 0], axis=1))
    again = np.tile(one, (1, 7, 1)) / 7
    np.testing.assert_allclose(norms.adjoint_norms(again), norms.adjoint_norms(one), rtol=1e-14)


def test_per_example_flattens_the_units_alone(rng):
    leaf = jnp.asarray(rng.normal(size=(4, 3, 2, 5)))
    np.testing.assert_array_equal(norms.per_example(leaf, 2), leaf.reshape(4, 3, 10))
    np.testing.assert_array_equal(norms.per_example(leaf, 1), leaf.reshape(4, 30))
