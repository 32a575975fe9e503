"""One thing to try, what it is worked out from, and how it is put into words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rnn_jax.gradflow.anatomy import Anatomy, Part, name_of, values_of
from rnn_jax.gradflow.measurements import Measurements, Network
from rnn_jax.gradflow.trials import Edit, Trial, improves
from rnn_jax.types import Params


class Remedy(NamedTuple):
    """One thing to try.

    Attributes:
        name: what kind it is.
        advice: what to do, with the number that speaks for it.
        setting: the number to set.
        moves: the measured quantity that it is meant to move: "growth rate", "horizon",
            "saturation" or "gradient norm" (that of dL/dtheta, of the mean loss over the batch).
        before, after: that quantity as it is, and as it was measured with the remedy; NaN where it
            was not tried.
        edits: what `apply_remedy` does to the parameters; empty where the remedy is another cell,
            another start or another way to train.
    """

    name: str
    advice: str
    setting: float
    moves: str
    before: float = math.nan
    after: float = math.nan
    edits: tuple[Edit, ...] = ()


class Case(NamedTuple):
    """All that a remedy is worked out from.

    Attributes:
        network: what was measured.
        found: what was measured on it.
        known: the cells that were recognised in its parameters.
    """

    network: Network
    found: Measurements
    known: list[Anatomy]

    @property
    def params(self) -> Params:
        """The parameters of the network."""
        return self.network.params


def after_trial(case: Case, name: str, advice: str, moves: str, done: Trial | None) -> list[Remedy]:
    """The remedy of a trial, if it moved its quantity as it is meant to."""
    if done is None or not fulfils(moves, case.found, done.after):
        return []
    advice = f"{advice}; {told(moves, case.found, done.after)}"
    before, after = quantities(moves, case.found, done.after)
    return [Remedy(name, advice, done.value, moves, before, after, done.edits)]


def fulfils(moves: str, before: Measurements, after: Measurements) -> bool:
    """Whether a trial did what its remedy promises, and made the gradient no worse elsewhere."""
    old, new = quantities(moves, before, after)
    if moves == "growth rate" and not abs(new) <= abs(old) / 2:
        return False
    if moves == "saturation" and not new < old / 2:
        return False
    return improves(before, after)


def quantity_of(found: Measurements) -> str:
    """What a remedy against this gradient is meant to move: its reach, or its growth."""
    return "horizon" if math.isfinite(found.horizon) else "growth rate"


def quantities(moves: str, before: Measurements, after: Measurements) -> tuple[float, float]:
    """The quantity that a remedy moves, before and after."""
    field = moves.replace(" ", "_")
    return getattr(before, field), getattr(after, field)


def told(moves: str, before: Measurements, after: Measurements) -> str:
    """What a trial changed, in words."""
    words = []
    if moves == "saturation":
        words.append(f"saturation {before.saturation:.0%} -> {after.saturation:.0%}")
    if math.isfinite(before.growth_rate) and math.isfinite(after.growth_rate):
        words.append(f"growth rate {before.growth_rate:+.3f} -> {after.growth_rate:+.3f}")
    if math.isfinite(min(before.horizon, after.horizon)):
        words.append(f"horizon {reach(before.horizon)} -> {reach(after.horizon)}")
    return f"tried: {', '.join(words)}"


def reach(horizon: float) -> str:
    """A horizon in words."""
    return f"{horizon:.0f} steps" if math.isfinite(horizon) else "unlimited"


def steps(count: int) -> str:
    """A number of steps in words."""
    return "1 step" if count == 1 else f"{count} steps"


def power(log: float) -> str:
    """e^log in words, whatever its size."""
    return f"{math.exp(log):.3g}" if abs(log) < 200 else f"10^{log / math.log(10):.0f}"


def exp(log: float) -> float:
    """e^log; inf beyond the range of floats."""
    return math.exp(log) if log < 709 else math.inf


def names(case: Case, parts: Sequence[Part]) -> str:
    """Parts as the user writes them."""
    found = [name_of(case.params, part) for part in parts]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"


def mean(case: Case, part: Part) -> float:
    """The mean of a part's numbers."""
    return float(np.mean(np.asarray(values_of(case.params, part), np.float64)))
