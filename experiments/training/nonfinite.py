"""A run whose numbers left the finite range: where, when, and what to try."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import rnn_jax
from experiments.training.algorithm import FirstNonFinite, streams
from rnn_jax import gradflow, objectives, plots, training
from rnn_jax.io import records
from rnn_jax.types import Batch, Key, State

PROFILE = "nonfinite_profile"


class MeasuredNetwork(NamedTuple):
    """The network whose gradient is that of training, as `gradflow` takes it.

    Attributes:
        objective: of training.
        sample: `key -> Batch`.
        arguments: `(params, carry, batch) -> (cell, its parameters, s_0, xs, step_losses)`.
    """

    objective: objectives.Objective
    sample: Callable[[Key], Batch]
    arguments: Callable[[rnn_jax.ModelParams, State, Batch], tuple[Any, ...]]


class NonFinitePolicy(NamedTuple):
    """What is done when loss or gradient is not finite.

    Attributes:
        action: "stop"; "skip", where the optimizer leaves such updates out; or "restore" the last
            checkpoint and go on with a smaller learning rate.
        restore_factor: of the learning rate at each restore.
        max_restores: after which the run stops.
        clip_norm: the bound in force, for the advice given; 0 for none.
        network: with it, the gradient is followed in logarithms beyond float32.
    """

    action: str = "stop"
    restore_factor: float = 0.3
    max_restores: int = 3
    clip_norm: float = 0.0
    network: MeasuredNetwork | None = None


STOP = NonFinitePolicy()


class NonFinite(FloatingPointError):
    """Loss or gradient stopped being finite; `step` is the iteration, `message` says the rest."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


def describe(where: FirstNonFinite, loss: float) -> str:
    """Where numbers first stopped being finite, in words; `loss` is that of the iteration."""
    if where.loss_step:
        return f"the loss is {loss} from time step {where.loss_step} on"
    if where.adjoint_step:
        return f"|dL/ds_t| leaves the finite range at time step {where.adjoint_step}, going back"
    return "the gradient of the parameters is not finite"


def advice(clip_norm: float) -> str:
    """What to try, whatever the network."""
    cure = (
        "lower --clip_norm"
        if clip_norm > 0
        else "bound the gradient with --clip_norm=1, lower --learning_rate"
    )
    return f"Try: {cure}, or start from smaller recurrent weights"


def examine(
    workdir: Path, policy: NonFinitePolicy, state: training.TrainState, key: Key, step: int
) -> str:
    """Follows the gradient of the iteration that failed beyond what float32 holds.

    The network is run again for it. Where it is chaotic, rounding makes that another trajectory of
    the same kind, and its profile one of the same growth rate.

    Args:
        workdir: for nonfinite_profile.npy `[T, B]`, ln|dL/ds_t|, its figure, and diagnosis.txt.
        policy: with a network.
        state: as it was before that iteration.
        key: the network's.
        step: which iteration it is, from 1.

    Returns:
        What it found, in one line.
    """
    assert policy.network is not None
    objective, sample, arguments = policy.network
    batch = sample(jax.random.fold_in(streams(key).data, step - 1))
    params, cell = state.params, objective.model.cell
    network = arguments(params, state.carry, batch)
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
