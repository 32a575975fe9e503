"""Why does this network not train, and what should be changed? A verdict with its numbers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import Cell
from rnn_jax.checks import num_steps_of
from rnn_jax.gradflow.arguments import checked
from rnn_jax.gradflow.jacobians import lyapunov_spectrum
from rnn_jax.gradflow.losses import Losses, check_losses, with_batch_axis
from rnn_jax.gradflow.measurements import Network, measure, parameter_gradient
from rnn_jax.gradflow.outcome import Outcome, about_the_task, check_outcome, was_learned
from rnn_jax.gradflow.remedies import remedies
from rnn_jax.gradflow.remedy import Remedy
from rnn_jax.placement import on_its_mesh
from rnn_jax.types import Array, Params, State

TRY_ANEW = "to reach further all the same, try the following and train again:"


class Diagnosis(NamedTuple):
    """How a gradient fares on its way back from the last loss; `str()` of it is a report.

    Attributes:
        verdict: "vanishing" (falls to less than 1/1000 within the sequence), "exploding" (grows
            more than 1000-fold), "dead" (exactly zero), "mixed" (examples differ, or it grows
            1000-fold and falls again, or falls so far and comes back), "healthy" (none of these).
        sure: whether the verdict rests on enough steps and on a growth rate well clear of its
            error.
        growth_rate: nats that ln|dL/ds_t| gains with each step back; NaN where none could be
            fitted. Also `slope`.
        growth_rate_error: its standard error; inf where there is none. Also `slope_error`.
        fit_steps: first and last time step (from 1) of the range it was fitted on.
        horizon: steps back until the gradient has fallen to 1/1000; inf if it does not.
        saturation: share of units with phi' < 0.05; NaN for cells whose phi' is not known.
        exponent: largest Lyapunov exponent, nats per step; NaN where the state never moves.
        num_steps: T.
        remedies: what to try.
        left_out: of a gradient that vanishes, the share of the last loss's dL/dtheta that comes
            from the steps beyond the horizon, |that part| / |dL/dtheta|; else NaN.
        outcome: what training came to, as it was given.
    """

    verdict: str
    sure: bool
    growth_rate: float
    growth_rate_error: float
    fit_steps: tuple[int, int]
    horizon: float
    saturation: float
    exponent: float
    num_steps: int
    remedies: tuple[Remedy, ...]
    left_out: float = math.nan
    outcome: Outcome | None = None

    @property
    def slope(self) -> float:
        """The growth rate, by its former name."""
        return self.growth_rate

    @property
    def slope_error(self) -> float:
        """The growth rate's error, by its former name."""
        return self.growth_rate_error

    @property
    def task(self) -> str:
        """What the verdict means for the task, in one sentence; empty where it means nothing."""
        return about_the_task(self.verdict, self.horizon, self.outcome)

    def __str__(self) -> str:
        first, last = self.fit_steps
        doubt = "" if self.sure else "   (not sure: see the growth rate's error)"
        rate = "none could be fitted"
        if math.isfinite(self.growth_rate):
            rate = (
                f"{self.growth_rate:+.4f} ± {self.growth_rate_error:.4f} nats per step back "
                f"(factor {math.exp(self.growth_rate):.3f}), fitted on t = {first}..{last}"
            )
        horizon = f"{self.horizon:.0f} steps until it has fallen to 1/1000"
        if not math.isfinite(self.horizon):
            horizon = "unlimited: it does not fall to 1/1000"
        lines = [
            f"gradient: {self.verdict}{doubt}",
            f"  growth rate {rate}",
            f"  horizon     {horizon}; T is {self.num_steps}",
        ]
        if math.isfinite(self.left_out):
            kept = "all" if self.left_out < 5e-4 else f"all but {self.left_out:.1%}"
            lines.append(
                f"  dL/dtheta   {kept} of it comes from the last {self.horizon:.0f} steps before "
                "the loss"
            )
        if math.isfinite(self.exponent):
            lines.append(
                f"  exponent    {self.exponent:+.4f} nats per step, the largest Lyapunov exponent"
            )
        if math.isfinite(self.saturation):
            lines.append(f"  saturation  {self.saturation:.0%} of units have phi' < 0.05")
        if self.task:
            lines.append(f"task: {self.task}")
        if self.remedies:
            learned = self.outcome is not None and was_learned(self.outcome)
            needless = learned and self.verdict == "vanishing"
            lines.append(TRY_ANEW if needless else "try:")
        elif self.verdict != "healthy":
            lines.append("try: nothing that was tried on this network helps")
        for number, remedy in enumerate(self.remedies, 1):
            lines.append(f"  {number}. {remedy.name}: {remedy.advice}")
        return "\n".join(lines)


