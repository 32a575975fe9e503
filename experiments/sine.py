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

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnn_jax
from experiments import footprint, free_running, sine_figures
from experiments.options import check, launch, option
from experiments.runner import (
    NO_MATTER,
    History,
    open_workdir,
    run_training,
    use_compilation_cache,
)
from rnn_jax import initializers, losses, objectives, optim, records, traces, train
from rnn_jax.reading import shown
from rnn_jax.tasks import sine


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
    """

    params: rnn_jax.ModelParams
    history: History
    carried: free_running.FreeRun
    warmed: np.ndarray
    workdir: Path | None


class Setup(NamedTuple):
    """The functions of a run; one for all seeds, so that they are compiled once."""

    model: rnn_jax.Model
    objective: objectives.Objective
    optimizer: optax.GradientTransformation
    sample: Any


@functools.lru_cache(maxsize=8)
def setup(config: SineConfig) -> Setup:
    """Model, objective, optimizer and data of a config; the seed plays no part."""
    given = (
        dict.fromkeys(("kernel_init", "recurrent_init", "bias_init"), initializers.normal(1e-3))
        if config.init == "tutorial"
        else {}
    )
    model = rnn_jax.sequence_model(rnn_jax.elman(config.hidden_size, "tanh", **given), 1)
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.num_steps)
    clip_norm = config.clip_norm if config.clip_norm > 0 else None
    if config.free_run_steps:
        objective = objectives.closed_loop_objective(
            model, losses.squared_error, warmup_steps=sine.NUM_POINTS - 1
        )
    else:
        objective = objectives.next_step_objective(model, losses.squared_error)
    num_points = sine.NUM_POINTS + config.free_run_steps
    sample = sine.sampler(config.batch_size, num_points, config.phases)
    return Setup(model, objective, optim.recorded(optax.adam(rate), clip_norm), sample)


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
    parts = setup(dataclasses.replace(config, seed=0, num_seeds=1, workdir=""))
    needed = footprint.training_bytes(
        parts.objective,
        parts.optimizer,
        parts.sample,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        log_every=config.log_every,
        trace=trace_of(config),
    )
    flags = "--hidden_size, --free_run_steps, --batch_size, --log_every or --num_steps"
    footprint.check_fits(needed, flags)


def trace_of(config: SineConfig) -> traces.Trace:
    """What is measured at every training step."""
    return traces.trace_parameters if config.trace_parameters else traces.trace_states


def run(config: SineConfig, write: bool = True) -> Result:
    """Trains and tests one network; with `write`, leaves the run's folder behind."""
    check(config)
    check_memory(config)
    workdir = open_workdir("sine", config) if write else None
    parts = setup(dataclasses.replace(config, seed=0, num_seeds=1, workdir=""))
    init_key, data_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    state = train.init_state(parts.model, parts.optimizer, init_key, 1, config.batch_size)
    if workdir is not None:
        records.save_tree(workdir, "params_start", state.params)
    state, history = run_training(
        parts.objective,
        parts.optimizer,
        parts.sample,
        state,
        data_key,
        num_steps=config.num_steps,
        log_every=config.log_every,
        workdir=workdir,
        trace=trace_of(config),
        clip_norm=config.clip_norm,
    )
    carry = jax.tree.map(lambda s: s[:1], state.carry)
    errors_key, drawn_key = jax.random.split(jax.random.fold_in(test_key, 1))
    result = Result(
        state.params,
        history,
        free_running.carried(parts.model, state.params, carry, test_key),
        free_running.warmed_errors(parts.model, state.params, errors_key),
        workdir,
    )
    if workdir is not None:
        records.save_tree(workdir, "params_end", state.params)
        records.save_array(workdir, "free_run_errors", result.warmed)
        drawn = result.carried
        if config.free_run_steps:
            drawn = free_running.warmed(parts.model, state.params, drawn_key)
        exponents = free_running.closed_loop_exponents(parts.model, state.params, drawn_key)
        records.save_array(workdir, "closed_loop_exponents", exponents)
        sine_figures.save_figures(workdir, history, drawn, config.free_run_steps, exponents)
        print(sine_figures.summary(workdir, history, drawn))
    return result


def run_seeds(config: SineConfig) -> list[dict[str, float]]:
    """Repeats the run over seeds without figures; prints a table and writes seeds.json."""
    check(config)
    check_memory(config)
    workdir = open_workdir("sine", config)
    rows = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        result = run(dataclasses.replace(config, seed=seed), write=False)
        row = {
            "seed": seed,
            "loss, last 100": float(result.history.loss[-100:].mean()),
            "free run 49, carried state": result.carried.error,
            "free run 200, 49 true points": float(result.warmed[: free_running.SHORT_RUN].mean()),
            "free run 1,000, 49 true points": float(result.warmed.mean()),
        }
        rows.append(row)
        if len(rows) == 1:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print(_table_line(seed, list(row.values())[1:]), flush=True)
    columns = list(zip(*(row.values() for row in rows), strict=True))[1:]
    for word, pick in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
        print(_table_line(word, [float(pick(column)) for column in columns]))
    records.write_atomically(workdir / "seeds.json", json.dumps(rows, indent=1) + "\n")
    return rows


def _table_line(name: Any, cells: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |"


def main(config: SineConfig) -> None:
    """Runs the experiment; it ends by saying in three lines where the figures are."""
    use_compilation_cache(config.compilation_cache)
    if config.num_seeds > 1:
        run_seeds(config)
    else:
        run(config)


if __name__ == "__main__":
    launch(main, SineConfig)
