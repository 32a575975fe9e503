"""The sine experiment's networks: how they learn, one of them or a table of seeds side by side."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

import rnn_jax
from experiments.analysis import free_running
from experiments.analysis.sine_network import measured_arguments
from experiments.setup.host_memory import check_fits, check_networks
from experiments.setup.sine import SineConfig, parts_of
from experiments.training import history, loop, memory_check
from experiments.training.algorithm import Algorithm, Arrays, bptt_algorithm, streams
from experiments.training.groups import Group, Training
from experiments.training.history import History
from experiments.training.loop import Schedule
from experiments.training.nonfinite import MeasuredNetwork, NonFinitePolicy
from experiments.training.parts import Row
from experiments.training.programs import of_one_network
from experiments.training.single import Run, train_network
from experiments.training.store import CheckpointOptions
from experiments.training.tensorboard_events import events
from rnn_jax import training
from rnn_jax.io import parameters, records
from rnn_jax.types import Key


def algorithm_of(config: SineConfig) -> Algorithm:
    """How a network of the experiment learns; the same object for the same settings of it."""
    # What varies between networks of one program, and what changes no result, plays no part.
    fixed = SineConfig()
    others = {
        field.name: getattr(fixed, field.name)
        for field in dataclasses.fields(config)
        if field.name in ("learning_rate", "seed", "seeds", "log_every")
        or not field.metadata["affects_results"]
    }
    return _algorithm(dataclasses.replace(config, **others))


@functools.lru_cache(maxsize=8)
def _algorithm(config: SineConfig) -> Algorithm:
    parts = parts_of(config)

    def measure(state: training.TrainState, key: Key) -> Arrays:
        """Free runs after training; see `experiments.analysis.free_running`."""
        test_key = test_key_of(key)
        carry = jax.tree.map(lambda leaf: leaf[:1], state.carry)
        errors_key, _ = warmed_keys_of(key)
        return {
            "carried_error": free_running.carried_error(parts.model, state.params, carry, test_key),
            "warmed_errors": free_running.warmed_errors(parts.model, state.params, errors_key),
        }

    return bptt_algorithm(
        parts.objective,
        lambda hparams: parts.optimizer(hparams["learning_rate"]),
        parts.sample,
        input_size=1,
        batch_size=config.batch_size,
        trace=parts.trace,
        measure=measure,
    )


def test_key_of(key: Key) -> Key:
    """Of a network's key, for the tests after its training."""
    return streams(key).test


def warmed_keys_of(key: Key) -> tuple[Key, Key]:
    """Of a network's key, for the free runs whose errors are averaged, and for the one drawn."""
    errors_key, drawn_key = jax.random.split(jax.random.fold_in(test_key_of(key), 1))
    return errors_key, drawn_key


def schedule_of(config: SineConfig) -> Schedule:
    """A line is logged after every chunk."""
    return Schedule(config.train_steps, config.log_every)


def policy_of(config: SineConfig) -> NonFinitePolicy:
    """What is done when numbers are not finite, and the network that is then followed."""
    parts = parts_of(config)
    given = config.num_points - 1 if config.free_run_steps else None
    network = MeasuredNetwork(parts.objective, parts.sample, measured_arguments(parts.model, given))
    return NonFinitePolicy(
        config.on_nonfinite,
        config.restore_factor,
        config.max_restores,
        config.clip_norm,
        network,
    )


def check_memory(config: SineConfig) -> None:
    """`UsageError` where training takes more memory than there is; nothing is compiled."""
    check_networks(config.seeds, 0, "--seeds")
    hparams = {"learning_rate": config.learning_rate}
    needed = memory_check.training_bytes(algorithm_of(config), hparams, schedule_of(config))
    check_fits(
        needed * (config.seeds if config.seeds > 1 else 1),
        "--hidden_size, --num_points, --free_run_steps, --batch_size, --log_every, --train_steps "
        "or --seeds",
    )


