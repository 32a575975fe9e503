"""Learn a sine wave, let the network run free, and see its gradient at every time step.

A vanilla RNN reads a sine point by point and predicts the next point. Afterwards it runs free: each
prediction is the next input. The norm of dL/ds_t, the derivative of the loss by the state of every
time step, is recorded at every training iteration.

Flags files:
  experiments/flags/sine.flags       trained through its own free run; stays a sine for 1,000 steps
  experiments/flags/sine_200.flags   the tutorial, 200 iterations
  experiments/flags/sine_6000.flags  the tutorial, 6,000 iterations

Written to --workdir: config.json, metrics.jsonl, arrays/ and figures (free_run, loss,
gradient_heatmap, gradient_profile, closed_loop; with --trace_parameters also parameter_heatmap).

Examples:
  python -m experiments.sine --flagfile=experiments/flags/sine.flags
  python -m experiments.sine --flagfile=experiments/flags/sine_6000.flags --num_seeds=20
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnn_jax
from experiments.analysis import free_running
from experiments.cli.options import UsageError, check, launch, option
from experiments.reports import sine as sine_report
from experiments.training import memory_check, sine_seeds
from experiments.training.history import History
from experiments.training.restoring import trace_of, trained
from experiments.training.runner import NO_MATTER, open_workdir, use_compilation_cache
from experiments.training.tensorboard_events import events, load_format
from rnn_jax import initializers, losses, objectives, training
from rnn_jax.io import records
from rnn_jax.io.reading import shown
from rnn_jax.tasks import sine
from rnn_jax.training import optim


@dataclasses.dataclass(frozen=True)
class SineConfig:
    """Settings of one run; see `--help`."""

    num_steps: int = option(6000, "training iterations", minimum=1)
    hidden_size: int = option(16, "H, number of hidden units", minimum=1)
    batch_size: int = option(1, "B, waves per iteration", minimum=1)
    phases: str = option(
        "integer",
        "where waves start: at a whole number 0..9, or anywhere",
        choices=("integer", "real"),
    )
    free_run_steps: int = option(
        0,
        "steps of each training sequence, after the 49 true points, in which the network reads "
        "its own predictions; 0 trains on true points only and carries the state on",
        minimum=0,
    )
    init: str = option(
        "tutorial",
        "cell weights: all N(0, 0.001), or U normal and W orthogonal",
        choices=("tutorial", "orthogonal"),
    )
    gain: float = option(1.0, "scale of the orthogonal W of --init=orthogonal", above=0)
    num_points: int = option(
        sine.NUM_POINTS, "true points of a training sequence; one more than its steps", minimum=2
    )
    learning_rate: float = option(0.01, "Adam's step size", above=0)
    schedule: str = option(
        "constant", "of the learning rate over training", choices=("constant", "cosine")
    )
    clip_norm: float = option(0.0, "bound on the gradient's global norm; 0 for none", minimum=0)
    seed: int = option(0, "of initial weights, data and test", minimum=0)
    num_seeds: int = option(
        1, "runs seed, seed+1, ...; more than 1 writes the table seeds.json", minimum=1
    )
    log_every: int = option(100, "iterations between two lines of metrics.jsonl", minimum=1)
    trace_parameters: bool = option(
        False, "also trace the norm of each time step's summand of dL/dU, dL/dW and dL/db"
    )
    tensorboard: bool = option(
        False, "also write event files for TensorBoard, to the folder tensorboard of --workdir"
    )
    on_nonfinite: str = option(
        "stop",
        "what to do when loss or gradient is not finite: stop and say where it began; skip the "
        "update; restore the last checkpoint and go on with a smaller learning rate",
        choices=("stop", "skip", "restore"),
    )
    restore_factor: float = option(0.3, "of the learning rate at each restore", above=0)
    max_restores: int = option(3, "restores before the run stops", minimum=0)
    checkpoint_every: int = option(
        0,
        "iterations between two checkpoints, which come where a line is logged; 0 for one about "
        "every minute",
        minimum=0,
    )
    resume: bool = option(True, "go on from the newest checkpoint in --workdir")
    workdir: str = option("runs/sine", "folder of the run")
    overwrite: bool = option(False, "replace a run of other settings in --workdir")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


class Result(NamedTuple):
    """What a run found.

    Attributes:
        params: trained `ModelParams`.
        history: every iteration's metrics.
        carried: the tutorial's test: one true point and the carried state, then 49 steps alone.
        warmed: mean squared error at each step of free runs after 49 true points, `[1000]`.
        workdir: the run's folder, None if nothing was written.
        skipped: updates left out because the gradient was not finite.
    """

    params: rnn_jax.ModelParams
    history: History
    carried: free_running.FreeRun
    warmed: np.ndarray
    workdir: Path | None
    skipped: int = 0


class Setup(NamedTuple):
    """The functions of a run; one for all seeds, so that they are compiled once."""

    model: rnn_jax.Model
    objective: objectives.Objective
    optimizer: optax.GradientTransformation
    sample: Any


@functools.lru_cache(maxsize=8)
def setup(config: SineConfig) -> Setup:
    """Model, objective, optimizer and data of a config; the seed plays no part."""
    if config.init == "tutorial":
        small = initializers.normal(1e-3)
        given = dict.fromkeys(("kernel_init", "recurrent_init", "bias_init"), small)
    else:
        given = {"recurrent_init": initializers.orthogonal(config.gain)}
    model = rnn_jax.sequence_model(rnn_jax.elman(config.hidden_size, "tanh", **given), 1)
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.num_steps)
    clip_norm = config.clip_norm if config.clip_norm > 0 else None
    if config.free_run_steps:
        objective = objectives.closed_loop_objective(
            model, losses.squared_error, warmup_steps=config.num_points - 1
        )
    else:
        objective = objectives.next_step_objective(model, losses.squared_error)
    num_points = config.num_points + config.free_run_steps
    sample = sine.sampler(config.batch_size, num_points, config.phases)
    optimizer = optax.adam(rate)
    if config.on_nonfinite == "skip":
        optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=config.num_steps)
    return Setup(model, objective, optim.recorded(optimizer, clip_norm), sample)


def config_of(settings: dict[str, Any]) -> SineConfig:
    """The config of a run from its config.json; `ValueError` if it is none of this experiment's."""
    # Where to write and how to compute is for whoever runs it to say, not for a file.
    names = {field.name for field in dataclasses.fields(SineConfig)} - NO_MATTER
    known = {name: value for name, value in settings.items() if name in names}
    strange = sorted(set(settings) - names - {"experiment"})
    if settings.get("experiment") != "sine" or strange:
        raise ValueError(
            f"a run of the experiment {shown(settings.get('experiment'))} with the settings "
            f"{', '.join(shown(name) for name in strange[:5]) or 'given'} is not one of sine"
        )
    config = SineConfig(**known)
    check(config)
    return config