@on_its_mesh
def diagnose(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    *,
    lengths: Array | None = None,
    outcome: Outcome | None = None,
) -> Diagnosis:
    """Measures the gradient's way back from each example's last loss, and says what it means.

    The last loss alone is followed: with a loss at every step the newest ones hide that the oldest
    are forgotten. Only ratios count, so the scale of the readout plays no part.

    A remedy that changes a parameter is tried before it is advised, by measuring the network again
    with it: where the gradient is not healthy that takes some ten more passes over the sequence,
    and a few for each parameter of a cell whose parameters are not known.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]` or `[H]`.
        xs: `[T, B, D]` or `[T, D]`.
        step_losses: `states -> [T, B]`, a `LastStep` or an `Immediate`.
        lengths: `[B]` for padded batches.
        outcome: what training came to, if it is over: whether the task needed the reach is seen
            from the loss alone.

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
    >>> found.verdict, round(found.growth_rate, 3), found.remedies[0].name
    ('vanishing', -0.693, 'scale W')
    """
    if not isinstance(cell, Cell):
        raise ValueError(
            f"diagnose wants a Cell, but was given a {type(cell).__name__}; of a bidirectional "
            "network diagnose each direction by itself: cells.forward with params.forward, and "
            "cells.backward with params.backward on the reversed sequence"
        )
    check_outcome(outcome)
    params, state, xs, valid, batch_shape = checked(cell, params, state, xs, lengths)
    if not batch_shape:
        # Before the batch axis is added, so that an index named is one of the user's.
        check_losses(step_losses, state, num_steps_of(xs), valid)
        state = jax.tree.map(lambda s: s[None], state)
        xs = jax.tree.map(lambda x: x[:, None], xs)
        step_losses = with_batch_axis(step_losses)
        lengths = None if lengths is None else jnp.reshape(lengths, (1,))
    if len(batch_shape) > 1:
        raise ValueError(f"the batch has shape {batch_shape}, but xs [T, B, D] or [T, D] is wanted")
    network = Network(cell, params, state, xs, step_losses, lengths)
    found = measure(network)
    num_steps = found.num_steps
    # The steps that every example has: past its length an example's state stays where it is.
    common = num_steps if lengths is None else int(np.min(np.asarray(lengths)))
    shared = jax.tree.map(lambda x: x[:common], xs)
    exponent = _exponents(cell, params, state, shared, 1, common // 5)[0]
    left_out = math.nan
    if found.verdict == "vanishing":
        left_out = parameter_gradient(network, max(1, int(found.horizon))).left_out
    return Diagnosis(
        verdict=found.verdict,
        sure=found.sure,
        growth_rate=found.growth_rate,
        growth_rate_error=found.growth_rate_error,
        fit_steps=found.fit_steps,
        horizon=found.horizon,
        saturation=found.saturation,
        exponent=float(exponent) if np.isfinite(exponent) else math.nan,
        num_steps=num_steps,
        remedies=remedies(network, found),
        left_out=left_out,
        outcome=outcome,
    )


# Compiled once for a cell and its shapes: a sweep diagnoses many networks of the same kind.
_exponents = jax.jit(lyapunov_spectrum, static_argnums=(0, 4, 5))
