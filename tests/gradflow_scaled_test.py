"""An array times a power of two: against NumPy's frexp and ldexp, up to the limits of each type."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rnn_jax import norms
from rnn_jax.gradflow import scaled
from rnn_jax.gradflow.scaled import NO_EXPONENT, Scaled, exponent_of, power_of_two

add, log_norm, rescale = (jax.jit(f) for f in (scaled.add, scaled.log_norm, scaled.rescale))
DTYPES = [np.float32, np.float64, ml_dtypes.bfloat16, np.float16]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_exponent_is_that_of_frexp(dtype):
    limits = jnp.finfo(dtype)
    rng = np.random.default_rng(0)
    powers = np.arange(limits.minexp, limits.maxexp)
    values = np.concatenate(
        [
            np.ldexp(1.0, powers).astype(dtype),
            np.ldexp(rng.uniform(1, 1.9, size=powers.size), powers).astype(dtype),
            np.nextafter(np.ldexp(1.0, powers[1:]).astype(dtype), dtype(0)),
            np.array([limits.tiny, limits.smallest_normal, limits.max, 1, 0.5], dtype),
        ]
    )
    exponents = exponent_of(jnp.asarray(values))
    assert exponents.dtype == jnp.int32
    np.testing.assert_array_equal(exponents, np.frexp(values.astype(np.float64))[1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_power_is_that_of_ldexp(dtype):
    limits = jnp.finfo(dtype)
    powers = np.arange(limits.minexp, limits.maxexp, dtype=np.int32)
    got = power_of_two(jnp.asarray(powers), dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got, np.float64), np.ldexp(1.0, powers))
    # Beyond what the type holds as a normal number: the nearest that it does.
    ends = power_of_two(jnp.array([limits.minexp - 1, -(2**30), limits.maxexp, 2**30]), dtype)
    low, high = np.ldexp(1.0, [limits.minexp, limits.maxexp - 1])
    np.testing.assert_array_equal(np.asarray(ends, np.float64), [low, low, high, high])


def exact(value, exponent):
    """ln|value * 2^exponent| per example, in float64."""
    with np.errstate(divide="ignore"):
        norm = np.linalg.norm(np.asarray(value, np.float64), axis=-1)
        return np.log(norm) + np.log(2) * np.asarray(exponent, np.float64)


@pytest.mark.parametrize("largest", [8e37, 3.4e38])
def test_rescaling_changes_no_digit(largest):
    """Up to the largest numbers of float32, whose power of two is beyond it."""
    rng = np.random.default_rng(1)
    sizes = np.array([1.2e-38, 1e-37, 1e-30, 0.5, 1.0, 3.0, 1e30, largest], np.float32)
    sizes, exponents = np.meshgrid(sizes, np.array([-(2**20), -3, 0, 2**20], np.int32))
    units = rng.uniform(0.3, 1, size=(*sizes.shape, 4)).astype(np.float32)
    units[..., 2] = 1
    units = np.where(np.abs(units * sizes[..., None]) < 1.2e-38, 1, units) * sizes[..., None]
    value, new = rescale(jnp.asarray(units), jnp.asarray(exponents))
    top = np.abs(value).max(axis=-1)
    assert np.all((top >= 0.5) & (top < 1)) or largest > 2.0**126
    shift = (np.asarray(new) - exponents)[..., None]
    np.testing.assert_array_equal(np.ldexp(np.asarray(value, np.float64), shift), units)
    np.testing.assert_allclose(
        log_norm(Scaled(value, new)), exact(units, exponents), rtol=2e-7, atol=3e-7
    )


@pytest.mark.parametrize("size", [1.2e-38, 1e-30, 8e37, 9e37, 1.6e38])
def test_norms_at_the_ends_of_float32(size):
    """Beyond 2^126 the inverse of a number is 0 where subnormal numbers are."""
    units = np.float32(size) * np.ones((5, 2, 4), np.float32)
    got = jax.jit(norms.state_norm, static_argnums=1)(units, 2)
    np.testing.assert_allclose(got, np.full((5, 2), 2 * np.float64(units[0, 0, 0])), rtol=1e-6)


def test_each_example_has_its_own_exponent_and_leaves_share_it():
    value = {
        "a": jnp.array([[1e-20, 0.0], [0.0, 0.0], [8.0, 1.0]]),
        "b": jnp.array([[1e-10], [0.0], [2.0]]),
    }
    new, exponent = rescale(value, jnp.array([7, 7, 7]))
    np.testing.assert_array_equal(exponent, [7 - 33, 7 + NO_EXPONENT, 7 + 4])
    np.testing.assert_array_equal(new["b"][:, 0], [np.float32(1e-10) * 2.0**33, 0, 2 / 16])
    np.testing.assert_array_equal(new["a"][2], [8 / 16, 1 / 16])
    logs = log_norm(Scaled(new, exponent))
    wanted = [np.log(1e-10) + 7 * np.log(2), -np.inf, 0.5 * np.log(69) + 7 * np.log(2)]
    np.testing.assert_allclose(logs, wanted, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
    value, exponent = rescale(jnp.array([[bad, 1.0], [4.0, 1.0]]), jnp.array([3, 3]))
    np.testing.assert_array_equal(value[0], [bad, 1])
    np.testing.assert_array_equal(exponent, [3, 6])
    logs = log_norm(Scaled(value, exponent))
    np.testing.assert_array_equal(np.isnan(logs), [np.isnan(bad), False])
    assert not np.isfinite(logs[0])


def test_a_sum_is_taken_at_the_scale_of_the_larger():
    """Exponents as far apart as they come; each pair in both orders."""
    rng = np.random.default_rng(2)
    gaps = np.array([0, 1, 5, 23, 24, 30, 125, 126, 127, 200, 10_000, 2**29])
    a, b = rng.uniform(0.5, 1, size=(2, len(gaps), 3)).astype(np.float32)
    high = np.full(len(gaps), 11, np.int32)
    low = (high - gaps).astype(np.int32)
    first, second = (
        Scaled(jnp.asarray(a), jnp.asarray(high)),
        Scaled(jnp.asarray(b), jnp.asarray(low)),
    )
    wanted = a.astype(np.float64) + np.ldexp(b.astype(np.float64), -gaps[:, None])
    for one, other in ((first, second), (second, first)):
        value, exponent = add(one, other)
        np.testing.assert_array_equal(exponent, high)
        np.testing.assert_allclose(value, wanted, rtol=6e-8)


def test_zero_is_the_neutral_element():
    zero = Scaled(jnp.zeros((2, 3)), jnp.full(2, NO_EXPONENT, jnp.int32))
    tiny = Scaled(jnp.full((2, 3), 0.75), jnp.array([-(2**20), 2**20]))
    for total in (add(zero, tiny), add(tiny, zero)):
        np.testing.assert_array_equal(total.value, tiny.value)
        np.testing.assert_array_equal(total.exponent, tiny.exponent)
    nothing = add(zero, zero)
    np.testing.assert_array_equal(rescale(*nothing).exponent, [NO_EXPONENT] * 2)
    np.testing.assert_array_equal(log_norm(nothing), [-np.inf] * 2)


def test_a_thousand_factors_lose_nothing():
    """Squaring a number again and again leaves float32 after seven steps."""
    value = Scaled(jnp.array([[0.75]]), jnp.array([0]))
    for _ in range(1000):
        value = rescale(0.75e-30 * value.value, value.exponent)
    wanted = np.log(0.75) + 1000 * np.log(np.float64(np.float32(0.75e-30)))
    np.testing.assert_allclose(log_norm(value), [wanted], rtol=3e-7)


def test_gradient_of_a_logarithm():
    """d ln|v| = v / |v|^2, at any scale; 0, and not NaN, where there is nothing."""

    def log(units):
        return jnp.sum(jnp.where(jnp.isfinite(x := log_norm(rescale(units, zeros))), x, 0))

    units = jnp.array([[3e-30, 4e-30], [3e15, 4e15], [0.0, 0.0]])
    zeros = jnp.zeros(3, jnp.int32)
    gradient = jax.grad(log)(units)
    np.testing.assert_allclose(
        gradient, [[0.12e30, 0.16e30], [0.12e-15, 0.16e-15], [0, 0]], rtol=1e-6
    )