def check_memory(config: SineConfig) -> None:
    """`UsageError` where training takes more memory than there is; nothing is compiled."""
    parts = setup_at(config, config.learning_rate)
    needed = memory_check.training_bytes(
        parts.objective,
        parts.optimizer,
        parts.sample,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        log_every=config.log_every,
        trace=trace_of(config),
    )
    flags = (
        "--hidden_size, --num_points, --free_run_steps, --batch_size, --log_every or --num_steps"
    )
    memory_check.check_fits(needed, flags)


def run(config: SineConfig, write: bool = True) -> Result:
    """Trains and tests one network; with `write`, leaves the run's folder behind."""
    check_config(config)
    if config.tensorboard:
        load_format()
    if not write:
        return _run(config, None)
    with records.held(config.workdir):
        return _run(config, open_workdir("sine", config))


def check_config(config: SineConfig) -> None:
    """`UsageError` for settings that cannot be together."""
    check(config)
    if config.gain != 1 and config.init != "orthogonal":
        raise UsageError(f"--gain={config.gain} scales an orthogonal W; give --init=orthogonal")
    if config.on_nonfinite == "restore" and not config.checkpoint_every:
        raise UsageError(
            "--on_nonfinite=restore goes back to a checkpoint; give --checkpoint_every, so that "
            "the run can be repeated"
        )
    check_memory(config)


