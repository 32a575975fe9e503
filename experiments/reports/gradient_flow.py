"""Figures of the gradient-flow experiment; titles say what was found."""

from pathlib import Path

import numpy as np

from experiments.analysis.flow_measurements import Measured
from rnn_jax import gradflow, plots
from rnn_jax.io import records


def save_figures(
    workdir: Path, measured: Measured, flow: plots.Flow, compared: list[plots.Flow]
) -> None:
    """Draws what was measured; titles say what was found."""
    exponent = float(measured.exponents[0])
    rho = float(np.max(np.abs(measured.eigenvalues)))
    lost = float(np.median(measured.log_norms[0] - measured.log_norms[-1]))
    spread = measured.singular_values[-1]
    name, terms = max(measured.terms.items(), key=lambda item: np.max(item[1]))
    figures = {
        "profile": plots.flow_profile(
            flow,
            f"Back over {len(measured.log_norms)} steps the gradient changes by a factor "
            f"e^{lost:.1f} = {power_of_ten(lost)}",
        ),
        "credit": plots.credit_heatmap(
            measured.credit,
            "Each loss acts on the states before it, "
            + ("less and less the longer ago" if exponent < 0 else "more and more the longer ago"),
        ),
        "summands": plots.summand_profile(
            measured.terms,
            f"dL/d{name} has the largest summand, at k = {1 + int(np.argmax(terms))} "
            f"of {len(terms)}",
        ),
        "singular_values": plots.singular_values_by_lag(
            measured.lags,
            measured.singular_values,
            f"After {measured.lags[-1]} steps one direction is scaled by "
            f"{power_of_ten(spread[0])}, another by {power_of_ten(spread[-1])}",
            exponent,
            measured.product_eigenvalues,
        ),
        "eigenvalues": plots.eigenvalue_plane(measured.eigenvalues, f"Spectral radius {rho:.3g}"),
    }
    figures["truncation"] = plots.truncation_curve(
        np.asarray(measured.truncation.windows),
        np.asarray(measured.truncation.norm_ratio),
        np.asarray(measured.truncation.cosine),
        truncation_finding(measured.truncation),
    )
    if compared:
        figures["comparison"] = plots.flow_comparison(
            compared, "On its way back to the first step a gradient vanishes, survives or explodes"
        )
    for name, figure in figures.items():
        records.save_figure(workdir, name, figure)


def truncation_finding(bias: gradflow.TruncationBias) -> str:
    """Title of the truncation figure, from its numbers."""
    close = np.flatnonzero(bias.cosine > 0.99)
    steps = len(bias.windows)
    window = int(bias.windows[close[0]]) if close.size else steps
    return f"A window of {window} of {steps} steps gives the gradient's direction (cosine 0.99)"


def power_of_ten(log: float) -> str:
    """e^log as a power of ten."""
    return f"10^{log / np.log(10):.1f}" if np.isfinite(log) else "0"
