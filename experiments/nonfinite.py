"""A run whose numbers left the finite range: where, when, and what to try."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnn_jax
from experiments.history import state_norms
from rnn_jax import gradflow, objectives, plots, records, train
from rnn_jax.types import Batch, Key, State

PROFILE = "nonfinite_profile"
WayBack = Callable[[rnn_jax.ModelParams, State, Batch], tuple[Any, ...]]
"""`(params, carry, batch) -> (cell, its parameters, s_0, xs, step_losses)`: the network whose
gradient is that of training, as `gradflow.state_gradients` takes it."""


class NonFinite(FloatingPointError):
    """Loss or gradient stopped being finite; `step` is the iteration, `message` says the rest."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Beginning(NamedTuple):
    """Where numbers first stopped being finite.

    Attributes:
        step: the iteration, from 1.
        where: in words, with the time step.
    """

    step: int
    where: str


def first_nonfinite(metrics: train.Metrics, first_step: int) -> Beginning | None:
    """Where a chunk's numbers first stopped being finite; None where all are."""
    norms = state_norms(metrics.trace)
    bad_loss = ~np.isfinite(metrics.step_losses)
    bad_gradient = ~np.isfinite(norms) | ~np.isfinite(metrics.gradient_norm)[:, None]
    bad = bad_loss.any(axis=1) | bad_gradient.any(axis=1)
    if not bad.any():
        return None
    index = int(np.argmax(bad))
    if bad_loss[index].any():
        time_step = 1 + int(np.argmax(bad_loss[index]))
        where = f"the loss is {metrics.loss[index]} from time step {time_step} on"
    else:
        nonfinite = np.flatnonzero(~np.isfinite(norms[index]))
        where = "the gradient of the parameters is not finite"
        if nonfinite.size:
            where = (
                f"|dL/ds_t| leaves the finite range at time step {nonfinite[-1] + 1}, going back"
            )
    return Beginning(first_step + index, where)


def advice(clip_norm: float) -> str:
    """What to try, whatever the network."""
    cure = (
        "lower --clip_norm"
        if clip_norm > 0
        else "bound the gradient with --clip_norm=1, lower --learning_rate"
    )
    return f"Try: {cure}, or start from smaller recurrent weights"


def replayed(
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    state: train.TrainState,
    key: Key,
    steps: int,
    trace: Any,
    chunk: int,
) -> train.TrainState:
    """The training state `steps` iterations on; training is the same every time it is run."""
    state = jax.device_put(state)
    while steps:
        size = min(chunk, steps)
        state, _ = train.train_chunk(objective, optimizer, sample, state, key, size, trace)
        steps -= size
    return state


def examine(
    workdir: Path,
    objective: objectives.Objective,
    sample: Callable[[Key], Batch],
    way_back: WayBack,
    state: train.TrainState,
    key: Key,
    step: int,
) -> str:
    """Follows the gradient of the iteration that failed beyond what float32 holds.

    The network is run again for it. Where it is chaotic, rounding makes that another trajectory of
    the same kind, and its profile one of the same slope.

    Args:
        workdir: for nonfinite_profile.npy `[T, B]`, ln|dL/ds_t|, its figure, and diagnosis.txt.
        objective, sample, key: of the run.
        way_back: see `WayBack`.
        state: as it was before that iteration.
        step: which iteration it is, from 1.

    Returns:
        What it found, in one line.
    """
    batch = sample(jax.random.fold_in(key, step - 1))
    params, cell = state.params, objective.model.cell
    network = way_back(params, state.carry, batch)
    try:
        logs = np.asarray(gradflow.state_gradients(*network))
        found = alone = gradflow.diagnose(*network)
        if network[0] is not cell:
            # What could be done about the cell, the inputs it saw taken as given.
            zeros = rnn_jax.zero_perturbations(state.carry, objective.num_steps(batch))
            inputs = objective.run(params, state.carry, batch, zeros).inputs
            alone = gradflow.diagnose(cell, params.cell, state.carry, inputs, network[-1])
    except ValueError as error:
        # The forward pass itself is not finite: its first such number is named.
        return str(error).splitlines()[0]
    records.save_array(workdir, PROFILE, logs)
    middle = np.median(logs.reshape(len(logs), -1), axis=1)
    figure = plots.beyond_range(
        logs,
        f"Iteration {step}: back over {len(logs)} steps the gradient changes by a factor "
        f"e^{middle[0] - middle[-1]:.0f}, {found.slope:+.3f} nats per step",
    )
    records.save_figure(workdir, PROFILE, figure)
    text = f"{found}\n"
    if alone is not found:
        text += f"the cell alone, on the inputs that it saw:\n{alone}\n"
    records.write_atomically(workdir / "diagnosis.txt", text)
    sys.stderr.write(f"iteration {step}, followed in logarithms:\n{text}")
    names = dict.fromkeys(remedy.name for remedy in (*found.remedies, *alone.remedies))
    remedies = ", ".join(names) or "none"
    return (
        f"the gradient is {found.verdict}, {found.slope:+.3f} nats per step back "
        f"({PROFILE}.png); remedies: {remedies} (diagnosis.txt)"
    )
