"""What is kept of a network that was trained: its line, and its curves and profiles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.analysis.sweep_theory import flow_at_stages
from experiments.training.algorithm import Arrays

Row = dict[str, Any]
CURVES = ("loss", "gradient_norm", "worst_norm", "traces", "test_loss", "wrong")


def describe_training(
    solved_wrong: float, stages: Sequence[str], predict: Callable[[Row], Row] | None = None
) -> Callable[[Row, Arrays], tuple[Row, Arrays]]:
    """The `describe` of a group of networks that are trained on a task.

    Args:
        solved_wrong: largest share of wrong sequences of a network that has solved its task.
        stages: of training at which its gradient's flow was measured.
        predict: `line so far -> ` what theory adds to it.

    The line has wrong and test_loss of the last test, final_loss (mean of the last tenth of
    training), solved and the number of steps, where it diverged (None where it did not), and
    slope, horizon, verdict and exponent at each stage.
    """

    def describe(point: Row, results: Arrays) -> tuple[Row, Arrays]:
        diverged = int(results["diverged_step"])
        wrong, test_loss = (
            float(results[name][-1] if name in results else results[f"{name}_end"])
            for name in ("wrong", "test_loss")
        )
        loss = results["loss"]
        line: Row = {
            "solved": bool(not diverged and wrong <= solved_wrong),
            "wrong": None if diverged else wrong,
            "test_loss": None if diverged else test_loss,
            "final_loss": float(np.mean(loss[-max(1, len(loss) // 10) :])),
            "steps": int(results["steps"]),
            "diverged_step": diverged or None,
            "diverged_time_step": int(results["diverged_time_step"]) or None,
        }
        kept = {name: results[name] for name in CURVES if name in results}
        flow, profiles = flow_at_stages(stages, results)
        predicted = predict(point) if predict is not None else {}
        return line | flow | predicted, kept | profiles

    return describe
