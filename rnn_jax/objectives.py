"""What is trained: a model, how it runs over a batch, and which losses count."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.losses import masked_mean
from rnn_jax.model import Model, ModelParams, apply, free_run
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, State
from rnn_jax.unroll import valid_steps


class Run(NamedTuple):
    """One pass of an objective over a batch.

    Attributes:
        step_losses: L_t of each example, `[T, B]` (`[B]` where only the last output counts).
        inputs: what the cell saw, `[T, B, D]`.
        states: what it became, leaves `[T, B, H]`.
        carry: the state from which the next iteration starts.
        mask: `[T, B]`, True where a step's loss counts; None where all do.
    """

    step_losses: Array
    inputs: Array
    states: State
    carry: State
    mask: Array | None = None


class Objective(NamedTuple):
    """What is trained.

    Attributes:
        model: a cell and a readout.
        run: `(params, carry, batch, perturbations) -> Run`.
        num_steps: `batch -> T`, the number of states in a run.
    """

    model: Model
    run: Callable[[ModelParams, State, Batch, State], Run]
    num_steps: Callable[[Batch], int]


def next_step_objective(model: Model, loss: Callable[[Array, Array], Array]) -> Objective:
    """An output and a loss at every step; the state is carried on (truncated BPTT).

    Args:
        model: a `sequence_model`.
        loss: `(outputs [T, B, O], targets [T, B, O]) -> [T, B]`.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        outputs, states = apply(model, params, carry, batch.inputs, perturbations=perturbations)
        final = jax.tree.map(lambda s: s[-1], states)
        return Run(loss(outputs, batch.targets), batch.inputs, states, final)

    return Objective(model, run, lambda batch: batch.inputs.shape[0])


def closed_loop_objective(
    model: Model, loss: Callable[[Array, Array], Array], warmup_steps: int
) -> Objective:
    """True inputs for `warmup_steps`, then the model's own outputs, and a loss at every step.

    The gradient runs through the whole free run, so the network learns to correct itself instead
    of being surprised by its own errors. Every iteration starts from the zero state.

    Args:
        model: a `sequence_model` with as many outputs as inputs.
        loss: `(outputs [T, B, D], targets [T, B, D]) -> [T, B]`.
        warmup_steps: number of true inputs; the batch's remaining steps run free.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        num_steps = batch.inputs.shape[0]
        if not 1 <= warmup_steps < num_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps}, but the batch has {num_steps} steps: give at "
                f"least 1 and leave at least one for the free run"
            )
        # The last true input is the free run's first.
        split = warmup_steps - 1
        before, after = (
            jax.tree.map(lambda p, s=part: p[s], perturbations)
            for part in (slice(None, split), slice(split, None))
        )
        parts = []
        state = carry
        if split:
            outputs, states = apply(
                model, params, state, batch.inputs[:split], perturbations=before
            )
            state = jax.tree.map(lambda s: s[-1], states)
            parts.append((outputs, states))
        parts.append(
            free_run(
                model, params, state, batch.inputs[split], num_steps - split, perturbations=after
            )
        )
        outputs, states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        inputs = jnp.concatenate([batch.inputs[:warmup_steps], outputs[split:-1]])
        return Run(loss(outputs, batch.targets), inputs, states, carry)

    return Objective(model, run, lambda batch: batch.inputs.shape[0])


def mean_loss(run: Run) -> Array:
    """Mean over a run's steps that count, then over its examples; scalar."""
    if run.mask is None:
        return jnp.mean(run.step_losses)
    return jnp.mean(masked_mean(run.step_losses, run.mask, axis=0))


def task_objective(model: Model, task: Task) -> Objective:
    """A task's loss; every iteration starts from the state carried in, which stays as it is.

    Args:
        model: a `last_only` model for a task that is answered at the last step, else a
            `sequence_model`.
        task: what is learned. Padding, and steps before its first loss, do not count.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        outputs, states = apply(
            model, params, carry, batch.inputs, perturbations=perturbations, lengths=batch.lengths
        )
        step_losses = task.loss(outputs, batch.targets)
        mask = None
        if step_losses.ndim == 2 and (batch.lengths is not None or task.first_loss_step):
            steps = jnp.broadcast_to(jnp.arange(len(step_losses))[:, None], step_losses.shape)
            mask = steps >= task.first_loss_step
            if batch.lengths is not None:
                mask &= valid_steps(batch.lengths, batch.inputs)
        return Run(step_losses, batch.inputs, states, carry, mask)

    return Objective(model, run, lambda batch: batch.inputs.shape[0])
