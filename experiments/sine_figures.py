"""What a run of the sine experiment found, as figures and in words."""

from pathlib import Path

import numpy as np

from experiments.free_running import GIVEN, FreeRun
from experiments.history import History, state_norms
from rnn_jax import plots, records


def save_figures(
    workdir: Path, history: History, free_run: FreeRun, free_run_steps: int, exponents: np.ndarray
) -> None:
    """Draws a run; titles say what was found.

    Args:
        workdir: the run's folder.
        history: every iteration's metrics.
        free_run: the free run to draw.
        free_run_steps: steps of each training sequence after its 49 true points; 0 for none.
        exponents: Lyapunov exponents of the free-running network, `[H]`.
    """
    norms = state_norms(history.trace)
    boundary = GIVEN if free_run_steps else None
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
    }
    figures["closed_loop"] = plots.exponent_spectrum(exponents, closed_loop_finding(exponents))
    if hasattr(history.trace, "parameters"):
        summands = history.trace.parameters._asdict()
        figures["parameter_heatmap"] = plots.parameter_heatmaps(summands, summand_finding(summands))
    for name, figure in figures.items():
        records.save_figure(workdir, name, figure)


def profiles(norms: np.ndarray) -> dict[str, np.ndarray]:
    """|dL/ds_t| over t at the start, middle and end of training.

    Each is the geometric mean over a twentieth of the iterations; keys name which.

    Args:
        norms: `[iterations, T]`.
    """
    total = len(norms)
    width = max(1, total // 20)
    spans = {"start": 0, "middle": (total - width) // 2, "end": total - width}
    return {
        f"{word} (iterations {first + 1:,} to {first + width:,})": np.exp(
            np.mean(plots.natural_log(norms[first : first + width]), axis=0)
        )
        for word, first in spans.items()
    }


def heatmap_finding(norms: np.ndarray) -> str:
    """Title of the heat map, from its numbers."""
    start, *_, end = (np.max(profile) for profile in profiles(norms).values())
    word = "falls" if end < start else "grows"
    factor = max(start, end) / max(min(start, end), np.finfo(float).tiny)
    return f"Over training the largest |dL/ds_t| {word} {factor:.2g}-fold"


def profile_finding(norms: np.ndarray) -> str:
    """Title of the profiles, from their numbers."""
    *_, end = profiles(norms).values()
    ratio = np.max(end) / max(np.min(end), np.finfo(float).tiny)
    return (
        f"At the end of training |dL/ds_t| is largest at t = {np.argmax(end) + 1}, "
        f"{ratio:.2g} times its smallest (t = {np.argmin(end) + 1})"
    )


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


def summary(workdir: Path, history: History, test: FreeRun) -> str:
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
        f"the state at each time step. {profile_finding(state_norms(history.trace))}."
    )