def _run(config: SineConfig, workdir: Path | None) -> Result:
    parts = setup_at(config, config.learning_rate)
    init_key, data_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    state = training.init_state(parts.model, parts.optimizer, init_key, 1, config.batch_size)
    if workdir is not None:
        records.save_tree(workdir, "params_start", state.params)
    with told_to_tensorboard(config, workdir) as tell:
        state, history = trained(config, setup_at, state, data_key, workdir, tell)
    carry = jax.tree.map(lambda s: s[:1], state.carry)
    errors_key, drawn_key = jax.random.split(jax.random.fold_in(test_key, 1))
    skipped = optax.tree.get(state.opt_state, "total_notfinite", default=0)
    result = Result(
        state.params,
        history,
        free_running.carried(parts.model, state.params, carry, test_key),
        free_running.warmed_errors(parts.model, state.params, errors_key),
        workdir,
        int(skipped),
    )
    if workdir is not None:
        records.save_tree(workdir, "params_end", state.params)
        records.save_array(workdir, "free_run_errors", result.warmed)
        drawn = result.carried
        if config.free_run_steps:
            drawn = free_running.warmed(parts.model, state.params, drawn_key)
        exponents = free_running.closed_loop_exponents(parts.model, state.params, drawn_key)
        records.save_array(workdir, "closed_loop_exponents", exponents)
        sine_report.save_figures(workdir, history, drawn, config.free_run_steps, exponents)
        print(sine_report.summary(workdir, history, drawn))
        if result.skipped:
            print(
                f"{result.skipped} of {config.num_steps} updates were skipped: their gradient was "
                "not finite."
            )
    return result


def setup_at(config: SineConfig, learning_rate: float) -> Setup:
    """The functions of a run at a learning rate; those of other seeds and folders are the same."""
    return setup(
        dataclasses.replace(
            config,
            learning_rate=learning_rate,
            seed=0,
            num_seeds=1,
            workdir="",
            resume=True,
            checkpoint_every=1,
            overwrite=False,
            tensorboard=False,
        )
    )


def told_to_tensorboard(config: SineConfig, workdir: Path | None) -> Any:
    """A context of the function that writes event files, or of None where none are wanted."""
    if workdir is None or not config.tensorboard:
        return contextlib.nullcontext()
    boundary = free_running.GIVEN if config.free_run_steps else None
    return events(workdir, config.num_steps, boundary)


def run_seeds(config: SineConfig) -> list[dict[str, float]]:
    """Repeats the run over seeds without figures; prints a table and writes seeds.json."""
    check_config(config)
    if config.tensorboard:
        raise UsageError(
            f"--tensorboard tells of one run, but --num_seeds={config.num_seeds}; leave one out"
        )
    with records.held(config.workdir):
        workdir = open_workdir("sine", config)
        return sine_seeds.table(
            workdir,
            range(config.seed, config.seed + config.num_seeds),
            lambda seed: sine_seeds.row_of(
                seed, *run(dataclasses.replace(config, seed=seed), write=False)[1:4]
            ),
            resume=config.resume and not config.overwrite,
        )


def main(config: SineConfig) -> None:
    """Runs the experiment; it ends by saying in three lines where the figures are."""
    use_compilation_cache(config.compilation_cache)
    if config.num_seeds > 1:
        run_seeds(config)
    else:
        run(config)


if __name__ == "__main__":
    launch(main, SineConfig)
