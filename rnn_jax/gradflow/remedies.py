"""What to try against a gradient that vanishes or explodes, and the number that speaks for it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import Cell, ElmanParams, LeakyParams, LSTMParams
from rnn_jax.types import Params


class Remedy(NamedTuple):
    """One thing to try.

    Attributes:
        name: what kind it is.
        advice: what to do, with the number that speaks for it.
        setting: the number to set.
        moves: the measured quantity that it is meant to move.
    """

    name: str
    advice: str
    setting: float
    moves: str


def remedies(
    cell: Cell,
    params: Params,
    verdict: str,
    slope: float,
    slope_error: float,
    horizon: float,
    num_steps: int,
    saturation: float,
    switches: bool,
    growth: float,
) -> tuple[Remedy, ...]:
    """Remedies for a verdict, most specific first.

    Args:
        cell, params: the network.
        verdict: of `diagnose`.
        slope, slope_error: nats per step.
        horizon: memory horizon in steps.
        num_steps: T.
        saturation: share of units with phi' < 0.05; NaN where unknown.
        switches: whether phi' is 0 or 1 everywhere, as a ReLU's is.
        growth: largest ln|dL/ds_t| minus that at the last loss, nats.
    """
    if verdict == "healthy":
        return ()
    found = []
    if saturation > 0.3 and switches:
        found.append(
            Remedy(
                "larger bias",
                f"start b at 1: {saturation:.0%} of the units are off (phi' = 0), and the gradient "
                "passes through none of them; no scale turns a ReLU on",
                1.0,
                "saturation",
            )
        )
    elif saturation > 0.3:
        found.append(
            Remedy(
                "smaller pre-activations",
                f"scale U, W and the inputs down: {saturation:.0%} of the units are saturated "
                "(phi' < 0.05), and each multiplies the gradient by nearly 0",
                0.5,
                "saturation",
            )
        )
    recurrent = isinstance(params, ElmanParams | LeakyParams)
    certain = abs(slope) > 2 * slope_error
    if isinstance(params, LeakyParams) and certain and slope < 0:
        found.append(_smaller_leak(params, num_steps))
    elif recurrent and certain:
        # Of a leaky step's 1 - leak + leak * W phi', W has a hold on the second part alone.
        leak = float(jnp.mean(params.leak)) if isinstance(params, LeakyParams) else 1.0
        factor = leak / (math.exp(slope) - 1 + leak)
        found.append(
            Remedy(
                "scale W",
                f"multiply W by {factor:.3g}: each step back changes the gradient by a factor "
                f"{math.exp(slope):.3g}, which that undoes",
                factor,
                "slope",
            )
        )
    if recurrent:
        found.extend(_orthogonal(np.asarray(params.W)))
    if isinstance(params, LSTMParams) and verdict in ("vanishing", "mixed"):
        found.extend(_forget_bias(params, num_steps))
    if verdict in ("vanishing", "dead") and isinstance(params, ElmanParams):
        reach = f"{horizon:.0f}" if math.isfinite(horizon) else "0"
        found.append(
            Remedy(
                "gated cell",
                f"take rnn_jax.lstm({cell_size(params)}, forget_bias={math.log(num_steps):.1f}): "
                f"the gradient reaches back {reach} of {num_steps} steps, and a forget gate of "
                f"1 - 1/{num_steps} keeps it",
                math.log(num_steps),
                "horizon",
            )
        )
    if verdict in ("exploding", "mixed") and growth > 0:
        found.append(
            Remedy(
                "clip the gradient",
                "optim.recorded(optimizer, clip_norm=1.0): on its way back the gradient grows "
                f"{_factor(growth)}-fold, and one step of it undoes the training before it",
                1.0,
                "gradient norm",
            )
        )
    return tuple(found)


def cell_size(params: Any) -> int:
    """H of a cell with a single W."""
    return int(params.W.shape[0])


def _factor(log: float) -> str:
    return f"{math.exp(log):.3g}" if log < 700 else f"10^{log / math.log(10):.0f}"


def _orthogonal(W: np.ndarray) -> list[Remedy]:
    """An orthogonal W, where the singular values are far from equal."""
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    low, high = np.percentile(values, [10, 90])
    if low > 0.8 and high < 1.25:
        return []
    return [
        Remedy(
            "orthogonal W",
            "draw W orthogonal (recurrent_init=initializers.orthogonal()): its singular values "
            f"run from {values[-1]:.2g} to {values[0]:.2g}, those of an orthogonal W are all 1",
            1.0,
            "slope",
        )
    ]


def _smaller_leak(params: LeakyParams, num_steps: int) -> Remedy:
    """A leak that keeps what the sequence's first step left behind."""
    leak = float(jnp.mean(params.leak))
    return Remedy(
        "smaller leak",
        f"set leak to 1/T = {1 / num_steps:.2g}; it is {leak:.2g} now, and without W each step "
        f"keeps 1 - leak = {1 - leak:.3g} of the gradient",
        1 / num_steps,
        "slope",
    )


def _forget_bias(params: LSTMParams, num_steps: int) -> list[Remedy]:
    """A forget gate that stays open as long as the sequence is, where it does not already."""
    hidden_size = params.W.shape[0]
    bias = float(jnp.mean(jax.lax.stop_gradient(params.b)[hidden_size : 2 * hidden_size]))
    wanted = math.log(max(num_steps - 1, 2))
    if bias >= wanted:
        return []
    return [
        Remedy(
            "forget-gate bias",
            f"start it at ln(T - 1) = {wanted:.2f} for a memory of T = {num_steps} steps; it is "
            f"{bias:.2f} now, which alone keeps 1/(1 + e^-b) = {1 / (1 + math.exp(-bias)):.3f} a "
            "step",
            wanted,
            "horizon",
        )
    ]
