"""What is trained: a model, how it runs over a batch, and which losses count."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.losses import masked_mean
from rnn_jax.model import Model, ModelParams, apply, free_run
from rnn_jax.placement import mean
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, State
from rnn_jax.unroll import fill_padding, valid_steps


class Run(NamedTuple):
    """One pass of an objective over a batch.

    Attributes:
        step_losses: L_t of each example, `[T, B]` (`[B]` where only the last output counts); 0
            where the mask is False.
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

    Of a batch with lengths only the true steps count, and each example's last true state is
    carried on.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        whole = _judged_run(model, loss, params, carry, batch, perturbations)
        return whole._replace(carry=jax.tree.map(lambda s: s[-1], whole.states))

    return Objective(model, run, lambda batch: batch.inputs.shape[0])


def task_objective(model: Model, task: Task) -> Objective:
    """A task of `rnn_jax.tasks`; every iteration starts from the same state, the one passed.

    Args:
        model: a `last_only` model where the task is answered at the last step, a `sequence_model`
            otherwise, of the task's output size.
        task: its loss counts on true steps from its first loss on.

    Returns:
        An `Objective` whose run has no mask where every step counts, nor where one answer does.

    Raises:
        ValueError: when run, outputs that are no answers to the task, both shapes named.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        return _judged_run(model, task, params, carry, batch, perturbations)

    return Objective(model, run, lambda batch: batch.inputs.shape[0])


def _judged_run(
    model: Model,
    loss: Task | Callable[[Array, Array], Array],
    params: ModelParams,
    carry: State,
    batch: Batch,
    perturbations: State,
) -> Run:
    """A pass over the true inputs; its carry is the one it started from."""
    inputs = true_inputs(batch)
    outputs, states = apply(
        model, params, carry, inputs, perturbations=perturbations, lengths=batch.lengths
    )
    step_losses, mask = judge(loss, outputs, batch)
    return Run(step_losses, inputs, states, carry, mask)


def true_inputs(batch: Batch) -> Array:
    """A batch's inputs `[T, B, D]` without what lies on their padding."""
    if batch.lengths is None:
        return batch.inputs
    return fill_padding(batch.inputs, valid_steps(batch.lengths, batch.inputs))


def judge(
    loss: Task | Callable[[Array, Array], Array], outputs: Array, batch: Batch
) -> tuple[Array, Array | None]:
    """Losses of a batch's outputs, and which of them count: the `step_losses` and `mask` of a run.

    Args:
        loss: a task, or a loss that counts on every true step.
        outputs: `[T, B, O]`, or `[B, O]` for a task answered at the last step.
        batch: its targets and lengths.
    """
    steps, size = batch.inputs.shape[:2]
    targets, first = batch.targets, 0
    mask = None if batch.lengths is None else valid_steps(batch.lengths, batch.inputs)
    if isinstance(loss, Task):
        _check_answers(loss, outputs, (steps, size))
        if loss.last_only:
            return loss.loss(outputs, targets), None
        if loss.first_loss_step:
            late = jnp.arange(steps)[:, None] >= loss.first_loss_step
            late = jnp.broadcast_to(late, (steps, size))
            mask = late if mask is None else late & mask
            first = min(loss.first_loss_step, steps - 1)
        if loss.asked is not None:
            asked = loss.asked(targets)
            mask = asked if mask is None else asked & mask
        loss = loss.loss
    if mask is None:
        return loss(outputs, targets), None
    # Where nothing is asked, answers and targets may be anything, inf and NaN included.
    outputs, targets = fill_padding((outputs, targets), mask, first)
    return jnp.where(mask, loss(outputs, targets), 0), mask


def _check_answers(task: Task, outputs: Array, batch_shape: tuple[int, int]) -> None:
    steps, size = batch_shape
    wanted = (size, task.output_size) if task.last_only else (steps, size, task.output_size)
    if outputs.shape != wanted:
        maker = "last_only" if task.last_only else "sequence_model"
        raise ValueError(
            f"the model's outputs have shape {outputs.shape}, but the task {task.name!r} wants "
            f"{wanted}; make the model with rnn_jax.{maker}(cell, {task.output_size})"
        )


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
        if batch.lengths is not None:
            raise ValueError(
                "the batch has lengths, but a closed loop runs free to its end: give sequences of "
                "one length, and lengths=None"
            )
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


def mean_loss(run: Run, mesh_axes: tuple[str, ...] = ()) -> Array:
    """Mean over a run's steps that count, then over its examples; `ValueError` without any.

    Inside `jax.shard_map` `mesh_axes` are the mesh axes that split the batch.
    """
    if not run.step_losses.size:
        raise ValueError(
            f"step losses have shape {run.step_losses.shape}: an empty batch has no mean loss; "
            "give at least one example"
        )
    if run.mask is None:
        return mean(run.step_losses, mesh_axes)
    return mean(masked_mean(run.step_losses, run.mask, axis=0), mesh_axes)
