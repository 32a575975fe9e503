"""Remedies outside the parameters: another start, another cell, a bound on the gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells.cell import emit_size
from rnn_jax.gradflow import anatomy
from rnn_jax.gradflow.measurements import measure, parameter_gradient, settled_state
from rnn_jax.gradflow.remedy import (
    Case,
    Remedy,
    exp,
    fulfils,
    power,
    quantities,
    quantity_of,
    reach,
    steps,
    told,
)
from rnn_jax.types import State

AWAKE = 0.1
"""What each unit of s_0 is set to where all states stay zero."""


def readout_that_looks(case: Case) -> list[Remedy]:
    """A loss that does not depend on the state has nothing to send back."""
    return [
        Remedy(
            "loss",
            "look at what comes after the cell: the last loss has a derivative of exactly 0 by the "
            "state that it reads (a readout of zeros, an argmax, a stop_gradient, a mask), so "
            "nothing about the cell can help",
            0.0,
            "gradient norm",
            0.0,
        )
    ]


def other_start(case: Case) -> list[Remedy]:
    """Another s_0: the state in which the network settles, or one that is not zero for ever."""
    settled = settled_state(case.network)
    start, end = _size(case.network.state), _size(settled)
    try:
        if start == end == 0:
            return _awake(case)
        after = measure(case.network._replace(state=settled))
    except ValueError:
        return []  # From there the states leave the finite range.
    moves = quantity_of(case.found)
    if not fulfils(moves, case.found, after):
        return []
    advice = (
        "start where the network settles: run it some steps before the sequence, or make s_0 a "
        f"parameter (rnn_jax.learned_initial_state); units of s_0 are {start:.2g} in size, those "
        f"of s_T {end:.2g}; {told(moves, case.found, after)}"
    )
    return [Remedy("initial state", advice, end, moves, *quantities(moves, case.found, after))]


def _awake(case: Case) -> list[Remedy]:
    """Where all states stay 0, parameters that only multiply them have no gradient at all."""
    network, num_steps = case.network, case.found.num_steps
    if parameter_gradient(network, num_steps).log_norm > -math.inf:
        return []
    awake = jax.tree.map(lambda s: jnp.full_like(s, AWAKE), network.state)
    then = parameter_gradient(network._replace(state=awake), num_steps).log_norm
    if then == -math.inf:
        return []
    advice = (
        f"start from a state that is not zero, such as {AWAKE} in every unit: all states stay "
        f"exactly 0, and so does dL/dtheta; tried: |dL/dtheta| 0 -> {power(then)}"
    )
    return [Remedy("initial state", advice, AWAKE, "gradient norm", 0.0, exp(then))]


def gated_cell(case: Case) -> list[Remedy]:
    """A cell with a memory that no matrix acts on, for one without."""
    num_steps, horizon = case.found.num_steps, case.found.horizon
    if case.found.verdict not in ("vanishing", "dead"):
        return []
    if any(a.gate or a.leak is not None for a in case.known):
        return []
    take = case.known[0].gated_cell if case.known else anatomy.ANY_LSTM
    size, bias = emit_size(case.network.cell, case.params), math.log(max(num_steps - 1, 2))
    advice = (
        f"{take.format(size=size, bias=bias)}: this gradient's horizon is {reach(horizon)} of "
        f"{num_steps}, and a forget gate of 1 - 1/{num_steps} keeps it over all of them"
    )
    if take == anatomy.OUR_LSTM:
        kept = 1 - 1 / max(num_steps, 2)
        advice += f", as do the modes of rnn_jax.lru({size}, r_min={kept:.4g})"
    return [Remedy("gated cell", advice, bias, "horizon", horizon)]


def bounds(case: Case) -> list[Remedy]:
    """A bound on |dL/dtheta|, and a window, from the steps before it has grown tenfold."""
    found = case.found
    if found.verdict not in ("exploding", "mixed") or found.peak <= 0:
        return []
    window = max(1, found.tenfold)
    gradient = parameter_gradient(case.network, window)
    recent, norm = exp(gradient.log_norm_within), exp(gradient.log_norm)
    if not recent < norm:
        return []
    whole, last = power(gradient.log_norm), f"its last {steps(window)}"
    # Where the states explode too even the newest gradients are larger than what they change.
    size = math.sqrt(sum(float(jnp.sum(jnp.square(p))) for p in jax.tree.leaves(case.params)))
    bound = min(recent, size)
    why = f"{last}, before it has grown tenfold, make it {power(gradient.log_norm_within)}"
    if bound < recent:
        why += f", and |theta| is {size:.3g}"
    clip = (
        f"put optax.clip_by_global_norm({bound:.3g}) before the optimizer: on its way back the "
        f"gradient grows {power(found.peak)}-fold, so |dL/dtheta| is {whole}; {why}"
    )
    shorter = (
        f"follow each loss back {steps(window)} instead of {found.num_steps}, by truncated "
        "back-propagation (jax.lax.stop_gradient on the state, rnn_jax.training.truncated) or "
        f"shorter sequences; tried: |dL/dtheta| {whole} -> {power(gradient.log_norm_within)}"
    )
    return [
        Remedy("clip the gradient", clip, bound, "gradient norm", norm, bound),
        Remedy("shorter window", shorter, float(window), "gradient norm", norm, recent),
    ]


def _size(state: State) -> float:
    """Root mean square over all units."""
    leaves = [np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(state)]
    return float(np.sqrt(np.mean(np.square(np.concatenate(leaves)))))
