"""Set training runs side by side: loss, gradient by time step, and how far back it reaches.

Name the folders of two or more runs, of one experiment or of several; or of one whose networks
differ in more than their seeds. Each is called by the settings in which it differs from the others.
Networks of a run that differ in their seeds alone are one line, the median; --network=cure=lstm
takes those of the runs' networks that have a setting.

The e-folding length is the number of steps back in which |dL/ds_t|, as a straight line through its
logarithm says, falls to 1/e. |dL/ds_t| is that of the loss that was trained on: where every step
has one, the losses of all later steps count together.

Written to --workdir: compare.png and table.md, which is printed too.

Examples:
  python -m experiments.compare runs/sine_200 runs/sine_6000 --workdir=runs/tutorials
  python -m experiments.compare runs/adding runs/copy --network=cure=lstm
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.analysis.kept_training import Kept, load_kept
from experiments.analysis.profiles import profiles
from experiments.cli.options import UsageError, check, launch, option
from experiments.cli.run_folder import settings_of
from rnn_jax import plots
from rnn_jax.gradflow.profile import e_folding_length, fit_slope, lag_profile
from rnn_jax.io import records

NUM_SPANS = 60
"""Stretches of training that a slope is fitted on."""
LAST = 100
"""Iterations that the table's loss and gradient norm are averaged over."""
MOST = 12
"""Lines of a figure that can be told apart."""


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Settings; see `--help`."""

    runs: tuple[str, ...] = option((), "folders of the runs, named without a flag")
    network: str = option("", "which networks of runs of many: settings such as cure=lstm")
    workdir: str = option("runs/compare", "folder for the figure and the table")
    overwrite: bool = option(False, "replace what --workdir holds")


def load_runs(folders: Sequence[str], which: str = "") -> list[Kept]:
    """Reads what can be set side by side.

    Raises:
        UsageError: fewer than two, or more than can be told apart; no such network.
        ValueError: a folder holds no run; the message names it.
    """
    runs = [run for folder in folders for run in load_kept(folder, which)]
    if len(runs) < 2:
        raise UsageError(
            f"{len(folders)} run folders were named, but a comparison needs two or more: "
            "python -m experiments.compare runs/one runs/other"
        )
    if len(runs) > MOST:
        points = dict.fromkeys(f"{n}={v}" for run in runs for n, v in run.point.items())
        fewer = f"choose by --network, such as --network={list(points)[-1]}" if points else ""
        raise UsageError(
            f"these are {len(runs)} kinds of network, and {MOST} can be told apart; "
            f"{fewer or 'name fewer folders'}"
        )
    return runs


def labels_of(runs: Sequence[Kept]) -> list[str]:
    """A name for each: the settings that differ, and its folder where these are not enough."""
    if len({run.settings.get(records.EXPERIMENT) for run in runs}) > 1:
        # Hardly a setting of one experiment is one of another: each run is called by its folder.
        labels = []
        for folder in dict.fromkeys(run.folder for run in runs):
            points = _differing([run.point for run in runs if run.folder == folder])
            labels += [", ".join([folder, *parts]) for parts in points]
        return labels
    labels = [
        ", ".join([*parts, *others])
        for parts, others in zip(
            _differing([run.settings for run in runs]),
            _differing([run.point for run in runs]),
            strict=True,
        )
    ]
    return [
        label if label and labels.count(label) == 1 else f"{label} ({run.folder})".strip()
        for label, run in zip(labels, runs, strict=True)
    ]


def _differing(settings: Sequence[Mapping[str, object]]) -> list[list[str]]:
    """name=value of the settings that are not the same everywhere."""
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [
        name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)
    ]
    return [[f"{name}={one.get(name, 'not set')}" for name in differing] for one in settings]


def trained(run: Kept) -> plots.Trained:
    """What is drawn of a run; its profiles are those of its own figures."""
    start, _, end = profiles(run.trace).values()
    spans = np.array_split(np.arange(len(run.trace)), min(NUM_SPANS, len(run.trace)))
    logs = plots.natural_log(run.trace)
    last_step = logs.shape[1] - 1
    slopes = [
        fit_slope(lag_profile(logs[span].T, np.full(len(span), last_step))).slope for span in spans
    ]
    middles = np.array([run.trace_every * (1 + np.mean(span)) for span in spans])
    return plots.Trained(run.loss, start, end, middles, np.array(slopes), run.every)


def table(runs: Sequence[Kept], labels: Sequence[str], drawn: Sequence[plots.Trained]) -> str:
    """The comparison in numbers, a line each, as Markdown."""
    lines = [
        f"| run | iterations | loss, last {LAST} | gradient norm, last {LAST} | solved | "
        "slope, start → end (nats per step back) | e-folding length, start → end (steps) |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, label, curves in zip(runs, labels, drawn, strict=True):
        first, last = (float(slope) for slope in curves.slopes[[0, -1]])
        solved = "–" if run.solved is None else f"{run.solved} of {run.networks}"
        lines.append(
            f"| {label} | {run.every * len(run.loss):,} | {_end_of(run, run.loss)} | "
            f"{_end_of(run, run.gradient_norm)} | {solved} | {first:+.3f} → {last:+.3f} | "
            f"{e_folding_length(first):.3g} → {e_folding_length(last):.3g} |"
        )
    return "\n".join(lines) + "\n"


def last_mean(run: Kept, curve: np.ndarray) -> float:
    """The mean of a curve's last iterations; NaN where nothing was trained."""
    count = max(1, LAST // run.every)
    return float(np.mean(curve[-count:])) if len(curve) else np.nan


def _end_of(run: Kept, curve: np.ndarray) -> str:
    return f"{last_mean(run, curve):.2e}" if len(curve) else "–"


def finding(labels: Sequence[str], runs: Sequence[Kept]) -> str:
    """Title of the figure: who ends lowest, where losses are of one kind."""
    tasks = {
        (run.settings.get(records.EXPERIMENT), run.point.get("task", run.settings.get("task")))
        for run in runs
    }
    if len(tasks) > 1:
        return f"{len(runs)} runs of {len(tasks)} tasks; their losses are of different kinds"
    ends = [last_mean(run, run.loss) for run in runs]
    if not np.isfinite(ends).any():
        return "No run ends with a finite loss"
    best = int(np.nanargmin(np.where(np.isfinite(ends), ends, np.nan)))
    return f"Lowest loss at the end, {ends[best]:.2g}: {labels[best]}"


def main(config: CompareConfig) -> None:
    """Draws the figure, prints the table and says where both are."""
    check(config)
    runs = load_runs(config.runs, config.network)
    settings = settings_of("compare", config) | {"runs": list(config.runs)}
    labels, drawn = labels_of(runs), [trained(run) for run in runs]
    figure = plots.trained_side_by_side(
        dict(zip(labels, drawn, strict=True)), finding(labels, runs)
    )
    text = table(runs, labels, drawn)
    with records.held(config.workdir):
        workdir: Path = records.open_run(config.workdir, settings, config.overwrite)
        records.save_figure(workdir, "compare", figure)
        records.write_atomically(workdir / "table.md", text)
    print(text, end="")
    print(f"Figure and table: {workdir}/compare.png, table.md")


if __name__ == "__main__":
    launch(main, CompareConfig)
