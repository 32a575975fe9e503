"""The clipping report against NumPy, and against what clipping by Optax does."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnn_jax.gradflow import clipping_report
from rnn_jax.training import optim


def norms(seed=0, count=1000, spikes=30):
    """Ordinary steps and a few explosions."""
    rng = np.random.default_rng(seed)
    values = np.exp(0.5 * rng.normal(size=count))
    values[rng.choice(count, spikes, replace=False)] *= 1e4
    return values


def test_quantiles_and_shares_are_those_of_numpy():
    values = norms()
    report = clipping_report(values, bound=1.5)
    assert list(report.quantiles) == [0.01, 0.1, 0.5, 0.9, 0.99]
    ordered = np.sort(values)
    for share, value in report.quantiles.items():
        below = share * (len(ordered) - 1)
        low = int(below)
        wanted = ordered[low] + (below - low) * (ordered[low + 1] - ordered[low])
        np.testing.assert_allclose(value, wanted, rtol=1e-12)
    assert report.share_clipped == np.mean(values > 1.5)
    assert report.share_suggested == np.mean(values > report.suggested)
    assert report.num_nonfinite == 0


def test_suggested_bound_catches_the_explosions_and_nothing_else():
    report = clipping_report(norms())
    np.testing.assert_allclose(report.suggested, 10 * report.quantiles[0.5])
    assert report.share_suggested == 0.03
    assert np.isnan(report.share_clipped)


def test_suggested_bound_leaves_a_wide_spread_alone():
    """Where a tenth of the steps is above ten times the median, that is how the task is."""
    values = np.exp(4.0 * np.random.default_rng(1).normal(size=1000))
    report = clipping_report(values)
    np.testing.assert_allclose(report.suggested, np.quantile(values, 0.9))
    assert report.suggested > 10 * np.median(values)
    assert report.share_suggested == 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_counted_and_kept_out_of_the_quantiles(bad):
    values = norms()
    report = clipping_report(np.concatenate([values, [bad, bad]]), bound=1.5)
    plain = clipping_report(values, bound=1.5)
    assert report.quantiles == plain.quantiles
    assert (report.num_nonfinite, report.suggested) == (2, plain.suggested)
    # They are no ordinary steps: of 1,002, two more are above any bound.
    np.testing.assert_allclose(report.share_clipped * 1002, plain.share_clipped * 1000 + 2)
    np.testing.assert_allclose(report.share_suggested * 1002, 32)
    assert "2 not finite" in str(report)


def test_shares_are_of_the_steps_that_optax_clips():
    gradients = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    optimizer = optim.recorded(optax.sgd(1.0), clip_norm=1.5)
    opt_state = optimizer.init(jnp.zeros(3))
    raw, clipped = [], []
    for gradient in gradients:
        update, opt_state = optimizer.update(jnp.asarray(gradient), opt_state)
        raw.append(optim.raw_norm(opt_state))
        clipped.append(not np.allclose(update, -gradient, rtol=1e-6))
    report = clipping_report(np.array(raw), bound=1.5)
    assert report.share_clipped == np.mean(clipped)
    assert 0.2 < report.share_clipped < 0.9


def test_report_is_one_line():
    line = str(clipping_report(norms(), bound=1.5))
    assert "\n" not in line
    assert "clipping fired in" in line
    report = clipping_report(norms())
    line = str(report)
    assert "fired" not in line
    assert "not finite" not in line
    assert f"50%: {report.quantiles[0.5]:.2g}" in line
    assert f"a bound of {report.suggested:.2g} would clip 3.0%" in line


@pytest.mark.parametrize("shape", [(), (1,), (20, 1), (4, 5)])
def test_any_shape_will_do(shape):
    values = np.full(shape, 2.0, np.float32)
    report = clipping_report(values, bound=2.0)
    assert set(report.quantiles.values()) == {2.0}
    assert (report.suggested, report.share_clipped, report.share_suggested) == (20, 0, 0)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf, -np.inf]])
def test_nothing_to_report(values):
    with pytest.raises(ValueError, match=f"none of the {len(values)} gradient norms is finite"):
        clipping_report(np.array(values))
