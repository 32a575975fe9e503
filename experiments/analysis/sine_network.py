"""The network of the sine experiment, as `rnn_jax.gradflow` takes it."""

from collections.abc import Callable
from typing import Any

import rnn_jax
from experiments.analysis.free_running import led, led_inputs
from rnn_jax import losses
from rnn_jax.types import Array, Batch, State


def measured_arguments(
    model: rnn_jax.Model, given: int | None
) -> Callable[[rnn_jax.ModelParams, State, Batch], tuple[Any, ...]]:
    """The network through which the gradient of a batch of waves runs, as `gradflow` takes it.

    Args:
        model: a `sequence_model`.
        given: steps whose inputs are true points, after which it reads its own outputs and the
            gradient runs through them too; None where all are true.
    """

    def arguments(params: rnn_jax.ModelParams, carry: State, batch: Batch) -> tuple[Any, ...]:
        def step_losses(states: State) -> Array:
            outputs = model.readout(params.readout, model.cell.emit(states))
            return losses.squared_error(outputs, batch.targets) / len(batch.targets)

        if given is None:
            return model.cell, params.cell, carry, batch.inputs, step_losses
        return led(model), params, carry, led_inputs(batch.inputs, given), step_losses

    return arguments
