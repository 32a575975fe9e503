"""Did the task need the reach that the gradient lacks? The loss reached says it."""

import math
from typing import NamedTuple

LEARNED, NOT_LEARNED = 0.1, 0.9
"""Shares of the loss without memory, below which a task counts as learned, above which as not."""


class Outcome(NamedTuple):
    """What training came to.

    Attributes:
        loss: the loss that was reached.
        chance_loss: the loss of the best answer that remembers nothing, in the same unit.
    """

    loss: float
    chance_loss: float


def check_outcome(outcome: Outcome | None) -> None:
    """`ValueError` for losses that say nothing about each other."""
    if outcome is None:
        return
    if not (outcome.chance_loss > 0 and math.isfinite(outcome.chance_loss)):
        raise ValueError(
            f"outcome.chance_loss is {outcome.chance_loss}; give the positive loss of an answer "
            "that remembers nothing: ln(classes) for cross-entropy, the targets' variance for a "
            "mean squared error"
        )
    if not outcome.loss >= 0:
        raise ValueError(f"outcome.loss is {outcome.loss}; give a loss of at least 0")


def was_learned(outcome: Outcome) -> bool:
    """Whether the loss is far below what an answer without memory comes to."""
    return outcome.loss <= LEARNED * outcome.chance_loss


def about_the_task(verdict: str, horizon: float, outcome: Outcome | None) -> str:
    """What a verdict about the gradient means for the task; empty where it means nothing.

    Args:
        verdict, horizon: of `Diagnosis`.
        outcome: what training came to, where it is known.
    """
    if verdict == "healthy" and outcome is None:
        return ""
    if outcome is None:
        if verdict != "vanishing":
            return ""
        return (
            f"inputs more than {horizon:.0f} steps before a loss have next to no part in this "
            "gradient: a task that needs them is learned slowly or not at all; if your loss is "
            "good already, the task does not need them, and nothing has to change"
        )
    losses = f"loss {outcome.loss:.2g}; {outcome.chance_loss:.2g} without memory"
    if was_learned(outcome):
        learned = f"learned ({losses})"
        if verdict == "vanishing":
            return (
                f"{learned}: it does not need a gradient that reaches further back than "
                f"{horizon:.0f} steps, and nothing has to change"
            )
        if verdict in ("exploding", "mixed"):
            return f"{learned}: but one large gradient can undo it; bound it while you train on"
        return learned
    how = "not learned" if outcome.loss >= NOT_LEARNED * outcome.chance_loss else "learned in part"
    learned = f"{how} ({losses})"
    if verdict == "vanishing":
        return (
            f"{learned}: if the answer lies more than {horizon:.0f} steps before the loss, this "
            "gradient hardly knows of it"
        )
    if verdict == "healthy":
        return f"{learned}: the gradient reaches all of the sequence, so look elsewhere"
    return learned
