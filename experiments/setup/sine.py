"""The sine experiment's settings, and the network, objective and data that they describe."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import rnn_jax
from experiments.cli.options import UsageError, check, option
from experiments.setup.kept_config import kept_config
from experiments.setup.run import CheckpointConfig, FolderConfig
from rnn_jax import initializers, losses, objectives
from rnn_jax.tasks import sine
from rnn_jax.training import optim, traces
from rnn_jax.types import Array, Batch, Key


@dataclasses.dataclass(frozen=True)
class SineConfig(CheckpointConfig, FolderConfig):
    """Settings of one run; see `--help`."""

    train_steps: int = option(6000, "training iterations", minimum=1, renamed_from=("num_steps",))
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
    seeds: int = option(
        1,
        "networks, of the seeds seed, seed+1, ..., side by side; more than 1 writes a table",
        minimum=1,
        renamed_from=("num_seeds",),
    )
    log_every: int = option(100, "iterations between two lines of metrics.jsonl", minimum=1)
    trace_parameters: bool = option(
        False, "also trace the norm of each time step's summand of dL/dU, dL/dW and dL/db"
    )
    tensorboard: bool = option(
        False,
        "also write event files for TensorBoard, to the folder tensorboard of --workdir",
        affects_results=False,
    )
    on_nonfinite: str = option(
        "stop",
        "what to do when loss or gradient is not finite: stop and say where it began; skip the "
        "update; restore the last checkpoint and go on with a smaller learning rate",
        choices=("stop", "skip", "restore"),
    )
    restore_factor: float = option(0.3, "of the learning rate at each restore", above=0)
    max_restores: int = option(3, "restores before the run stops", minimum=0)
    workdir: str = option("runs/sine", "folder of the run", affects_results=False)


class Parts(NamedTuple):
    """What a run of the experiment is made of.

    Attributes:
        model: the network.
        objective: what is trained.
        optimizer: `learning rate -> ` Optax chain.
        sample: `key -> Batch`.
        trace: what is measured at every iteration.
    """

    model: rnn_jax.Model
    objective: objectives.Objective
    optimizer: Callable[[Array], optax.GradientTransformation]
    sample: Callable[[Key], Batch]
    trace: traces.Trace


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
    if config.seeds > 1:
        for name, wanted in (("tensorboard", False), ("on_nonfinite", "stop")):
            if getattr(config, name) != wanted:
                raise UsageError(
                    f"--{name} is for one network, but --seeds={config.seeds}; leave one out"
                )


def parts_of(config: SineConfig) -> Parts:
    """Model, objective, optimizer and data; the same objects for the same settings of them."""
    return _parts(
        config.hidden_size,
        config.batch_size,
        config.phases,
        config.free_run_steps,
        config.init,
        config.gain,
        config.num_points,
        config.schedule,
        config.train_steps,
        config.clip_norm,
        config.trace_parameters,
        config.on_nonfinite == "skip",
    )


@functools.lru_cache(maxsize=8)
def _parts(
    hidden_size: int,
    batch_size: int,
    phases: str,
    free_run_steps: int,
    init: str,
    gain: float,
    num_points: int,
    schedule: str,
    train_steps: int,
    clip_norm: float,
    trace_parameters: bool,
    skip_nonfinite: bool,
) -> Parts:
    if init == "tutorial":
        small = initializers.normal(1e-3)
        given = dict.fromkeys(("kernel_init", "recurrent_init", "bias_init"), small)
    else:
        given = {"recurrent_init": initializers.orthogonal(gain)}
    model = rnn_jax.sequence_model(rnn_jax.elman(hidden_size, "tanh", **given), 1)
    if free_run_steps:
        objective = objectives.closed_loop_objective(
            model, losses.squared_error, warmup_steps=num_points - 1
        )
    else:
        objective = objectives.next_step_objective(model, losses.squared_error)

    def optimizer(learning_rate: Array) -> optax.GradientTransformation:
        rate: Any = learning_rate
        if schedule == "cosine":
            rate = optax.cosine_decay_schedule(learning_rate, train_steps)
        chain = optax.adam(rate)
        if skip_nonfinite:
            chain = optax.apply_if_finite(chain, max_consecutive_errors=train_steps)
        return optim.recorded(chain, clip_norm if clip_norm > 0 else None)

    return Parts(
        model,
        objective,
        optimizer,
        sine.sampler(batch_size, num_points + free_run_steps, phases),
        traces.trace_parameters if trace_parameters else traces.trace_states,
    )


def config_of(settings: Mapping[str, Any]) -> SineConfig:
    """The config of a run from its config.json; `ValueError` if it is not of this experiment."""
    return kept_config("sine", SineConfig, settings)
