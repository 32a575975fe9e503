"""What the training of a run came to, beside the loss of an answer without memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnn_jax import gradflow
from rnn_jax.io import records


def outcome_of(
    folder: str | Path, row: Mapping[str, Any], chance_loss: float
) -> gradflow.Outcome | None:
    """The loss with which a network ended, and its task's without memory; None where unknown.

    Args:
        folder: of the run.
        row: the network's line in networks.jsonl; empty for the run of a single network, whose loss
            is the mean of the last iterations logged.
        chance_loss: of its task. Where steps run free, a memoryless answer's is higher.
    """
    if row:
        loss = row.get("test_loss", row.get("final_loss"))
    else:
        lines = records.load_metrics(folder)
        loss = lines[-1].get("mean_loss") if lines else None
    if not isinstance(loss, int | float) or not math.isfinite(loss) or loss < 0:
        return None
    return gradflow.Outcome(float(loss), chance_loss)
