"""Learn a sine wave, let the network run free, and see its gradient at every time step.

A vanilla RNN reads a sine point by point and predicts the next point. Afterwards it runs free: each
prediction is the next input. The norm of dL/ds_t, the derivative of the loss by the state of every
time step, is recorded at every training iteration.

Flags files:
  experiments/flags/sine.flags       trained through its own free run; stays a sine for 1,000 steps
  experiments/flags/sine_200.flags   the tutorial, 200 iterations
  experiments/flags/sine_6000.flags  the tutorial, 6,000 iterations

Written to --workdir: config.json, metrics.jsonl, arrays/ and four figures (free_run, loss,
gradient_heatmap, gradient_profile; with --trace_parameters also parameter_heatmap).

Examples:
  python -m experiments.sine --flagfile=experiments/flags/sine.flags
  python -m experiments.sine --flagfile=experiments/flags/sine_6000.flags --num_seeds=20
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnn_jax
from experiments.options import UsageError, check, launch, option
from experiments.runner import (
    History,
    open_workdir,
    run_training,
    state_norms,
    use_compilation_cache,
)
from rnn_jax import initializers, losses, optim, plots, records, train
from rnn_jax.tasks import sine
from rnn_jax.types import Array, Key

TEST_PHASES = 32
SHORT_RUN, LONG_RUN = 200, 1000


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


class FreeRun(NamedTuple):
    """A free run to draw.

    Attributes:
        times: `[N]`, the sine's argument at each point.
        truth: `[N]`.
        predicted: the network's outputs for the last points.
        error: mean squared error of the predictions, scalar.
    """

    times: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    error: float


class Result(NamedTuple):
    """What a run found.

    Attributes:
        params: trained `ModelParams`.
        history: every iteration's metrics.
        tutorial: the tutorial's test: start at 0, 1 or 2, one true point and the carried state.
        warmed: mean squared error at each step of free runs after 49 true points, `[1000]`, over
            waves that start at unseen phases.
        workdir: the run's folder, None if nothing was written.
    """

    params: rnn_jax.ModelParams
    history: History
    tutorial: FreeRun
    warmed: np.ndarray
    workdir: Path | None


class Setup(NamedTuple):
    """The functions of a run; one for all seeds, so that they are compiled once."""

    model: rnn_jax.Model
    objective: train.Objective
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
        objective = train.closed_loop_objective(
            model, losses.squared_error, warmup_steps=sine.NUM_POINTS - 1
        )
    else:
        objective = train.next_step_objective(model, losses.squared_error)
    num_points = sine.NUM_POINTS + config.free_run_steps
    sample = sine.sampler(config.batch_size, num_points, config.phases)
    return Setup(model, objective, optim.recorded(optax.adam(rate), clip_norm), sample)


def run(config: SineConfig, write: bool = True) -> Result:
    """Trains and tests one network; with `write`, leaves the run's folder behind."""
    check(config)
    workdir = open_workdir(config) if write else None
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
        trace=train.trace_parameters if config.trace_parameters else train.trace_states,
        clip_norm=config.clip_norm,
    )
    carry = jax.tree.map(lambda s: s[:1], state.carry)
    tutorial = tutorial_test(parts.model, state.params, carry, test_key)
    warmed = np.asarray(warmed_errors(parts.model, state.params, test_key))
    result = Result(state.params, history, tutorial, warmed, workdir)
    if workdir is not None:
        records.save_tree(workdir, "params_end", state.params)
        records.save_array(workdir, "free_run_errors", warmed)
        save_figures(workdir, config, parts.model, result, test_key)
    return result


def tutorial_test(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, carry: Any, key: Key
) -> FreeRun:
    """The tutorial's evaluation: start at 0, 1 or 2, one true point, then 49 steps on its own."""
    start = jax.random.randint(key, (1,), 0, 3).astype(jnp.float32)
    points = sine.wave(start, sine.NUM_POINTS)
    predicted, _ = _run_free(model, params, carry, points[0], sine.NUM_POINTS - 1)
    return _free_run(float(start[0]), points, predicted)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run_free(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, state: Any, x: Array, num_steps: int
) -> tuple[Array, Any]:
    return rnn_jax.free_run(model, params, state, x, num_steps)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run_warmed(
    model: rnn_jax.Model, params: rnn_jax.ModelParams, starts: Array, num_steps: int
) -> tuple[Array, Array]:
    """Waves and the free run's outputs, both over the `num_steps` that follow 49 true points."""
    given = sine.NUM_POINTS - 1
    points = sine.wave(starts, given + num_steps)
    state = model.cell.initial_state(params.cell, starts.shape)
    _, states = rnn_jax.apply(model, params, state, points[: given - 1])
    last = jax.tree.map(lambda s: s[-1], states)
    outputs, _ = rnn_jax.free_run(model, params, last, points[given - 1], num_steps)
    return points, outputs


def warmed_errors(model: rnn_jax.Model, params: rnn_jax.ModelParams, key: Key) -> Array:
    """Mean squared error `[1000]` of each step of a free run after 49 true points.

    Averaged over 32 waves at random real phases, which training on other keys never saw.
    """
    starts = jax.random.uniform(
        jax.random.fold_in(key, 1), (TEST_PHASES,), maxval=2 * math.pi
    )
    points, outputs = _run_warmed(model, params, starts, LONG_RUN)
    return jnp.mean(jnp.square(outputs - points[sine.NUM_POINTS - 1 :]), axis=(1, 2))


def _free_run(start: float, points: Array, predicted: Array) -> FreeRun:
    truth, outputs = np.asarray(points)[:, 0, 0], np.asarray(predicted)[:, 0, 0]
    times = start + sine.SPACING * np.arange(len(truth))
    error = np.mean(np.square(outputs - truth[-len(outputs) :]))
    return FreeRun(times, truth, outputs, float(error))


