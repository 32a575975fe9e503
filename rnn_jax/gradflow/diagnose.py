"""Why does this network not train, and what should be changed? A verdict with its numbers."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import bptt
from rnn_jax.bptt import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.backward import prepare, scan_adjoints
from rnn_jax.gradflow.jacobians import lyapunov_spectrum
from rnn_jax.gradflow.losses import LastStep, Losses, check_losses, with_batch_axis
from rnn_jax.gradflow.profile import (
    fit_slope,
    is_sure,
    lag_profile,
    memory_horizon,
    relative_to_last,
    saturation,
    verdict_of,
)
from rnn_jax.gradflow.remedies import Remedy, remedies
from rnn_jax.gradflow.scaled import log_norm
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import check_fit, valid_steps


class Diagnosis(NamedTuple):
    """How a gradient fares on its way back from the last loss; `str()` of it is a report.

    Attributes:
        verdict: "vanishing" (falls to less than 1/1000 within the sequence), "exploding" (grows
            more than 1000-fold), "dead" (exactly zero), "mixed" (examples differ, or it grows
            1000-fold and falls again, or falls so far and comes back), "healthy" (none of these).
        sure: whether the verdict rests on enough steps and on a slope well clear of its error.
        slope: nats that ln|dL/ds_t| gains with each step back; NaN where none could be fitted.
        slope_error: its standard error; inf where there is no slope.
        fit_steps: first and last time step (from 1) of the range it was fitted on.
        horizon: memory horizon, steps until the gradient has fallen to 1/1000; inf if it does not.
        saturation: share of units with phi' < 0.05; NaN for cells that do not tell phi'.
        exponent: largest Lyapunov exponent, nats per step; NaN where the state never moves.
        num_steps: T.
        remedies: what to try.
    """

    verdict: str
    sure: bool
    slope: float
    slope_error: float
    fit_steps: tuple[int, int]
    horizon: float
    saturation: float
    exponent: float
    num_steps: int
    remedies: tuple[Remedy, ...]

    def __str__(self) -> str:
        first, last = self.fit_steps
        doubt = "" if self.sure else "   (not sure: see the slope's error)"
        slope = "none could be fitted"
        if math.isfinite(self.slope):
            slope = (
                f"{self.slope:+.4f} ± {self.slope_error:.4f} nats per step back "
                f"(factor {math.exp(self.slope):.3f}), fitted on t = {first}..{last}"
            )
        reach = f"{self.horizon:.0f} steps"
        if not math.isfinite(self.horizon):
            reach = "no number of steps"
        lines = [
            f"gradient: {self.verdict}{doubt}",
            f"  slope       {slope}",
            f"  horizon     {reach} until it has fallen to 1/1000; T is {self.num_steps}",
        ]
        if math.isfinite(self.exponent):
            lines.append(
                f"  exponent    {self.exponent:+.4f} nats per step, the largest Lyapunov's"
            )
        if math.isfinite(self.saturation):
            lines.append(f"  saturation  {self.saturation:.0%} of units have phi' < 0.05")
        if self.remedies:
            lines.append("try:")
        for number, remedy in enumerate(self.remedies, 1):
            lines.append(f"  {number}. {remedy.name}: {remedy.advice}")
        return "\n".join(lines)


def diagnose(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    *,
    lengths: Array | None = None,
) -> Diagnosis:
    """Measures the gradient's way back from each example's last loss, and says what it means.

    The last loss alone is followed: with a loss at every step the newest ones hide that the oldest
    are forgotten. Only ratios count, so the scale of the readout plays no part.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]` or `[H]`.
        xs: `[T, B, D]` or `[T, D]`.
        step_losses: `states -> [T, B]`, a `LastStep` or an `Immediate`.
        lengths: `[B]` for padded batches.

    Returns:
        A `Diagnosis`. Not for `jit`: it holds numbers and words, not arrays.

    Raises:
        ValueError: as in `state_gradients`; a NaN in the inputs is named before anything else.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> cell = rnn_jax.elman(32, recurrent_init=rnn_jax.initializers.orthogonal(0.5))
    >>> params = cell.init(jax.random.key(0), 1)
    >>> losses = gradflow.LastStep(lambda state: state.sum(-1))
    >>> found = gradflow.diagnose(cell, params, jnp.zeros((4, 32)), jnp.zeros((60, 4, 1)), losses)
    >>> found.verdict, round(found.slope, 3), found.remedies[0].name
    ('vanishing', -0.693, 'scale W')
    """
    if xs.ndim == 2:
        # Before the batch axis is added, so that an index named is one of the user's.
        check_fit(cell, params, state, xs)
        valid = None if lengths is None else valid_steps(lengths, xs)
        check_losses(step_losses, state, xs.shape[0], valid)
        finite.check_finite(params, state, xs)
        state, xs = jax.tree.map(lambda s: s[None], state), xs[:, None]
        step_losses = with_batch_axis(step_losses)
        lengths = None if lengths is None else jnp.reshape(lengths, (1,))
    if xs.ndim != 3:
        raise ValueError(f"xs has shape {xs.shape}, but [T, B, D] or [T, D] is wanted")
    trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    num_steps = xs.shape[0]
    last, immediate = _last_loss(trajectory, immediate, isinstance(step_losses, LastStep))
    logs = _log_adjoints(cell, params, trajectory, immediate)
    profile = lag_profile(logs, last)
    _check_profile(profile)
    fit = fit_slope(profile)
    verdict = verdict_of(profile)
    horizon = 0.0 if verdict == "dead" else memory_horizon(profile, fit)
    saturated, switches = math.nan, False
    if cell.affine is not None and cell.affine.slope is not None:
        slopes = cell.affine.slope(trajectory.states)
        # What stays as it was on padding has been counted once.
        slopes = slopes if trajectory.valid is None else slopes[trajectory.valid]
        saturated = float(saturation(slopes))
        switches = bool(jnp.all((slopes == 0) | (slopes == 1)))
    # The steps that every example has: past its length an example's state stays where it is.
    common = num_steps if lengths is None else int(np.min(np.asarray(lengths)))
    exponent = _exponents(cell, params, state, xs[:common], 1, common // 5)[0]
    growth = float(np.nanmax(relative_to_last(profile), initial=0.0))
    slope = fit.slope
    return Diagnosis(
        verdict=verdict,
        sure=is_sure(verdict, fit.slope, fit.error, len(profile)),
        slope=slope,
        slope_error=fit.error,
        fit_steps=(len(profile) - fit.last, len(profile) - fit.first),
        horizon=horizon,
        saturation=saturated,
        exponent=float(exponent) if np.isfinite(exponent) else math.nan,
        num_steps=num_steps,
        remedies=remedies(
            cell, params, verdict, slope, fit.error, horizon, num_steps, saturated, switches, growth
        ),
    )


# Compiled once for a cell and its shapes: a sweep diagnoses many networks of the same kind.
_exponents = jax.jit(lyapunov_spectrum, static_argnums=(0, 4, 5))


@functools.partial(jax.jit, static_argnums=0)
def _log_adjoints(cell: Cell, params: Params, trajectory: Trajectory, immediate: State) -> Array:
    return scan_adjoints(cell, params, trajectory, immediate, log_norm)


def _last_loss(trajectory: Trajectory, immediate: State, only_last: bool) -> tuple[Array, State]:
    """Index of each example's last step with a loss, `[B]`, and e_t at that step alone."""
    num_steps, batch_size = trajectory.xs.shape[:2]
    valid = trajectory.valid
    if only_last:
        last = jnp.full(batch_size, num_steps - 1)
        if valid is not None:
            last = jnp.sum(valid, axis=0) - 1
        return last, immediate
    steps = jnp.arange(num_steps)[:, None]
    nonzero = jnp.stack(
        [
            jnp.any(leaf.reshape(num_steps, batch_size, -1) != 0, axis=-1)
            for leaf in jax.tree.leaves(immediate)
        ]
    ).any(axis=0)
    last = jnp.max(jnp.where(nonzero, jnp.broadcast_to(steps, nonzero.shape), 0), axis=0)
    at_last = jnp.broadcast_to(steps, nonzero.shape) == jnp.broadcast_to(last, nonzero.shape)
    nothing = jax.tree.map(jnp.zeros_like, immediate)
    immediate = bptt.where_valid(at_last, immediate, nothing)
    return last, immediate


def _check_profile(profile: np.ndarray) -> None:
    """`ValueError` for a loss whose own gradient is NaN or inf; -inf means an exact zero."""
    if np.isnan(profile[0]).any() or np.isposinf(profile).any():
        raise ValueError(
            "the states are finite, but the gradient of step_losses is not (a square root or a "
            "norm at 0, say); origin_of_nonfinite tells the time step"
        )
