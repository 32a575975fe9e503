"""Figures of gradient flow through one network, and of several side by side."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnn_jax.plots.style import (
    BLUE,
    CYCLE,
    DIVERGING,
    GREY,
    ORDERED,
    RED,
    dress,
    new_figure,
)

LOG_GRADIENT = r"$\ln\,|\partial L/\partial s_t|$  (nats)"


class Flow(NamedTuple):
    """The gradient's way back through one network.

    Attributes:
        name: what the panel is called.
        log_norms: ln|dL/ds_t|, `[T]` or `[T, B]`.
        exponent: largest Lyapunov exponent, nats per step.
        predicted: slope that theory predicts, nats per step; None where it predicts none.
        bounds: smallest and largest slope that the theory allows; None where it gives none.
        verdict: one word.
    """

    name: str
    log_norms: np.ndarray
    exponent: float
    predicted: float | None = None
    bounds: tuple[float, float] | None = None
    verdict: str = ""


def _finite(logs: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(logs), logs, np.nan)


def _draw_flow(axes: Axes, flow: Flow) -> None:
    logs = _finite(np.asarray(flow.log_norms, np.float64).reshape(len(flow.log_norms), -1))
    steps = 1 + np.arange(len(logs))
    axes.plot(steps, logs, color=BLUE, alpha=0.15, linewidth=0.8)
    middle = np.nanmedian(logs, axis=1)
    axes.plot(steps, middle, color=BLUE, linewidth=2.2, label="measured (median of the batch)")
    lag = len(steps) - steps
    anchor = middle[-1]
    if flow.bounds is not None:
        # A lower bound of -inf bounds nothing; the band then ends at the panel's edge.
        low, high = (anchor + max(rate, -1e6) * lag for rate in flow.bounds)
        axes.fill_between(
            steps,
            np.maximum(low, np.nanmin(middle) - 5),
            np.minimum(high, np.nanmax(middle) + 5),
            color=GREY,
            alpha=0.15,
            linewidth=0,
            label="allowed by the singular values of W",
        )
    axes.plot(
        steps,
        anchor + flow.exponent * lag,
        color=RED,
        linestyle="--",
        linewidth=1.8,
        label=f"largest Lyapunov exponent, {flow.exponent:+.3f} per step",
    )
    if flow.predicted is not None:
        axes.plot(
            steps,
            anchor + flow.predicted * lag,
            color="black",
            linestyle=":",
            linewidth=1.8,
            label=f"theory before any run, {flow.predicted:+.3f} per step",
        )


def flow_profile(flow: Flow, title: str) -> Figure:
    """ln|dL/ds_t| over t, measured and predicted."""
    figure = new_figure()
    axes = dress(figure.subplots(), title, "time step t", LOG_GRADIENT)
    _draw_flow(axes, flow)
    axes.legend(fontsize=11, frameon=False)
    return figure


def beyond_range(log_norms: np.ndarray, title: str) -> Figure:
    """ln|dL/ds_t| over t, beside the largest number that float32 holds.

    Args:
        log_norms: `[T]` or `[T, B]`, nats.
        title: the finding.
    """
    figure = new_figure()
    axes = dress(figure.subplots(), title, "time step t", LOG_GRADIENT)
    logs = _finite(np.asarray(log_norms, np.float64).reshape(len(log_norms), -1))
    steps = 1 + np.arange(len(logs))
    middle = np.nanmedian(logs, axis=1)
    if logs.shape[1] > 1:
        axes.plot(steps, logs, color=BLUE, alpha=0.15, linewidth=0.8)
    axes.plot(steps, middle, color=BLUE, linewidth=2.2, label="followed in logarithms")
    end = float(np.log(np.finfo(np.float32).max))
    axes.axhline(end, color=RED, linestyle="--", linewidth=1.8, label="float32 ends here: inf")
    axes.fill_between(steps, end, np.maximum(middle, end), color=RED, alpha=0.15, linewidth=0)
    axes.legend(fontsize=11, frameon=False)
    return figure


def flow_comparison(flows: Sequence[Flow], title: str) -> Figure:
    """Several networks side by side on one scale: the picture that explains the problem."""
    figure = new_figure(12.0, 4.8)
    panels: Sequence[Axes] = figure.subplots(1, len(flows), sharey=True, squeeze=False)[0]
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    for index, (axes, flow) in enumerate(zip(panels, flows, strict=True)):
        heading = f"{flow.name}: {flow.verdict}" if flow.verdict else flow.name
        dress(axes, heading, "time step t", "" if index else LOG_GRADIENT)
        _draw_flow(axes, flow._replace(bounds=None))
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.legend(fontsize=9, frameon=False, loc="best")
    return figure


def credit_heatmap(credit: np.ndarray, title: str) -> Figure:
    """ln|dL_t/ds_k| for every pair: row t the loss, column k the state."""
    figure = new_figure(7.0, 5.6)
    axes = dress(figure.subplots(), title, "state at step k", "loss at step t")
    logs = _finite(np.asarray(credit, np.float64))
    size = len(logs)
    reference = np.nanmedian(np.diag(logs))
    # At least a nat, so that rounding is not drawn as a pattern.
    reach = max(1.0, np.nanmax(np.abs(logs - reference), initial=0.0))
    image = axes.imshow(
        logs - reference,
        origin="lower",
        extent=(0.5, size + 0.5, 0.5, size + 0.5),
        cmap=DIVERGING,
        vmin=-reach,
        vmax=reach,
        interpolation="nearest",
    )
    axes.text(
        0.97, 0.05, "no path: the future\ndoes not act on the past", transform=axes.transAxes,
        ha="right", fontsize=11, color=GREY,
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(r"$\ln\,|\partial L_t/\partial s_k|$ relative to $k=t$  (nats)", fontsize=12)
    return figure


def summand_profile(terms: Mapping[str, np.ndarray], title: str) -> Figure:
    """ln of the norm of each step's summand of dL/dtheta, a line a parameter; `[T]` each."""
    figure = new_figure()
    axes = dress(figure.subplots(), title, "time step k", "ln |summand k|  (nats)")
    for (name, logs), colour in zip(terms.items(), CYCLE, strict=False):
        steps = 1 + np.arange(len(logs))
        axes.plot(steps, _finite(np.asarray(logs)), color=colour, linewidth=2, label=f"dL/d{name}")
    axes.legend(fontsize=11, frameon=False)
    return figure


