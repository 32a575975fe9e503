"""The network of the sine experiment, as `rnn_jax.gradflow` takes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import rnn_jax
from experiments.analysis.free_running import led, led_inputs
from experiments.setup.host_memory import check_fits
from experiments.setup.networks import Network
from experiments.setup.sine import config_of, parts_of
from rnn_jax import losses
from rnn_jax.io import records
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


def network_of_run(folder: str, stage: str) -> Network:
    """The network of a run, at the "start" or "end" of training, on a batch of its own task.

    Raises:
        ValueError: the folder holds no such run.
    """
    config = config_of(records.load_config(folder))
    parts = parts_of(config)
    batch_shape = jax.eval_shape(parts.sample, jax.random.key(0))
    # A batch of it is made below, however large a file says that it is.
    check_fits(
        sum(4 * leaf.size for leaf in jax.tree.leaves(batch_shape)) * config.hidden_size,
        "the batch_size and num_points of the run",
    )
    like: Any = jax.eval_shape(lambda: parts.model.init(jax.random.key(0), 1))
    if not records.tree_exists(folder, f"params_{stage}"):
        raise ValueError(
            f"{folder} has no parameters of the {stage} of training; let the run come to its end "
            "first"
        )
    params = records.load_tree(folder, f"params_{stage}", like)
    batch = parts.sample(jax.random.fold_in(jax.random.key(config.seed), 1))
    state = parts.model.cell.initial_state(params.cell, batch.inputs.shape[1:-1])
    arguments = measured_arguments(parts.model, None)(params, state, batch)
    return Network(*arguments)._replace(params=jax.tree.map(jnp.asarray, params.cell))
