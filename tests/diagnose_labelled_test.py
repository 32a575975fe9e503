"""The verdict of `diagnose` on networks whose gradient is known in closed form."""

import collections

import labelled_networks
import numpy as np
import pytest
from labelled_gates import KINDS
from marks import slow_but_for

from rnn_jax import gradflow

ROUNDING = 3e-6
"""Of a slope in nats per step, or relative to it above 1: some of float32's roundings, 6e-8 each,
in the product of a step and in its logarithm."""
FAR = 1e5
"""A horizon that rounding alone may give where the gradient stays as it is."""


def diagnosed(network, scale=1.0):
    losses = labelled_networks.step_losses(network, scale)
    return gradflow.diagnose(*network[1:5], losses, lengths=network.lengths)


def summary(kind, networks, diagnoses):
    """One line: how many networks, and what was said of those of each verdict."""
    said = collections.defaultdict(collections.Counter)
    for network, found in zip(networks, diagnoses, strict=True):
        said[network.verdict][found.verdict] += 1
    parts = (
        f"{verdict}: " + ", ".join(f"{count} {name}" for name, count in found.items())
        for verdict, found in sorted(said.items())
    )
    return f"{kind:20s} {len(networks):3d}   " + "; ".join(parts)


def same_horizon(a, b):
    return np.isnan(b) or (min(a, b) > FAR) or abs(a - b) <= 1e-4 * abs(b)


def test_there_are_enough_networks_of_every_verdict():
    networks = [network for kind in KINDS.values() for network in kind()]
    counts = collections.Counter(network.verdict for network in networks)
    lengths = [len(network.xs) for network in networks]
    assert len(networks) >= 60
    assert set(counts) == {"vanishing", "exploding", "healthy", "dead", "mixed"}
    assert min(counts.values()) >= 5
    assert (min(lengths), max(lengths)) == (20, 2000)


@pytest.mark.parametrize("kind", slow_but_for(KINDS.keys() - {"gru", "leaky"}, KINDS))
def test_labelled(kind):
    """All that is known of a kind's networks, in one test so that they are compiled once."""
    networks = KINDS[kind]()
    plain = [diagnosed(network) for network in networks]
    print("\n" + summary(kind, networks, plain))
    wrong = [
        (number, network.verdict, str(found))
        for number, (network, found) in enumerate(zip(networks, plain, strict=True))
        if found.verdict != network.verdict
    ]
    assert not wrong
    for number, (network, found) in enumerate(zip(networks, plain, strict=True)):
        check_slope(number, network, found)
        assert same_horizon(found.horizon, network.horizon), (number, network.horizon, found)
        for scale in (1e-6, 1e6):
            check_scaled(number, diagnosed(network, scale), found)


def check_slope(number, network, found):
    """Where it is constant, within three of its errors, and these are small."""
    if np.isnan(network.slope):
        return
    rounding = ROUNDING * max(1, abs(network.slope))
    assert abs(found.slope - network.slope) <= 3 * found.slope_error + rounding, (number, found)
    assert found.slope_error <= 1e-3 * abs(network.slope) + rounding, (number, found)
    assert found.sure, (number, found)


def check_scaled(number, found, plain):
    """The scale of the loss plays no part."""
    assert (found.verdict, found.sure) == (plain.verdict, plain.sure), (number, found, plain)
    assert same_horizon(found.horizon, plain.horizon), (number, found, plain)
    for field in ("slope", "slope_error"):
        one, other = getattr(found, field), getattr(plain, field)
        np.testing.assert_allclose(one, other, rtol=ROUNDING, atol=ROUNDING, err_msg=str(number))