def initial_params(config: SineConfig) -> rnn_jax.ModelParams:
    """The parameters that the run's network starts from."""
    rate, key = {"learning_rate": config.learning_rate}, jax.random.key(config.seed)
    # The program of the run itself: it is compiled once.
    return of_one_network(algorithm_of(config), rate, key).init().params


class Result(NamedTuple):
    """What a run of one network found.

    Attributes:
        params: trained `ModelParams`.
        history: every iteration's metrics.
        carried: the tutorial's test: one true point and the carried state, then 49 steps alone.
        warmed: mean squared error at each step of free runs after 49 true points, `[1000]`.
        free_run: the free run to draw.
        exponents: Lyapunov exponents of the free-running network, `[H]`.
        workdir: the run's folder, None if nothing was written.
        skipped: updates left out because the gradient was not finite.
    """

    params: rnn_jax.ModelParams
    history: History
    carried: free_running.FreeRun
    warmed: np.ndarray
    free_run: free_running.FreeRun
    exponents: np.ndarray
    workdir: Path | None
    skipped: int = 0


def train_one(config: SineConfig, workdir: Path | None) -> Result:
    """Trains and tests one network, and writes its arrays to an open folder, if one is given."""
    parts, key = parts_of(config), jax.random.key(config.seed)
    if workdir is not None:
        parameters.save(workdir, loop.START, initial_params(config))
    boundary = free_running.GIVEN if config.free_run_steps else None
    with contextlib.ExitStack() as stack:
        on_log = None
        if config.tensorboard and workdir is not None:
            on_log = stack.enter_context(events(workdir, config.train_steps, boundary))
        options = CheckpointOptions(config.checkpoint_every, config.resume)
        end = train_network(
            algorithm_of(config),
            {"learning_rate": config.learning_rate},
            key,
            schedule_of(config),
            Run(workdir, options, on_log),
            policy_of(config),
        )
    params, (_, drawn_key) = end.state.params, warmed_keys_of(key)
    carry = jax.tree.map(lambda leaf: leaf[:1], end.state.carry)
    carried = free_running.carried(parts.model, params, carry, test_key_of(key))
    result = Result(
        params=params,
        history=history.history_of(loop.joined(end.chunks)),
        carried=carried,
        warmed=end.measured[loop.END]["warmed_errors"][0],
        free_run=(
            free_running.warmed(parts.model, params, drawn_key)
            if config.free_run_steps
            else carried
        ),
        exponents=free_running.closed_loop_exponents(parts.model, params, drawn_key),
        workdir=workdir,
        skipped=int(optax.tree.get(end.state.opt_state, "total_notfinite", default=0)),
    )
    if workdir is not None:
        parameters.save(workdir, loop.END, params)
        records.save_array(workdir, "free_run_errors", result.warmed)
        records.save_array(workdir, "closed_loop_exponents", result.exponents)
    return result


def seeds_group(config: SineConfig) -> Group:
    """Networks of the seeds seed, seed + 1, ..., each the one that a run of its own would be."""
    algorithm = algorithm_of(config)

    def describe(point: Row, results: Arrays) -> tuple[Row, Arrays]:
        del point
        diverged, warmed = int(results["diverged_step"]), results["warmed_errors_end"]
        line = {
            "final_loss": float(np.mean(results["loss"][-100:])),
            "carried_error": float(results["carried_error_end"]),
            "warmed_error_200": float(np.mean(warmed[: free_running.SHORT_RUN])),
            "warmed_error_1000": float(np.mean(warmed)),
            "diverged_step": diverged or None,
        }
        return line, {"loss": results["loss"], "trace": results["trace"]}

    return Group(
        settings={},
        hparams={"learning_rate": np.full(config.seeds, config.learning_rate)},
        seeds=np.arange(config.seed, config.seed + config.seeds),
        program=Training(algorithm, schedule_of(config)),
        describe=describe,
        key_of=lambda seed, seeds: jax.vmap(jax.random.key)(seeds),
    )
