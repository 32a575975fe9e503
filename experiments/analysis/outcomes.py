"""What the training of a run came to, beside the loss of an answer without memory."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rnn_jax import gradflow
from rnn_jax.io import records
from rnn_jax.tasks import sine


def outcome_of_run(folder: str | Path, settings: dict[str, Any]) -> gradflow.Outcome | None:
    """The loss with which a run ended, and its task's without memory; None where unknown.

    Args:
        folder: of the run.
        settings: its config.json.
    """
    find = OUTCOMES.get(str(settings.get("experiment")))
    outcome = None if find is None else find(folder, settings)
    return outcome if outcome is not None and math.isfinite(outcome.loss) else None


def _sine(folder: str | Path, settings: dict[str, Any]) -> gradflow.Outcome | None:
    """The mean loss of the last iterations; of steps that run free a memoryless one is higher."""
    del settings
    rows = records.load_metrics(folder)
    if not rows:
        return None
    return gradflow.Outcome(float(rows[-1]["mean_loss"]), sine.task(batch_size=1).chance_loss)


OUTCOMES: dict[str, Callable[[str | Path, dict[str, Any]], gradflow.Outcome | None]] = {
    "sine": _sine
}
"""Experiment -> how its run ended."""
