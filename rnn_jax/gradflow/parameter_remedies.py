"""Remedies that change a parameter: each has been tried on the network before it is advised."""

import math

import jax.numpy as jnp
import numpy as np

from rnn_jax.cells.cell import emit_size
from rnn_jax.gradflow import anatomy
from rnn_jax.gradflow.anatomy import Part, values_of
from rnn_jax.gradflow.remedy import Case, Remedy, after_trial, mean, names, quantity_of
from rnn_jax.gradflow.trials import Edit, Trial, hold, solved, trial, tried

TOO_SATURATED = 0.3
"""Share of saturated units from which on they are named first."""


def livelier_units(case: Case) -> list[Remedy]:
    """Units that are off or saturated pass next to nothing on, whatever the weights."""
    share = case.found.saturation
    if not share > TOO_SATURATED or case.found.verdict == "exploding":
        return []
    if case.found.switches:
        biases = [a.bias for a in case.known if a.bias is not None]
        if not biases:
            return []
        return after_trial(
            case,
            "larger bias",
            f"start {names(case, biases)} at 1: {share:.0%} of the units are off (phi' = 0), and "
            "the gradient passes through none of them; no scale turns a ReLU on",
            "saturation",
            trial(case.network, biases, "set", 1.0),
        )
    inputs = [a.inputs for a in case.known if a.inputs is not None]
    recurrent = [a.recurrent for a in case.known if a.recurrent is not None]
    for parts in (inputs, inputs + recurrent):
        for factor in (0.5, 0.25, 0.1):
            found = after_trial(
                case,
                "smaller pre-activations",
                f"multiply {names(case, parts)} by {factor:g}: {share:.0%} of the units are "
                "saturated (phi' < 0.05), and each multiplies the gradient by nearly 0",
                "saturation",
                trial(case.network, parts, "scale", factor),
            )
            if found:
                return found
    return []


def longer_memory(case: Case) -> list[Remedy]:
    """A gate or a leak that keeps the old state for as long as the sequence is."""
    if case.found.verdict not in ("vanishing", "mixed", "dead"):
        return []
    return [*_open_gate(case), *_smaller_leak(case)]


def _open_gate(case: Case) -> list[Remedy]:
    """A bias with which the gate keeps 1 - 1/T; with smaller W where that alone explodes."""
    num_steps = case.found.num_steps
    wanted = math.log(max(num_steps - 1, 2))
    gates = [a for a in case.known if a.gate_bias is not None]
    biases = [a.gate_bias for a in gates if a.gate_bias is not None]
    means = [mean(case, bias) for bias in biases]
    if not means or min(means) >= wanted:
        return []
    kinds = sorted({a.gate for a in gates})
    name = f"{kinds[0]}-gate bias" if len(kinds) == 1 else "gate bias"
    now = ", ".join(f"{bias:.2f}" for bias in means)
    kept = ", ".join(f"{1 / (1 + math.exp(-bias)):.3f}" for bias in means)
    matrices = [part for a in gates for parts in a.scales.values() for part in parts]
    second_best: list[Remedy] = []
    for factor in (1.0, 0.5, 0.25, 0.1):
        edits = [Edit(bias, "set", wanted) for bias in biases]
        advice = (
            f"start {names(case, biases)} at ln(T - 1) = {wanted:.2f} for a memory of "
            f"T = {num_steps} steps; it is {now} now, which alone keeps 1/(1 + e^-b) = {kept} a "
            "step"
        )
        if factor < 1:
            edits += [Edit(part, "scale", factor) for part in matrices]
            advice += (
                f"; and multiply {names(case, matrices)} by {factor}, without which the gradient "
                "would grow"
            )
        after = tried(case.network, edits)
        done = None if after is None else Trial(tuple(edits), wanted, after)
        found = after_trial(case, name, advice, quantity_of(case.found), done)
        if found and after is not None and after.verdict == "healthy":
            return found
        second_best = second_best or found
    return second_best


def _smaller_leak(case: Case) -> list[Remedy]:
    """A leak of 1/T."""
    leaks = [a.leak for a in case.known if a.leak is not None]
    if not leaks:
        return []
    num_steps = case.found.num_steps
    leak = float(np.mean([mean(case, part) for part in leaks]))
    return after_trial(
        case,
        "smaller leak",
        f"set {names(case, leaks)} to 1/T = {1 / num_steps:.2g}; it is {leak:.2g} now, and "
        f"without W each step keeps 1 - leak = {1 - leak:.3g} of the gradient",
        "growth rate",
        trial(case.network, leaks, "set", 1 / num_steps),
    )