def save_figures(
    workdir: Path, config: SineConfig, model: rnn_jax.Model, result: Result, key: Key
) -> None:
    """Draws the run; titles say what was found."""
    norms = state_norms(result.history.trace)
    given = sine.NUM_POINTS - 1
    boundary = given if config.free_run_steps else None
    if config.free_run_steps:
        start = jax.random.uniform(jax.random.fold_in(key, 2), (1,), maxval=2 * math.pi)
        drawn = _free_run(
            float(start[0]), *_run_warmed(model, result.params, start, SHORT_RUN)
        )
        true_steps = given
    else:
        drawn, true_steps = result.tutorial, 1
    steps = len(drawn.predicted)
    verdict = "stays a sine" if drawn.error < 0.01 else "is not yet a sine"
    figures = {
        "free_run": plots.free_run(
            drawn.times,
            drawn.truth,
            drawn.predicted,
            f"After {config.num_steps:,} iterations the free run {verdict}: "
            f"mean squared error {drawn.error:.1e} over {steps} steps",
            true_steps,
        ),
        "loss": plots.loss_curve(
            result.history.loss,
            f"The loss falls from {result.history.loss[0]:.2g} to "
            f"{result.history.loss[-100:].mean():.2g} (mean of the last 100 iterations)",
        ),
        "gradient_heatmap": plots.gradient_heatmap(norms, heatmap_finding(norms), boundary),
        "gradient_profile": plots.gradient_profiles(
            profiles(norms), profile_finding(norms), boundary
        ),
    }
    if config.trace_parameters:
        figures["parameter_heatmap"] = plots.parameter_heatmaps(
            result.history.trace.parameters._asdict(),
            "Where in the sequence each parameter's gradient comes from",
        )
    for name, figure in figures.items():
        figure.savefig(workdir / f"{name}.png")


def profiles(norms: np.ndarray) -> dict[str, np.ndarray]:
    """|dL/ds_t| over t early, midway and late: geometric means over a twentieth of training each."""
    total = len(norms)
    width = max(1, total // 20)
    spans = {"start": 0, "middle": (total - width) // 2, "end": total - width}
    named = {}
    for word, first in spans.items():
        logs = plots.natural_log(norms[first : first + width])
        name = f"{word} (iterations {first + 1:,} to {first + width:,})"
        named[name] = np.exp(np.mean(logs, axis=0))
    return named


def _early_share(norms: np.ndarray) -> float:
    """|dL/ds_1| over the largest |dL/ds_t|."""
    return float(norms[0] / np.max(norms))


def heatmap_finding(norms: np.ndarray) -> str:
    """Title of the heat map, from its numbers."""
    scale = np.log10(np.max(norms, axis=1))
    low, high = np.percentile(scale, [5, 95])
    return (
        f"Over training the largest |dL/ds_t| of an iteration ranges over {high - low:.1f} decades"
    )


def profile_finding(norms: np.ndarray) -> str:
    """Title of the profiles, from their numbers."""
    first, last = (_early_share(p) for p in (list(profiles(norms).values())[i] for i in (0, -1)))
    return (
        f"The first step gets {first:.2g} of the largest gradient at the start of training, "
        f"{last:.2g} at its end"
    )


def main(config: SineConfig) -> None:
    """Runs the experiment and says in three lines what came of it."""
    use_compilation_cache(config.compilation_cache)
    if config.num_seeds > 1:
        run_seeds(config)
        return
    result = run(config)
    norms = state_norms(result.history.trace)
    profile = list(profiles(norms).values())[-1]
    print(
        f"The network predicts the next point with a mean squared error of "
        f"{result.history.loss[-100:].mean():.1e}; "
        f"running free for {SHORT_RUN} steps, of {np.mean(result.warmed[:SHORT_RUN]):.1e}."
    )
    print(
        f"The gradient that reaches the first of {norms.shape[1]} time steps is "
        f"{_early_share(profile):.2g} of the largest at the end of training: "
        "gradient_profile.png shows how it fades on its way back."
    )
    print(f"Figures, loss and the gradient at every time step of every iteration: {result.workdir}/")


def run_seeds(config: SineConfig) -> list[dict[str, float]]:
    """Repeats the run over seeds without figures; prints a table and writes seeds.json."""
    if config.overwrite is False and (Path(config.workdir) / "seeds.json").exists():
        raise UsageError(
            f"--workdir={config.workdir}: holds a table of seeds; name another folder or give "
            "--overwrite"
        )
    workdir = open_workdir(config)
    rows = []
    print("seed  loss, last 100  free run 49 (carried)  200 (warmed)  1,000 (warmed)")
    for seed in range(config.seed, config.seed + config.num_seeds):
        result = run(dataclasses.replace(config, seed=seed), write=False)
        row = {
            "seed": seed,
            "loss": float(result.history.loss[-100:].mean()),
            "free_run_49": result.tutorial.error,
            "free_run_200": float(np.mean(result.warmed[:SHORT_RUN])),
            "free_run_1000": float(np.mean(result.warmed)),
        }
        rows.append(row)
        print("{seed:4d}  {loss:14.2e}  {free_run_49:21.2e}  {free_run_200:12.2e}  "
              "{free_run_1000:14.2e}".format(**row), flush=True)
    for word, pick in (("min", np.min), ("median", np.median), ("max", np.max)):
        cells = [pick([row[name] for row in rows]) for name in list(rows[0])[1:]]
        print("{}  {:14.2e}  {:21.2e}  {:12.2e}  {:14.2e}".format(word[:4].rjust(4), *cells))
    records.write_atomically(workdir / "seeds.json", json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    launch(main, SineConfig)