def singular_values_by_lag(
    lags: np.ndarray,
    logs: np.ndarray,
    title: str,
    exponent: float,
    eigenvalues: np.ndarray | None = None,
) -> Figure:
    """Singular values and eigenvalues of J_T ... J_{T-lag+1} over the lag.

    The eigenvalues of a product that is not normal lie far inside its singular values: it can let
    a gradient grow for a while that it makes vanish in the end.

    Args:
        lags: `[N]` numbers of steps.
        logs: `[N, H]` ln of the singular values.
        title: the finding.
        exponent: largest Lyapunov exponent, drawn as a line.
        eigenvalues: `[N, H]` ln of their moduli; NaN where rounding hides one.
    """
    figure = new_figure()
    axes = dress(
        figure.subplots(), title, "lag (steps)", r"$\ln\,\sigma_i$, $\ln|\lambda_i|$  (nats)"
    )
    count = logs.shape[1]
    colours = matplotlib.colormaps[ORDERED](np.linspace(0, 0.9, count))
    for index in range(count):
        label = {0: "largest singular value", count - 1: "smallest"}.get(index)
        axes.plot(lags, _finite(logs[:, index]), color=colours[index], linewidth=1.2, label=label)
    if eigenvalues is not None:
        axes.plot(lags, _finite(eigenvalues), ".", color="black", markersize=2.5, alpha=0.6)
        axes.plot([], [], ".", color="black", label="moduli of the eigenvalues")
    axes.plot(
        lags, exponent * lags, "--", color=RED, linewidth=1.8, label="Lyapunov exponent × lag"
    )
    axes.legend(fontsize=11, frameon=False)
    return figure


def truncation_curve(
    windows: np.ndarray, norm_ratio: np.ndarray, cosine: np.ndarray, title: str
) -> Figure:
    """What is left of dL/dtheta if each loss is followed back over a window only; `[N]` each."""
    figure = new_figure()
    axes = dress(
        figure.subplots(), title, "window (steps)", "truncated gradient against the full one"
    )
    axes.plot(windows, norm_ratio, color=BLUE, linewidth=2, label="ratio of norms")
    axes.plot(windows, cosine, color=RED, linewidth=2, label="cosine of the angle between them")
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.legend(fontsize=11, frameon=False)
    return figure


def exponent_spectrum(exponents: np.ndarray, title: str) -> Figure:
    """Lyapunov exponents `[N]`, largest first; at 0 a motion neither grows nor dies."""
    figure = new_figure()
    axes = dress(
        figure.subplots(), title, "index i", r"Lyapunov exponent $\lambda_i$  (nats per step)"
    )
    index = 1 + np.arange(len(exponents))
    axes.axhline(0, color=GREY, linewidth=1.2)
    axes.vlines(index, 0, exponents, color=BLUE, linewidth=1.2)
    axes.plot(index, exponents, "o", color=BLUE, markersize=7)
    axes.set_xticks(index[:: max(1, len(index) // 16)])
    return figure


def eigenvalue_plane(eigenvalues: np.ndarray, title: str) -> Figure:
    """Eigenvalues in the complex plane beside the unit circle; outside it directions grow."""
    figure = new_figure(7.0, 5.4)
    axes = dress(figure.subplots(), title, "real part", "imaginary part")
    angle = np.linspace(0, 2 * np.pi, 400)
    axes.plot(np.cos(angle), np.sin(angle), color=GREY, linewidth=1.5, label="unit circle")
    moduli = np.abs(eigenvalues)
    for inside, colour, label in (
        (moduli <= 1 + 1e-4, BLUE, "does not grow"),
        (moduli > 1 + 1e-4, RED, "grows"),
    ):
        if inside.any():
            chosen = eigenvalues[inside]
            axes.plot(chosen.real, chosen.imag, "o", color=colour, markersize=5, label=label)
    axes.set_aspect("equal")
    axes.legend(fontsize=11, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
