"""The slope of a lag profile and its error: NumPy in, known answers out."""

import numpy as np
import pytest

from rnn_jax.gradflow import profile


def white(rng, steps, batch):
    return rng.normal(size=(steps, batch))


def walk(rng, steps, batch):
    """What ln|dL/ds_t| does where the Jacobians are independent."""
    return np.cumsum(rng.normal(size=(steps, batch)), axis=0)


@pytest.mark.parametrize(
    ("noise", "batch", "steps", "least"),
    [
        (white, 1, 20, 0.95),
        (white, 1, 200, 0.95),
        (white, 16, 200, 0.95),
        (walk, 2, 200, 0.85),
        (walk, 16, 20, 0.95),
        (walk, 16, 200, 0.95),
    ],
)
def test_errors_cover_the_truth(noise, batch, steps, least):
    """Two errors hold the true slope as often as they should, and are not empty talk."""
    rng = np.random.default_rng(0)
    lags = np.arange(steps)[:, None]
    fits = [profile.fit_slope(-0.3 * lags + noise(rng, steps, batch)) for _ in range(200)]
    off = np.array([abs(fit.slope + 0.3) for fit in fits])
    errors = np.array([fit.error for fit in fits])
    assert np.mean(off <= 2 * errors) >= least
    # No more than three times what the slopes really scatter by.
    assert np.median(errors) <= 3 * np.sqrt(np.mean(off**2))


def test_line_without_noise_is_exact():
    sizes = np.array([[0.0, 700.0, -5.0]])
    fit = profile.fit_slope(sizes - 2.5 * np.arange(40)[:, None])
    np.testing.assert_allclose(fit.slope, -2.5, rtol=1e-13)
    assert fit.error <= 1e-13
    assert (fit.first, fit.last) == (4, 39)


def test_first_tenth_of_the_lags_is_left_out():
    lags = np.arange(100.0)[:, None]
    bent = np.where(lags < 10, -5 * lags, -0.1 * lags)
    np.testing.assert_allclose(profile.fit_slope(bent).slope, -0.1, rtol=1e-12)


def test_examples_that_are_exactly_zero_are_left_out():
    lags = np.arange(50.0)[:, None]
    logs = np.concatenate([-0.2 * lags, np.full_like(lags, -np.inf), -0.2 * lags], axis=1)
    logs[30:, 0] = -np.inf
    fit = profile.fit_slope(logs)
    np.testing.assert_allclose(fit.slope, -0.2, rtol=1e-12)
    assert profile.fit_slope(np.full((50, 2), -np.inf)).error == np.inf


def test_median_example_is_what_counts():
    lags = np.arange(50.0)[:, None]
    slopes = np.array([[-0.1, -0.1, -0.1, 3.0, -2.0]])
    np.testing.assert_allclose(profile.fit_slope(slopes * lags).slope, -0.1, rtol=1e-12)


def test_profile_counts_back_from_each_last_loss():
    logs = np.arange(12.0).reshape(4, 3)
    found = profile.lag_profile(logs, np.array([3, 1, 0]))
    wanted = [[9, 4, 2], [6, 1, np.nan], [3, np.nan, np.nan], [0, np.nan, np.nan]]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("falls", [(0.5, 0.5, 0.1), (0.5, 0.1, 2.0)])
def test_horizon_is_the_median_fall(falls):
    lags = np.arange(60.0)[:, None]
    logs = 7.0 + np.log(np.array(falls))[None] * lags
    assert profile.memory_horizon(logs, profile.fit_slope(logs)) == 10


def test_horizon_beyond_the_sequence_is_extrapolated():
    logs = -0.01 * np.arange(60.0)[:, None]
    horizon = profile.memory_horizon(logs, profile.fit_slope(logs))
    np.testing.assert_allclose(horizon, np.log(1000) / 0.01, rtol=1e-9)
    noisy = logs + np.random.default_rng(1).normal(size=(60, 1))
    assert np.ptp(noisy) < np.log(1000)
    assert profile.memory_horizon(noisy, profile.fit_slope(noisy)) == np.inf