def critical_gain(case: Case) -> list[Remedy]:
    """The factor, found by measurement, with which the gradient neither shrinks nor grows."""
    rate, error = case.found.growth_rate, case.found.growth_rate_error
    if not abs(rate) > 2 * error:
        return []
    candidates = _scales(case) or _leaves(case)
    holds = [hold(case.network, case.found, parts, how) for _, how, parts in candidates]
    known = [n for n, derivative in enumerate(holds) if not math.isnan(derivative)]
    remedies: list[Remedy] = []
    for n in sorted(known, key=lambda n: -abs(holds[n])):
        name, how, parts = candidates[n]
        if any(remedy.edits[0].how == how for remedy in remedies):
            continue  # One that had more of a hold on it has been found.
        done = solved(case.network, case.found, parts, how, holds[n])
        if done is None:
            continue
        which = names(case, parts)
        what = f"multiply {which} by {done.value:.3g}"
        if how == "shift":
            what = f"add {done.value:.3g} to {which}"
        remedies += after_trial(
            case,
            name,
            f"{what}: each step back multiplies the gradient by {math.exp(rate):.3g}, and this "
            "brings that factor near 1",
            "growth rate",
            done,
        )
    return remedies


def orthogonal_matrix(case: Case, gain: list[Remedy]) -> list[Remedy]:
    """An orthogonal W, where the singular values are far from equal.

    Args:
        case: the network.
        gain: what `critical_gain` found; of an unknown cell it says which matrix is W.
    """
    cells = [a for a in case.known if a.recurrent is not None]
    squares = [a.recurrent for a in cells if a.recurrent is not None]
    draw = {a.orthogonal for a in cells}
    if not case.known:
        size = emit_size(case.network.cell, case.params)
        scaled = [edit.part for remedy in gain for edit in remedy.edits if edit.how == "scale"]
        squares = [part for part in scaled if values_of(case.params, part).shape == (size, size)]
        draw = {anatomy.ANY_ORTHOGONAL}
    if not squares:
        return []
    matrices = [np.asarray(values_of(case.params, W), np.float64) for W in squares]
    values = np.concatenate([np.linalg.svd(W, compute_uv=False) for W in matrices])
    low, high = np.percentile(values, [10, 90])
    if low > 0.8 and high < 1.25:
        return []
    advice = (
        f"draw {names(case, squares)} orthogonal ({', '.join(sorted(draw))}): singular values run "
        f"from {values.min():.2g} to {values.max():.2g}, those of an orthogonal matrix are all 1"
    )
    if draw == {anatomy.OUR_ORTHOGONAL}:
        advice += f" (and stay there in training, in rnn_jax.exp_rnn({len(matrices[0])}))"
    return after_trial(
        case,
        "orthogonal W",
        advice,
        "growth rate",
        trial(case.network, squares, "orthogonal", 1.0),
    )


Candidates = list[tuple[str, str, list[Part]]]
"""Name of the remedy, "scale" or "shift", and the parts that are changed together."""


def _scales(case: Case) -> Candidates:
    """What may be scaled in the cells that are known: the layers of a stack together."""
    scales: dict[str, list[Part]] = {}
    for cell in case.known:
        for name, parts in cell.scales.items():
            scales.setdefault(name, []).extend(parts)
    return [(f"scale {name}", "scale", parts) for name, parts in scales.items()]


def _leaves(case: Case) -> Candidates:
    """Of a cell that nobody knows: each matrix (or number) may be scaled, each bias shifted.

    A vector of k H numbers may be the biases of k gates side by side.
    """
    size = emit_size(case.network.cell, case.params)
    candidates: Candidates = []
    for path, leaf in anatomy.leaves_of(case.params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.size == 0:
            continue
        parts = [Part(path)]
        if leaf.ndim == 1 and leaf.size % size == 0 and leaf.size > size:
            parts = [Part(path, (n, n + size)) for n in range(0, leaf.size, size)]
        name, how = ("bias", "shift") if leaf.ndim == 1 else ("gain", "scale")
        candidates += [(name, how, [part]) for part in parts]
    return candidates
