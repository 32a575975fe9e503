"""Training that goes back to its last checkpoint, and on by smaller steps, where it diverged."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import rnn_jax
from experiments.analysis.free_running import led, led_inputs
from experiments.training.history import History
from experiments.training.nonfinite import NonFinite, WayBack
from experiments.training.resuming import Safety, go_back, notes_of
from experiments.training.runner import run_training
from rnn_jax import losses, training
from rnn_jax.training import traces
from rnn_jax.types import Array, Batch, Key, State

RESTORES = "restores"
"""The note of a checkpoint that says how often the run went back before."""


def trained(
    config: Any,
    setup_at: Callable[[Any, float], Any],
    state: training.TrainState,
    key: Key,
    workdir: Path | None,
    tell: Callable[[int, training.Metrics], None] | None,
) -> tuple[training.TrainState, History]:
    """Training to its end, whatever --on_nonfinite says of a gradient that is not finite.

    Args:
        config: settings of the sine experiment.
        setup_at: `(config, learning rate) -> ` model, objective, optimizer and data.
        state: a fresh one.
        key: of the data.
        workdir: the run's folder, or None.
        tell: as in `run_training`.

    Raises:
        NonFinite: the run stops there, or was restored as often as it may.
    """
    resume = config.resume
    restores = notes_of(workdir).get(RESTORES, 0) if workdir is not None and resume else 0
    # A chunk's input state is donated to it, so each try needs its own.
    start = jax.device_get(state)
    while True:
        rate = config.learning_rate * config.restore_factor**restores
        parts = setup_at(config, rate)
        try:
            return run_training(
                parts.objective,
                parts.optimizer,
                parts.sample,
                jax.device_put(start),
                key,
                num_steps=config.num_steps,
                log_every=config.log_every,
                workdir=workdir,
                trace=trace_of(config),
                clip_norm=config.clip_norm,
                safety=Safety(config.checkpoint_every, resume, {RESTORES: restores}),
                way_back=way_back_of(
                    parts.model, config.num_points - 1 if config.free_run_steps else None
                ),
                stop_at_nonfinite=config.on_nonfinite != "skip",
                tell=tell,
            )
        except NonFinite as error:
            if config.on_nonfinite != "restore" or restores >= config.max_restores:
                raise
            restores, resume = restores + 1, True
            if workdir is not None:
                go_back(workdir, error.step)
            sys.stderr.write(
                f"{error}\nrestored; from here on the learning rate is "
                f"{config.learning_rate * config.restore_factor**restores:.3g}\n"
            )


def trace_of(config: Any) -> traces.Trace:
    """What is measured at every training step."""
    return traces.trace_parameters if config.trace_parameters else traces.trace_states


def way_back_of(model: rnn_jax.Model, given: int | None) -> WayBack:
    """The network that the gradient of a batch of waves runs back through.

    Args:
        model: a `sequence_model`.
        given: steps whose inputs are true points, where it then reads its own outputs and the
            gradient runs through them too; None where all are true.
    """

    def network(params: rnn_jax.ModelParams, carry: State, batch: Batch) -> tuple[Any, ...]:
        def step_losses(states: State) -> Array:
            outputs = model.readout(params.readout, model.cell.emit(states))
            return losses.squared_error(outputs, batch.targets) / len(batch.targets)

        if given is None:
            return model.cell, params.cell, carry, batch.inputs, step_losses
        return led(model), params, carry, led_inputs(batch.inputs, given), step_losses

    return network
