"""Diagnose a network of a run: how its gradient fared at the start of training and at its end.

Works on the folder of a run of every experiment that has networks: sine, memory, digits, series,
gradient_sweep, gradient_flow. Prints what `rnn_jax.gradflow.diagnose` finds for the network as it
was initialized and as it was trained last, with remedies, what changed between the two, and how
often clipping fired. Beside the verdict stands whether the task needed more: the loss with which
training ended, and that of the best answer without memory.

Of a run of many networks --network chooses one, by its number in networks.jsonl or by settings;
without it the first is taken, and what others there are is said. A run of a cell or a task of
somebody's own names a module: it is imported only where --cell or --task names it too.

Examples:
  python -m experiments.diagnose --run=runs/sine
  python -m experiments.diagnose --run=runs/memory --network=cure=lstm,seed=1 --at=end
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from experiments.analysis.kept_networks import Choice, choose
from experiments.analysis.rebuilt import rebuild
from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import UsageError, check, launch, option
from rnn_jax import gradflow
from rnn_jax.io import parameters, records

BOTH = "both"


@dataclasses.dataclass(frozen=True)
class DiagnoseConfig:
    """Settings; see `--help`."""

    run: str = option("", "folder of the run")
    at: str = option(BOTH, "of its training", choices=(BOTH, *parameters.STAGES))
    network: str = option(
        "", "which of its networks: a number, or settings such as cure=lstm,seed=1"
    )
    cell: str = option("", "the run's my_module:my_cell, if it has one and you trust it")
    task: str = option("", "the run's my_module:my_task, if it has one and you trust it")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


def stages_of(config: DiagnoseConfig, settings: dict[str, object]) -> tuple[str, ...]:
    """The stages of training to look at; of networks that do not train there is one."""
    if config.at != BOTH:
        return (config.at,)
    trains = settings.get("experiment") != "gradient_flow" and settings.get("train_steps") != 0
    stages = parameters.STAGES if trains else parameters.STAGES[:1]
    kept = tuple(stage for stage in stages if parameters.is_kept(config.run, stage))
    return kept or stages[:1]


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


def clipping(config: DiagnoseConfig, choice: Choice, settings: dict[str, object]) -> str:
    """How often clipping fired in a run of one network, which keeps the norm of every iteration."""
    path = Path(config.run) / records.ARRAYS / "gradient_norm.npy"
    if choice.number is not None or not path.exists():
        return ""
    norms = records.load_array(config.run, "gradient_norm")
    if norms.ndim != 1 or norms.dtype.kind != "f":
        raise ValueError(
            f"--run={config.run}: gradient_norm is {norms.dtype} {norms.shape}, but one real "
            "number an iteration is wanted"
        )
    if not np.isfinite(norms).any():
        return ""
    bound = settings.get("clip_norm")
    return str(
        gradflow.clipping_report(norms, bound if isinstance(bound, float) and bound else None)
    )


def main(config: DiagnoseConfig) -> None:
    """Prints the diagnosis of a run."""
    check(config)
    if not config.run:
        raise UsageError("--run is empty; name the folder of a run, such as --run=runs/sine")
    use_compilation_cache(config.compilation_cache)
    settings = records.load_config(config.run)
    choice = choose(config.run, config.network)
    own = [word.strip() for text in (config.cell, config.task) for word in text.split(",")]
    if choice.about:
        print(choice.about)
    found = {}
    for stage in stages_of(config, settings):
        rebuilt = rebuild(config.run, settings, choice, stage, own)
        found[stage] = gradflow.diagnose(*rebuilt.network, outcome=rebuilt.outcome)
        print(f"--- {stage} of training ---")
        print(found[stage])
    if len(found) == len(parameters.STAGES):
        print(changes(*found.values()))
    elif config.at == BOTH and settings.get("train_steps"):
        print("--- end of training ---\nno parameters were kept: the run was stopped before")
    if report := clipping(config, choice, settings):
        print(report)


if __name__ == "__main__":
    launch(main, DiagnoseConfig)
