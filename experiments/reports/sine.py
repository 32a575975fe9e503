"""What a run of the sine experiment found, as figures, a table and words."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.analysis import free_running
from experiments.analysis.profiles import profiles
from experiments.setup.sine import SineConfig
from experiments.training.history import History
from experiments.training.sine_training import Result
from rnn_jax import plots
from rnn_jax.io import records

COLUMNS = {
    "loss, last 100": "final_loss",
    "free run 49, carried state": "carried_error",
    "free run 200, 49 true points": "warmed_error_200",
    "free run 1,000, 49 true points": "warmed_error_1000",
}
"""Of the table of seeds: title -> field of a network's line."""


def save(workdir: Path, config: SineConfig, result: Result) -> None:
    """Draws a run, and prints where the figures are and what they show.

    Args:
        workdir: the run's folder.
        config: its settings.
        result: what it found.
    """
    history, free_run = result.history, result.free_run
    norms = history.trace
    boundary = free_running.GIVEN if config.free_run_steps else None
    steps = len(free_run.predicted)
    verdict = "stays a sine" if free_run.error < 0.01 else "is not yet a sine"
    figures = {
        "free_run": plots.free_run(
            free_run.times,
            free_run.truth,
            free_run.predicted,
            f"The free run {verdict}: mean squared error {free_run.error:.1e} over {steps} steps",
            len(free_run.truth) - steps,
        ),
        "loss": plots.loss_curve(
            history.loss,
            f"The loss falls from {history.loss[0]:.2g} to {history.loss[-100:].mean():.2g} "
            "(mean of the last 100 iterations)",
        ),
        "gradient_heatmap": plots.gradient_heatmap(norms, heatmap_finding(norms), boundary),
        "gradient_profile": plots.gradient_profiles(
            profiles(norms), profile_finding(norms), boundary
        ),
        "closed_loop": plots.exponent_spectrum(
            result.exponents, closed_loop_finding(result.exponents)
        ),
    }
    if history.summands:
        figures["parameter_heatmap"] = plots.parameter_heatmaps(
            history.summands, summand_finding(history.summands)
        )
    for name, figure in figures.items():
        records.save_figure(workdir, name, figure)
    print(summary(workdir, history, free_run))
    if result.skipped:
        print(
            f"{result.skipped} of {config.train_steps} updates were skipped: their gradient was "
            "not finite."
        )


def table(rows: list[dict[str, Any]]) -> str:
    """The networks of several seeds, a line each, and the spread of each column; Markdown."""
    lines = ["| seed | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    values = np.array([[row[name] for name in COLUMNS.values()] for row in rows])
    named = [(str(row["seed"]), own) for row, own in zip(rows, values, strict=True)]
    named += [
        (word, pick(values, axis=0))
        for word, pick in (("smallest", np.min), ("median", np.median), ("largest", np.max))
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in own) + " |" for name, own in named
    ]
    return "\n".join(lines) + "\n"


def heatmap_finding(norms: np.ndarray) -> str:
    """Title of the heat map, from its numbers."""
    start, *_, end = (np.max(profile) for profile in profiles(norms).values())
    word = "falls" if end < start else "grows"
    factor = max(start, end) / max(min(start, end), np.finfo(float).tiny)
    return f"Over training the largest |dL/ds_t| {word} {_ratio(factor)}-fold"


def profile_finding(norms: np.ndarray) -> str:
    """Title of the profiles, from their numbers."""
    *_, end = profiles(norms).values()
    ratio = np.max(end) / max(np.min(end), np.finfo(float).tiny)
    return (
        f"At the end of training |dL/ds_t| is largest at t = {np.argmax(end) + 1}, "
        f"{_ratio(ratio)} times its smallest (t = {np.argmin(end) + 1})"
    )


def _ratio(value: float) -> str:
    """A ratio in a sentence: an exponent only where the digits would be many."""
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.2g}"


def summand_finding(summands: dict[str, np.ndarray]) -> str:
    """Title of the parameters' heat maps, from their numbers."""
    largest = {name: 1 + np.argmax(np.mean(norms, axis=0)) for name, norms in summands.items()}
    where = ", ".join(f"dL/d{name} at k = {k}" for name, k in largest.items())
    return f"Averaged over training the largest summand of {where}"


def closed_loop_finding(exponents: np.ndarray) -> str:
    """Title of the free-running network's exponents, from their numbers."""
    if exponents[0] > 0.005:
        return f"The free run is unstable: exponent {exponents[0]:+.3f} per step, errors grow"
    if exponents[0] < -0.005:
        return f"The free run dies down to rest: largest exponent {exponents[0]:+.3f} per step"
    return (
        f"The free run is a stable cycle: one exponent at 0 ({exponents[0]:+.4f}), "
        f"all others at {np.max(exponents[1:], initial=-np.inf):+.3f} per step or below"
    )


def summary(workdir: Path, history: History, test: free_running.FreeRun) -> str:
    """Three lines for a newcomer: where the figures are and what they show."""
    loss = history.loss
    steps = len(test.predicted)
    given = len(test.truth) - steps
    points = "one true point" if given == 1 else f"{given} true points"
    return (
        f"{workdir}/free_run.png: after {points} the network reads its own predictions for {steps} "
        f"steps; their mean squared error is {test.error:.1e}.\n"
        f"{workdir}/loss.png: over {len(loss):,} iterations the error of predicting the next point "
        f"fell from {loss[0]:.2g} to {loss[-100:].mean():.1e}.\n"
        f"{workdir}/gradient_profile.png, gradient_heatmap.png: how strongly the error depends on "
        f"the state at each time step. {profile_finding(history.trace)}."
    )
