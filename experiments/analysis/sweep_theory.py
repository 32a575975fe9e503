"""What theory foretells of a network in a sweep, and what was found, as numbers for its line."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnn_jax.gradflow import mean_field
from rnn_jax.gradflow.profile import (
    fit_slope,
    is_sure,
    lag_profile,
    memory_horizon,
    relative_to_last,
    verdict_of,
)

TORCH_GAIN = 3**-0.5
"""Gain of a matrix uniform in ±1/sqrt(H)."""


@functools.lru_cache(maxsize=100_000)
def predicted_slope(
    cell: str,
    activation: str,
    recurrent_init: str,
    gain: float,
    input_std: float,
    bias_std: float = 0.0,
) -> float | None:
    """The slope that theory foretells of a fresh network; None where it says nothing.

    Independent entries of W: mean-field theory. An orthogonal W or a multiple of the identity, up
    to gain 1: hardly driven, the network rests at 0, where its slope is ln of the spectral radius.

    Args:
        input_std: of x_t U over the units.
        bias_std: of b over the units.
    """
    if cell != "elman":
        return None
    if recurrent_init in ("gaussian", "torch"):
        g = gain * (TORCH_GAIN if recurrent_init == "torch" else 1)
        return float(mean_field.mean_field_slope(activation, g, input_std, bias_std).slope)
    if activation == "identity" or (gain <= 1 and activation == "tanh"):
        return math.log(gain)
    return None


def flow_numbers(log_norms: np.ndarray, last: np.ndarray, exponent: float) -> dict[str, Any]:
    """The numbers of one network's profile, those of `gradflow.diagnose`.

    Args:
        log_norms: ln|dL/ds_t|, `[T, B]`.
        last: `[B]`, index of the step of the last loss.
        exponent: largest Lyapunov exponent.

    Returns:
        slope, slope_error, horizon, log_ratio (ln of |dL/ds_1| over that at the last loss), verdict
        ("non-finite" where the states have left the range of floats), sure, exponent. A number
        that does not exist is NaN, a horizon without end inf.
    """
    profile = lag_profile(log_norms, last)
    counted = np.arange(len(profile))[:, None] <= last[None]
    if np.isnan(profile[counted]).any() or np.isposinf(profile).any():
        numbers = dict.fromkeys(("slope", "slope_error", "horizon", "log_ratio"), math.nan)
        return {**numbers, "verdict": "non-finite", "sure": True, "exponent": math.nan}
    fit = fit_slope(profile)
    verdict = verdict_of(profile)
    ends = relative_to_last(profile)[last, np.arange(len(last))]
    return {
        "slope": fit.slope,
        "slope_error": fit.error,
        "horizon": 0.0 if verdict == "dead" else memory_horizon(profile, fit),
        "log_ratio": float(np.median(ends)),
        "verdict": verdict,
        "sure": bool(is_sure(verdict, fit.slope, fit.error, len(profile))),
        "exponent": float(exponent),
    }


def flow_at_stages(
    stages: Sequence[str], results: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`flow_numbers` and the middle profile at each stage of a training, names ending in it.

    Args:
        stages: such as "start" and "end".
        results: log_norms_STAGE `[T, B]` and exponent_STAGE of each.
    """
    found: dict[str, Any] = {}
    profiles = {}
    for stage in stages:
        logs = results[f"log_norms_{stage}"]
        last = np.full(logs.shape[1], len(logs) - 1)
        numbers = flow_numbers(logs, last, float(results[f"exponent_{stage}"]))
        found |= {f"{name}_{stage}": value for name, value in numbers.items()}
        profiles[f"profile_{stage}"] = middle_profile(logs)
    return found, profiles


def middle_profile(log_norms: np.ndarray) -> np.ndarray:
    """The batch's median profile, `[T, B] -> [T]`, float32."""
    return np.median(log_norms, axis=1).astype(np.float32)


def describe_flow(
    point: dict[str, Any], results: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The line and the profile of an untrained network."""
    logs = results["log_norms"]
    last = np.full(logs.shape[1], len(logs) - 1)
    found = flow_numbers(logs, last, float(results["exponent"]))
    found["predicted_slope"] = predicted_slope(
        point["cell"],
        point.get("activation", ""),
        point.get("recurrent_init", ""),
        point.get("gain", 1.0),
        point["input_std"],
        point.get("bias_std", 0.0),
    )
    return found, {"profile": middle_profile(logs)}
