"""Figures of a training run: loss, free run, and the gradient over iterations and time steps."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.plots.style import BLUE, GREY, ORDERED, RED, dress, natural_log, new_figure


def free_run(
    times: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    title: str,
    true_steps: int = 1,
) -> Figure:
    """A free run against the truth.

    Args:
        times: `[T + 1]`, in the units of the sine's argument.
        truth: `[T + 1]`.
        predicted: `[T + 1 - true_steps]`, the predictions of the last points.
        title: the finding.
        true_steps: how many true points the network was given.
    """
    figure = new_figure()
    axes = dress(figure.subplots(), title, "argument of the sine (radians)", "value")
    axes.plot(times, truth, color=GREY, linewidth=1.5, label="truth")
    axes.plot(
        times[:true_steps], truth[:true_steps], "o", color=GREY, markersize=4, label="given points"
    )
    axes.plot(times[true_steps:], predicted, ".", color=RED, markersize=6, label="own predictions")
    axes.set_ylim(-1.6, 1.6)
    axes.legend(loc="upper right", ncols=3, fontsize=11, frameon=False)
    return figure


def loss_curve(loss: np.ndarray, title: str, smooth: int = 100) -> Figure:
    """Loss `[iterations]` on a logarithmic axis, each iteration and the running median of them."""
    figure = new_figure()
    axes = dress(figure.subplots(), title, "training iteration", "mean squared error")
    steps = 1 + np.arange(len(loss))
    axes.plot(steps, loss, color=BLUE, alpha=0.25, linewidth=0.8, label="each iteration")
    running, window = running_median(loss, smooth)
    axes.plot(steps, running, color=BLUE, linewidth=2, label=f"median of the last {window}")
    axes.set_yscale("log")
    axes.legend(fontsize=11, frameon=False)
    return figure


def running_median(values: np.ndarray, smooth: int = 100) -> tuple[np.ndarray, int]:
    """Median of the last `smooth` values (at most a fifth of all) at each, and that number."""
    window = min(smooth, max(1, len(values) // 5))
    ends = 1 + np.arange(len(values))
    return np.array([np.median(values[max(0, end - window) : end]) for end in ends]), window


def gradient_heatmap(
    norms: np.ndarray, title: str, boundary: int | None = None, every: int = 1
) -> Figure:
    """ln|dL/ds_t| over training iteration and time step.

    Args:
        norms: `[iterations, T]`.
        title: the finding.
        boundary: last time step with a true input, marked by a line; None where all are true.
        every: iterations from one row of norms to the next.
    """
    figure = new_figure()
    axes = dress(figure.subplots(), title, "training iteration", "time step t")
    logs = natural_log(norms).T
    finite = logs[np.isfinite(logs)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    iterations = every * norms.shape[0]
    image = axes.imshow(
        np.where(np.isfinite(logs), logs, np.nan),
        origin="lower",
        aspect="auto",
        interpolation="nearest" if iterations <= 800 else "antialiased",
        extent=(0.5, iterations + 0.5, 0.5, norms.shape[1] + 0.5),
        cmap=ORDERED,
        vmin=low,
        vmax=high,
    )
    if boundary is not None:
        axes.axhline(boundary + 0.5, color="white", linewidth=1.2, linestyle="--")
        for offset, word, side in ((2, "free run", "bottom"), (-2, "true inputs", "top")):
            axes.annotate(
                word,
                (iterations, boundary + 0.5),
                xytext=(-6, offset),
                textcoords="offset points",
                ha="right",
                va=side,
                color="white",
                fontsize=11,
            )
    bar = figure.colorbar(image, ax=axes, extend="both")
    bar.set_label(r"$\ln\,|\partial L/\partial s_t|$  (nats)", fontsize=12)
    return figure


def gradient_profiles(
    profiles: Mapping[str, np.ndarray], title: str, boundary: int | None = None
) -> Figure:
    """ln|dL/ds_t| over t, a line for each name in order of training.

    Args:
        profiles: name -> `[T]` norms.
        title: the finding.
        boundary: last time step with a true input, marked by a line; None where all are true.
    """
    figure = new_figure()
    axes = dress(
        figure.subplots(), title, "time step t", r"$\ln\,|\partial L/\partial s_t|$  (nats)"
    )
    colours = matplotlib.colormaps[ORDERED](np.linspace(0.0, 0.8, len(profiles)))
    for (name, norms), colour in zip(profiles.items(), colours, strict=True):
        logs = natural_log(norms)
        steps = 1 + np.arange(len(logs))
        axes.plot(steps, np.where(np.isfinite(logs), logs, np.nan), color=colour, label=name, lw=2)
    if boundary is not None:
        axes.axvline(boundary + 0.5, color=GREY, linewidth=1, linestyle="--")
        for offset, word, side in ((-4, "true inputs", "right"), (4, "free run", "left")):
            axes.annotate(
                word,
                (boundary + 0.5, 0.97),
                xycoords=("data", "axes fraction"),
                xytext=(offset, 0),
                textcoords="offset points",
                ha=side,
                color=GREY,
                fontsize=11,
            )
    axes.legend(fontsize=11, frameon=False)
    return figure


def parameter_heatmaps(norms: Mapping[str, np.ndarray], title: str) -> Figure:
    """ln of each step's summand of dL/dtheta, one panel a parameter, on one colour scale.

    Args:
        norms: parameter name -> `[iterations, T]`.
        title: the finding.
    """
    figure = new_figure(10.0, 4.0)
    panels: Sequence[Axes] = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    logs = {name: natural_log(values).T for name, values in norms.items()}
    finite = np.concatenate([v[np.isfinite(v)] for v in logs.values()])
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    for index, (axes, (name, values)) in enumerate(zip(panels, logs.items(), strict=True)):
        dress(axes, f"dL/d{name}", "training iteration", "" if index else "time step k")
        axes.locator_params(axis="x", nbins=4)
        image = axes.imshow(
            np.where(np.isfinite(values), values, np.nan),
            origin="lower",
            aspect="auto",
            interpolation="antialiased",
            extent=(0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5),
            cmap=ORDERED,
            vmin=low,
            vmax=high,
        )
    bar = figure.colorbar(image, ax=panels, extend="both")
    bar.set_label("ln |summand k|  (nats)", fontsize=12)
    return figure
