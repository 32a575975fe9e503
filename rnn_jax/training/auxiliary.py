"""An auxiliary loss: each state is also asked for an input of some steps ago."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.cells import Cell
from rnn_jax.losses import masked_mean, squared_error
from rnn_jax.model import Model, ModelParams, ReadoutParams
from rnn_jax.objectives import Objective, Run, task_objective
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, State
from rnn_jax.unroll import valid_steps


def auxiliary_model(
    make: Callable[[Cell, int], Model], cell: Cell, output_size: int, input_size: int
) -> Model:
    """A model that answers as any other, whose readout has D further columns for past inputs.

    Args:
        make: `rnn_jax.last_only` or `rnn_jax.sequence_model`.
        cell: any `Cell`.
        output_size: O, of the answer.
        input_size: D, of what is asked for beside it.
    """
    model = make(cell, output_size + input_size)

    def readout(params: ReadoutParams, emitted: Array) -> Array:
        answer = ReadoutParams(params.V[:, :output_size], params.c[:output_size])
        return model.readout(answer, emitted)

    return model._replace(readout=readout)


def auxiliary_objective(model: Model, task: Task, weight: float | Array, lag: int) -> Objective:
    """A task, and beside it each state's error about the input `lag` steps before.

        L + weight mean_t |s_t V' + c' - x_{t - lag}|^2 / D

    The second loss has a gradient of its own at every step: what it asks for is remembered over
    `lag` steps, however far the first loss is away.

    Args:
        model: of `auxiliary_model`, with the task's input size.
        task: as in `task_objective`.
        weight: of the second loss.
        lag: steps, at least 1 and fewer than T.

    Returns:
        An `Objective` whose step losses have the second loss in them: of each example its mean.

    Raises:
        ValueError: when run, a lag that no sequence has.

    Source: Trinh, Dai, Luong & Le, "Learning longer-term dependencies in RNNs with auxiliary
    losses", ICML (2018), the reconstruction loss; here of one input at every step by a linear
    readout, where they decode stretches of inputs at random anchors by an LSTM.
    """
    inner = task_objective(model, task)

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        whole = inner.run(params, carry, batch, perturbations)
        num_steps, size = whole.inputs.shape[0], whole.inputs.shape[-1]
        if not 1 <= lag < num_steps:
            raise ValueError(
                f"the lag of the auxiliary loss is {lag}, but the batch has {num_steps} steps: "
                f"give 1..{num_steps - 1}"
            )
        V, c = params.readout.V[:, -size:], params.readout.c[-size:]
        product = model.cell.emit(jax.tree.map(lambda s: s[lag:], whole.states)) @ V
        recalled = product + jnp.broadcast_to(c, product.shape)
        errors = squared_error(recalled, lax.stop_gradient(whole.inputs[:-lag]))
        valid = jnp.ones(errors.shape, bool)
        if batch.lengths is not None:
            valid = valid_steps(batch.lengths, batch.inputs)[lag:]
        own = weight * masked_mean(errors, valid, axis=0)
        losses = whole.step_losses + jnp.broadcast_to(own, whole.step_losses.shape)
        if whole.mask is not None:
            losses = jnp.where(whole.mask, losses, 0)
        return whole._replace(step_losses=losses)

    return inner._replace(run=run)
