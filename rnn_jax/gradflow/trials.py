"""A remedy tried before it is advised: parameters changed, and the same gradient measured again."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.gradflow.anatomy import Part
from rnn_jax.gradflow.measurements import Measurements, Network, measure
from rnn_jax.types import Array, Params

PROBE = 0.1
"""Nats by which a parameter is scaled, or units by which it is shifted, to see what it does."""
LEAST_HOLD = 0.02
"""Change of the growth rate per nat, or per unit, below which a parameter has no hold on it."""
ATTEMPTS = 6
"""Secants at most until the growth rate is near enough to 0."""
SEARCHED = (-2.5, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.5)
"""Where it is looked for, in nats or units, if secants do not find it."""


class Edit(NamedTuple):
    """A change of one part of the parameters.

    Attributes:
        part: which.
        how: "scale", "shift" or "set" it by or to the value, or draw it "orthogonal", times the
            value.
        value: the number.
    """

    part: Part
    how: str
    value: float


class Trial(NamedTuple):
    """A change, and what was measured with it."""

    edits: tuple[Edit, ...]
    value: float
    after: Measurements


def edited(params: Params, edits: Sequence[Edit]) -> Params:
    """The parameters with the edits made, each leaf of its own shape and type."""
    by_path: dict[str, list[Edit]] = {}
    for edit in edits:
        by_path.setdefault(edit.part.path, []).append(edit)

    def change(path: tuple[object, ...], leaf: Array) -> Array:
        for edit in by_path.get(jax.tree_util.keystr(path), ()):
            leaf = jnp.asarray(leaf)
            columns = ... if edit.part.columns is None else (..., slice(*edit.part.columns))
            leaf = leaf.at[columns].set(_changed(leaf[columns], edit).astype(leaf.dtype))
        return leaf

    return jax.tree_util.tree_map_with_path(change, params)


def _changed(values: Array, edit: Edit) -> Array:
    if edit.how == "scale":
        return values * edit.value
    if edit.how == "shift":
        return values + edit.value
    if edit.how == "set":
        return jnp.full_like(values, edit.value)
    assert edit.how == "orthogonal"
    # In float32 at least: decompositions know no shorter type.
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    return initializers.orthogonal(edit.value)(jax.random.key(0), values.shape, dtype)


def tried(network: Network, edits: Sequence[Edit]) -> Measurements | None:
    """What is measured with the edits; None where the states leave the finite range."""
    try:
        return measure(network._replace(params=edited(network.params, edits)))
    except ValueError:
        # Shapes fit, for the network itself was measured: its numbers do not.
        return None


def trial(network: Network, parts: Sequence[Part], how: str, value: float) -> Trial | None:
    """The same edit of several parts, tried."""
    edits = tuple(Edit(part, how, value) for part in parts)
    after = tried(network, edits)
    return None if after is None else Trial(edits, value, after)


def hold(network: Network, before: Measurements, parts: Sequence[Part], how: str) -> float:
    """d growth rate / d ln(scale), or / d shift, of some parts; NaN where it is not known."""
    for amount in (PROBE, -PROBE):
        probe = _at(network, parts, how, amount)
        if probe is not None:
            return (probe.after.growth_rate - before.growth_rate) / amount
    return math.nan


def solved(
    network: Network, before: Measurements, parts: Sequence[Part], how: str, derivative: float
) -> Trial | None:
    """The common scale or shift that brings the growth rate nearest to 0.

    By secants, and where these fail, as they do where the states are chaotic and the growth rate
    is a rough function of any weight, by a coarse search on either side.

    Args:
        network, before: what was measured.
        parts: what is scaled or shifted.
        how: "scale" or "shift".
        derivative: what `hold` says of them.

    Returns:
        The best that was found; None where the parts have no hold on the growth rate, or nothing
        brings it half-way to 0 without making the gradient worse elsewhere.
    """
    if not abs(derivative) > LEAST_HOLD:
        return None
    found = _by_secants(network, before, parts, how, derivative)
    best = _best(network, before, found)
    if best is None or abs(best.after.growth_rate) * before.num_steps > 1:
        found += [_at(network, parts, how, amount) for amount in SEARCHED]
        best = _best(network, before, found)
    return best


def _by_secants(
    network: Network, before: Measurements, parts: Sequence[Part], how: str, derivative: float
) -> list[Trial | None]:
    found: list[Trial | None] = []
    longest = 3 + 1.5 * abs(before.growth_rate)
    at, rate = 0.0, before.growth_rate
    for _ in range(ATTEMPTS):
        new = max(-longest, min(longest, at - rate / derivative))
        found.append(done := _at(network, parts, how, new))
        if done is None or not math.isfinite(done.after.growth_rate):
            longest = abs(new) / 2
            continue
        # Half a nat over the whole sequence is as good as nothing.
        if abs(done.after.growth_rate) * before.num_steps < 0.5 or new == at:
            break
        slope = (done.after.growth_rate - rate) / (new - at)
        derivative = slope if abs(slope) > LEAST_HOLD else derivative
        at, rate = new, done.after.growth_rate
    return found


def _best(network: Network, before: Measurements, found: Sequence[Trial | None]) -> Trial | None:
    """The trial with the growth rate nearest to 0, of those that are better than before.

    And better a little further on, too: a growth rate that is a rough function of a weight may
    come near 0 by chance.
    """

    def is_better(done: Trial | None) -> bool:
        return (
            done is not None
            and abs(done.after.growth_rate) <= abs(before.growth_rate) / 2
            and improves(before, done.after)
        )

    better = [done for done in found if done is not None and is_better(done)]
    further = abs(before.growth_rate) / 10
    for done in sorted(better, key=lambda done: abs(done.after.growth_rate)):
        parts, how = [edit.part for edit in done.edits], done.edits[0].how
        value = done.value * math.exp(further) if how == "scale" else done.value + further
        if is_better(trial(network, parts, how, value)):
            return done
    return None


def improves(before: Measurements, after: Measurements) -> bool:
    """Whether the gradient fares better on its way back."""
    if after.verdict == "healthy":
        return True
    if before.verdict in ("vanishing", "dead"):
        return after.verdict not in ("exploding", "dead") and (
            after.horizon >= 2 * max(before.horizon, 1)
        )
    if after.verdict == "dead":
        return False
    return after.excursion <= before.excursion / 2


def _at(network: Network, parts: Sequence[Part], how: str, amount: float) -> Trial | None:
    """A trial at a scale of e^amount, or at a shift of it."""
    return trial(network, parts, how, math.exp(amount) if how == "scale" else amount)
