"""Set training runs side by side: loss, gradient by time step, and how far back it reaches.

Name the folders of two or more runs of one experiment. Each is called by the settings in which it
differs from the others. The horizon is the e-folding length of the gradient: the number of steps
back in which |dL/ds_t|, as a straight line through its logarithm says, falls to 1/e. With a loss at
every step, as here, |dL/ds_t| counts the losses of all later steps together.

Written to --workdir: compare.png and table.md, which is printed too.

Example:
  python -m experiments.compare runs/sine_200 runs/sine_6000 --workdir=runs/tutorials
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Settings; see `--help`."""

    runs: tuple[str, ...] = option((), "folders of the runs, named without a flag")
    workdir: str = option("runs/compare", "folder for the figure and the table")
    overwrite: bool = option(False, "replace what --workdir holds")


class Run(NamedTuple):
    """A run as its folder tells it.

    Attributes:
        folder: its name.
        settings: its config.json.
        loss, gradient_norm: `[iterations]`.
        trace: |dL/ds_t|, `[iterations, T]`.
    """

    folder: str
    settings: Mapping[str, Any]
    loss: np.ndarray
    gradient_norm: np.ndarray
    trace: np.ndarray


def load_run(folder: str) -> Run:
    """Reads a run's folder; `ValueError` where it holds no training run, in one line."""
    settings = records.load_config(folder)
    try:
        arrays = [records.load_array(folder, name) for name in ("loss", "gradient_norm", "trace")]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no training run that can be compared ({error}); name folders of runs "
            "that came to their end, such as runs/sine"
        ) from error
    return Run(folder, settings, *arrays)


def load_runs(folders: Sequence[str]) -> list[Run]:
    """Reads runs that can be set side by side.

    Raises:
        UsageError: fewer than two folders.
        ValueError: no run, runs of different experiments or of unequal T; the message names them.
    """
    if len(folders) < 2:
        raise UsageError(
            f"{len(folders)} run folders were named, but a comparison needs two or more: "
            "python -m experiments.compare runs/one runs/other"
        )
    runs = [load_run(folder) for folder in folders]
    for run in runs[1:]:
        for what, found, wanted in (
            ("a run of", run.settings.get("experiment"), runs[0].settings.get("experiment")),
            ("of sequences of T =", run.trace.shape[1], runs[0].trace.shape[1]),
        ):
            if found != wanted:
                raise ValueError(
                    f"{runs[0].folder} is {what} {wanted}, but {run.folder} {what} {found}; "
                    "compare those that have it in common"
                )
    return runs


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run: the settings that differ, and its folder where these are not enough."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [
        name
        for name in names
        if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
    ]
    labels = [
        ", ".join(f"{name}={run.settings.get(name, 'not set')}" for name in differing)
        for run in runs
    ]
    return [
        label if label and labels.count(label) == 1 else f"{label} ({run.folder})".strip()
        for label, run in zip(labels, runs, strict=True)
    ]


def trained(run: Run) -> plots.Trained:
    """What is drawn of a run; its profiles are those of its own figures."""
    start, _, end = profiles(run.trace).values()
    spans = np.array_split(np.arange(len(run.trace)), min(NUM_SPANS, len(run.trace)))
    logs = plots.natural_log(run.trace)
    last_step = logs.shape[1] - 1
    slopes = [
        fit_slope(lag_profile(logs[span].T, np.full(len(span), last_step))).slope for span in spans
    ]
    middles = np.array([1 + np.mean(span) for span in spans])
    return plots.Trained(run.loss, start, end, middles, np.array(slopes))


def table(runs: Sequence[Run], labels: Sequence[str], drawn: Sequence[plots.Trained]) -> str:
    """The comparison in numbers, a line a run, as Markdown."""
    lines = [
        f"| run | iterations | loss, last {LAST} | gradient norm, last {LAST} | "
        "slope, start → end (nats per step back) | horizon, start → end (steps) |",
        "|---|---|---|---|---|---|",
    ]
    for run, label, curves in zip(runs, labels, drawn, strict=True):
        first, last = (float(slope) for slope in curves.slopes[[0, -1]])
        lines.append(
            f"| {label} | {len(run.loss):,} | {np.mean(run.loss[-LAST:]):.2e} | "
            f"{np.mean(run.gradient_norm[-LAST:]):.2e} | {first:+.3f} → {last:+.3f} | "
            f"{e_folding_length(first):.3g} → {e_folding_length(last):.3g} |"
        )
    return "\n".join(lines) + "\n"


def finding(labels: Sequence[str], runs: Sequence[Run]) -> str:
    """Title of the figure: who ends lowest."""
    ends = [np.mean(run.loss[-LAST:]) for run in runs]
    if not np.isfinite(ends).any():
        return "No run ends with a finite loss"
    best = int(np.nanargmin(np.where(np.isfinite(ends), ends, np.nan)))
    return f"Lowest loss at the end, {ends[best]:.2g}: {labels[best]}"


def main(config: CompareConfig) -> None:
    """Draws the figure, prints the table and says where both are."""
    check(config)
    runs = load_runs(config.runs)
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
