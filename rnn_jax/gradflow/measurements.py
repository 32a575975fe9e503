"""What is measured on a network's gradient before anybody gives advice: one run, one NamedTuple."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import bptt
from rnn_jax.bptt import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.checks import num_steps_of
from rnn_jax.gradflow.backward import prepare, scan_adjoints
from rnn_jax.gradflow.losses import LastStep, Losses
from rnn_jax.gradflow.profile import (
    fit_slope,
    is_sure,
    lag_profile,
    memory_horizon,
    relative_to_last,
    saturation,
    verdict_of,
)
from rnn_jax.gradflow.scaled import NO_EXPONENT, Scaled, apply, log_norm, times_power
from rnn_jax.types import Array, Params, State

TENFOLD = math.log(10)


class Network(NamedTuple):
    """What `diagnose` is given, with a batch axis: a cell on data, and its loss.

    Attributes:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`, or a pytree of arrays `[T, ...]`.
        step_losses: `states -> [T, B]`, a `LastStep` or an `Immediate`.
        lengths: `[B]`, or None.
    """

    cell: Cell
    params: Params
    state: State
    xs: Any
    step_losses: Losses
    lengths: Array | None = None


class Measurements(NamedTuple):
    """How a gradient fares on its way back from the last loss, in numbers.

    Attributes:
        verdict, sure, growth_rate, growth_rate_error, fit_steps, horizon, saturation, num_steps:
            as in `Diagnosis`.
        switches: whether phi' is 0 or 1 everywhere, as a ReLU's is.
        peak: largest ln|dL/ds_t| above that at the last loss, over steps and examples.
        excursion: largest distance of ln|dL/ds_t| from that at the last loss, in either direction;
            inf where the gradient becomes exactly zero.
        tenfold: steps, counted from the last loss on, until the gradient of any example has grown
            tenfold; T where none has.
        silent: whether no example's last loss depends on the state at all.
    """

    verdict: str
    sure: bool
    growth_rate: float
    growth_rate_error: float
    fit_steps: tuple[int, int]
    horizon: float
    saturation: float
    num_steps: int
    switches: bool
    peak: float
    excursion: float
    tenfold: int
    silent: bool


def measure(network: Network) -> Measurements:
    """Follows the last loss of each example back to the first step.

    Raises:
        ValueError: as in `state_gradients`.
    """
    cell, params = network.cell, network.params
    trajectory, immediate, last = from_last_loss(network)
    profile = lag_profile(_log_adjoints(cell, params, trajectory, immediate), last)
    _check_profile(profile)
    fit, verdict = fit_slope(profile), verdict_of(profile)
    saturated, switches = math.nan, False
    if cell.affine is not None and cell.affine.slope is not None:
        slopes = cell.affine.slope(trajectory.states)
        # What stays as it was on padding has been counted once.
        if trajectory.valid is not None:
            slopes = jnp.asarray(np.asarray(slopes)[np.asarray(trajectory.valid)])
        saturated = float(saturation(slopes))
        switches = bool(jnp.all((slopes == 0) | (slopes == 1)))
    shares = relative_to_last(profile)
    highest = np.nanmax(shares, axis=1, initial=-np.inf)
    grown = np.flatnonzero(highest >= TENFOLD)
    return Measurements(
        verdict=verdict,
        sure=is_sure(verdict, fit.slope, fit.error, len(profile)),
        growth_rate=fit.slope,
        growth_rate_error=fit.error,
        fit_steps=(len(profile) - fit.last, len(profile) - fit.first),
        horizon=0.0 if verdict == "dead" else memory_horizon(profile, fit),
        saturation=saturated,
        num_steps=num_steps_of(network.xs),
        switches=switches,
        peak=float(max(highest.max(), 0.0)),
        excursion=float(np.nanmax(np.abs(shares), initial=0.0)),
        tenfold=int(grown[0]) if grown.size else num_steps_of(network.xs),
        silent=bool(np.isneginf(profile[0]).all()),
    )


def settled_state(network: Network) -> State:
    """The state that each example ends in, leaves `[B, H]`."""
    return jax.tree.map(lambda s: s[-1], from_last_loss(network)[0].states)


class ParameterGradient(NamedTuple):
    """dL/dtheta of the last losses, averaged over the batch, and what a window keeps of it.

    Attributes:
        log_norm: ln|dL/dtheta|.
        log_norm_within: the same for the summands of the window's steps alone.
        left_out: |dL/dtheta - that of the window| / |dL/dtheta|; NaN where dL/dtheta is zero.
    """

    log_norm: float
    log_norm_within: float
    left_out: float


def parameter_gradient(network: Network, window: int) -> ParameterGradient:
    """dL/dtheta of each example's last loss, and the part of its last `window` steps.

    The gradient may lie far outside the range of floats: lambda_t is kept with its exponent, and
    the summands of each part are brought to the scale of its largest before they are added up.
    """
    if not jax.tree.leaves(network.params):
        return ParameterGradient(-math.inf, -math.inf, math.nan)
    trajectory, immediate, last = from_last_loss(network)
    lag = np.asarray(last)[None] - np.arange(num_steps_of(network.xs))[:, None]
    logs = _window_norms(
        network.cell, network.params, trajectory, immediate, jnp.asarray(lag < window)
    )
    full, within, rest = (float(log) - math.log(last.shape[0]) for log in logs)
    left_out = math.exp(rest - full) if full > -math.inf else math.nan
    return ParameterGradient(full, within, left_out)


@functools.partial(jax.jit, static_argnums=0)
def _window_norms(
    cell: Cell, params: Params, trajectory: Trajectory, immediate: State, within: Array
) -> Array:
    """ln of the norms of dL/dtheta, summed over the batch: whole, within the window, outside it."""
    adjoints = scan_adjoints(cell, params, trajectory, immediate, lambda scaled: scaled)
    zero = jax.tree.map(jnp.zeros_like, adjoints.value)

    def gradient(part: State) -> Params:
        return bptt.parameter_gradients(cell, params, trajectory, part)[0]

    def log_of(kept: Array) -> Array:
        largest = jnp.max(jnp.where(kept, adjoints.exponent, NO_EXPONENT))
        common = times_power(adjoints.value, adjoints.exponent - largest)
        part = bptt.where_valid(kept, common, zero)
        return log_norm(apply(gradient, Scaled(part, largest), careful=True))

    return jax.vmap(log_of)(jnp.stack([jnp.ones_like(within), within, ~within]))


def from_last_loss(network: Network) -> tuple[Trajectory, State, Array]:
    """The forward run; e_t of each example's last loss alone; that loss's step, `[B]`."""
    cell, params, state, xs, step_losses, lengths = network
    _, trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    num_steps, batch_size = num_steps_of(xs), jax.tree.leaves(state)[0].shape[0]
    valid = trajectory.valid
    if isinstance(step_losses, LastStep):
        last = jnp.full(batch_size, num_steps - 1)
        if valid is not None:
            last = jnp.sum(valid, axis=0) - 1
        return trajectory, immediate, last
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
    return trajectory, immediate, last


# Compiled once for a cell and its shapes: a remedy is tried on other numbers of the same shapes.
@functools.partial(jax.jit, static_argnums=0)
def _log_adjoints(cell: Cell, params: Params, trajectory: Trajectory, immediate: Any) -> Array:
    return scan_adjoints(cell, params, trajectory, immediate, log_norm)


def _check_profile(profile: np.ndarray) -> None:
    """`ValueError` for a loss whose own gradient is NaN or inf; -inf means an exact zero."""
    if np.isnan(profile[0]).any() or np.isposinf(profile).any():
        raise ValueError(
            "the states are finite, but the gradient of step_losses is not (a square root or a "
            "norm at 0, say); origin_of_nonfinite finds the time step"
        )
