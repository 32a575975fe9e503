"""Diagnose the network of a run: how its gradient fared at the start of training and at its end.

Works on the folder of a finished or stopped run. Prints what `rnn_jax.gradflow.diagnose` finds for
the network as it was initialized and as it was trained last, what changed between the two, and how
often clipping fired. Beside the verdict stands whether the task needed more: the loss with which
training ended, and that of the best answer without memory, where the experiment knows it.

Example:
  python -m experiments.diagnose --run=runs/sine
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from experiments.analysis.outcomes import outcome_of_run
from experiments.analysis.sine_network import network_of_run
from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import UsageError, launch, option
from rnn_jax import gradflow
from rnn_jax.io import records


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig:
    """Settings; see `--help`."""

    run: str = option("", "folder of the run")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


def diagnose_run(folder: str, moment: str) -> gradflow.Diagnosis | None:
    """The diagnosis at the start or end of training; None where the run kept no such parameters."""
    if not records.tree_exists(folder, f"params_{moment}"):
        return None
    network = network_of_run(folder, moment)
    ended = moment == "end"
    outcome = outcome_of_run(folder, records.load_config(folder)) if ended else None
    return gradflow.diagnose(*network, outcome=outcome)


def changes(start: gradflow.Diagnosis, end: gradflow.Diagnosis) -> str:
    """What training changed, in one line."""
    words = []
    for name in ("verdict", "growth_rate", "horizon", "saturation", "exponent"):
        old, new = getattr(start, name), getattr(end, name)
        if isinstance(old, float):
            if math.isnan(old) and math.isnan(new):
                continue
            old, new = f"{old:.3g}", f"{new:.3g}"
        name = name.replace("_", " ")
        words.append(f"{name} {old}" if old == new else f"{name} {old} -> {new}")
    return "from start to end: " + ", ".join(words)


def main(config: DiagnoseConfig) -> None:
    """Prints the diagnosis of a run."""
    if not config.run:
        raise UsageError("--run is empty; name the folder of a run, such as --run=runs/sine")
    use_compilation_cache(config.compilation_cache)
    settings = records.load_config(config.run)
    found = {moment: diagnose_run(config.run, moment) for moment in ("start", "end")}
    if not any(found.values()):
        raise UsageError(f"--run={config.run} holds no parameters; let the run start first")
    for moment, diagnosis in found.items():
        print(f"--- {moment} of training ---")
        print(diagnosis or "no parameters were kept: the run was stopped before")
    start, end = found["start"], found["end"]
    if start and end:
        print(changes(start, end))
    if not (Path(config.run) / records.ARRAYS / "gradient_norm.npy").exists():
        return
    norms = records.load_array(config.run, "gradient_norm")
    if norms.ndim != 1 or norms.dtype.kind != "f":
        raise ValueError(
            f"--run={config.run}: gradient_norm is {norms.dtype} {norms.shape}, but one real "
            "number an iteration is wanted"
        )
    if np.isfinite(norms).any():
        print(gradflow.clipping_report(norms, settings.get("clip_norm") or None))


if __name__ == "__main__":
    launch(main, DiagnoseConfig)
