"""The network of a run of any experiment, on its own data, as `rnn_jax.gradflow` takes it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnn_jax
from experiments.analysis.gradient_flow import last_loss, untrained_network
from experiments.analysis.kept_networks import NETWORKS, Choice, Row
from experiments.analysis.outcomes import outcome_of
from experiments.analysis.sine_network import measured_arguments
from experiments.cli import axes
from experiments.cli.options import UsageError
from experiments.data.series_data import fingerprint
from experiments.setup import digits, gradient_flow, memory, series, sine, sweep
from experiments.setup.cells import cell_at
from experiments.setup.host_memory import check_fits
from experiments.setup.kept_config import check_own_code, kept_config
from experiments.setup.method import Method, lengthen_of, model_of
from experiments.setup.networks import Network
from experiments.setup.switches import lengthened
from experiments.setup.task_config import TaskConfig, apply_preset, preset_names
from experiments.setup.tasks import model_for, task_named
from rnn_jax import gradflow
from rnn_jax.io import parameters
from rnn_jax.io.reading import shown
from rnn_jax.model import Model
from rnn_jax.tasks.task import Task
from rnn_jax.types import Batch, Key, Params

Settings = Mapping[str, Any]
FLOW_SIZE = 16
"""Sequences whose gradient is measured, as in training."""


class Learner(NamedTuple):
    """A model and what it learns, as a run's settings describe them.

    Attributes:
        model: cell and readout.
        sample: `key -> Batch` of its data.
        key: of the batch that is measured; the one of the run's own measurements.
        size: how many of the batch's sequences are looked at.
        network: `(params, batch) -> Network`.
        input_size: D.
        chance_loss: of the best answer without memory.
    """

    model: Model
    sample: Callable[[Key], Batch]
    key: Key
    size: int
    network: Callable[[rnn_jax.ModelParams, Batch], Network]
    input_size: int
    chance_loss: float


class Rebuilt(NamedTuple):
    """A network of a run.

    Attributes:
        network: its cell with the run's parameters, on the run's data.
        outcome: what training came to; None at its start, and where it is not known.
    """

    network: Network
    outcome: gradflow.Outcome | None


def rebuild(
    folder: str, settings: Settings, choice: Choice, stage: str, own: Sequence[str] = ()
) -> Rebuilt:
    """A network of a run at the start or end of its training.

    Args:
        folder: of the run.
        settings: its config.json.
        choice: which of its networks.
        stage: "start" or "end".
        own: modules of the user's own that may be imported, as --cell and --task name them.

    Raises:
        UsageError: the run is of somebody's own code that `own` does not name.
        ValueError: the folder is not that of a run, keeps no such parameters, or others.
    """
    check_own_code(folder, settings, own)
    experiment = settings.get("experiment")
    if experiment == "gradient_flow":
        return Rebuilt(_fresh(folder, settings, stage), None)
    if experiment not in LEARNERS:
        raise ValueError(
            f"{folder} is a run of {shown(experiment)}, of whose network nothing can be said; "
            f"name one of {', '.join((*LEARNERS, 'gradient_flow'))}"
        )
    if choice.number is None and (experiment != "sine" or settings.get("seeds", 1) != 1):
        raise ValueError(
            f"{folder} has not come to its end: there is no {NETWORKS} in it; let its command go on"
        )
    if experiment == "gradient_sweep" and not settings.get("train_steps"):
        _check_stage(folder, stage, parameters.STAGES[:1])
        return Rebuilt(_untrained(settings, choice), None)
    learner = LEARNERS[experiment](settings, choice)
    like: Any = jax.eval_shape(lambda: learner.model.init(jax.random.key(0), learner.input_size))
    shape = jax.eval_shape(learner.sample, jax.random.key(0))
    units = sum(leaf.size for leaf in jax.tree.leaves(like.cell)) ** 0.5
    # A batch of it is made below, however large a file says that it is.
    check_fits(
        int(sum(4 * leaf.size for leaf in jax.tree.leaves(shape)) * units),
        "the batch_size and length (num_points) of the run",
    )
    check_kept(folder, stage)
    params = parameters.load_tree(folder, stage, choice.number, like)
    params = jax.tree.map(jnp.asarray, params)
    network = learner.network(params, learner.sample(learner.key))
    ended = stage == parameters.STAGES[1]
    outcome = outcome_of(folder, choice.row, learner.chance_loss) if ended else None
    return Rebuilt(network, outcome)


def check_kept(folder: str, stage: str) -> None:
    """`ValueError` where a folder keeps no parameters of a stage."""
    if not parameters.is_kept(folder, stage):
        raise ValueError(
            f"{folder} has no parameters of the {stage} of training: it has not come to its end, "
            "or is of a version that did not keep them; let its command run to the end, or start "
            "it afresh with --overwrite"
        )


def _check_stage(folder: str, stage: str, there: Sequence[str]) -> None:
    if stage not in there:
        raise UsageError(
            f"--at={stage}: the networks of {folder} did not train; give --at={there[0]}"
        )


def _on_task(model: Model, task: Task, key: Key, size: int) -> Learner:
    """A network on the first sequences of a batch of a task, with the loss of the last step."""

    def network(params: rnn_jax.ModelParams, batch: Batch) -> Network:
        targets = batch.targets[:size] if task.last_only else batch.targets[:, :size]
        batch = Batch(batch.inputs[:, :size], targets)
        state = model.cell.initial_state(params.cell, (batch.inputs.shape[1],))
        loss = last_loss(model, params, task, batch)
        return Network(model.cell, params.cell, state, batch.inputs, loss)

    return Learner(model, task.sample, key, size, network, task.input_size, task.chance_loss)


def _by_method(settings: Settings, row: Row, method: Method, task: Task, length: int) -> Learner:
    """A network that learned a task by a method, on the inputs with which it is evaluated."""
    task = lengthened(task, lengthen_of(method, length), by_chance=False)
    return _on_task(model_of(method, task, length), task, _key(settings, row), FLOW_SIZE)


def _key(settings: Settings, row: Row) -> Key:
    """Of the batch on which a run measures a network."""
    own = jax.random.fold_in(jax.random.key(settings["seed"]), row["seed"])
    return jax.random.fold_in(own, 0)


def _sine(settings: Settings, choice: Choice) -> Learner:
    config = sine.config_of(settings)
    parts = sine.parts_of(config)
    seed = choice.row.get("seed", config.seed)

    def network(params: rnn_jax.ModelParams, batch: Batch) -> Network:
        state = parts.model.cell.initial_state(params.cell, batch.inputs.shape[1:-1])
        return Network(*measured_arguments(parts.model, None)(params, state, batch))

    chance = task_named("sine", sine.SineConfig().num_points - 1, 1).chance_loss
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return Learner(parts.model, parts.sample, key, config.batch_size, network, 1, chance)


def _preset(config: TaskConfig, row: Row) -> Method:
    """The settings of a network with those of its cure; `ValueError` where the run has none."""
    names = {name or "as given": name for name in preset_names(config)}
    cure = row.get("cure")
    if not isinstance(cure, str) or cure not in names:
        raise ValueError(f"cure is {shown(cure)}, but the run has {', '.join(names)}")
    return apply_preset(config, names[cure])


def _memory(settings: Settings, choice: Choice) -> Learner:
    config = kept_config("memory", memory.MemoryConfig, settings)
    method, length = _preset(config, choice.row), choice.row.get("length")
    lengths = axes.whole_numbers("length", config.length, minimum=1)
    if type(length) is not int or length not in lengths:
        raise ValueError(f"length is {shown(length)}, but the run has {lengths[:5]}")
    task = task_named(config.task, length, config.batch_size)
    return _by_method(settings, choice.row, method, task, length)


def _digits(settings: Settings, choice: Choice) -> Learner:
    config = kept_config("digits", digits.DigitsConfig, settings)
    task, _ = digits.task_of(config, *digits.load())
    method = _preset(config, choice.row)
    return _by_method(settings, choice.row, method, task, digits.PIXELS)


def _series(settings: Settings, choice: Choice) -> Learner:
    config = kept_config("series", series.SeriesConfig, settings, facts=("values",))
    found = series.read(config)
    if fingerprint(found) != settings.get("values"):
        raise ValueError(
            f"{config.csv or 'the series'} is not what the run learned from: it was changed since; "
            "put the old file in its place"
        )
    task, _ = series.task_of(config, found)
    method = _preset(config, choice.row)
    return _by_method(settings, choice.row, method, task, config.length)


def _structure(config: sweep.SweepConfig, row: Row) -> Row:
    """The structure of a sweep that a network's line is of."""
    for settings in sweep.structures(config):
        if all(row.get(name) == value for name, value in settings.items()):
            return settings
    raise ValueError(f"network {row['network']} is of no structure of the sweep's settings")


def _sweep(settings: Settings, choice: Choice) -> Learner:
    config = kept_config("gradient_sweep", sweep.SweepConfig, settings)
    structure = _structure(config, choice.row)
    task = task_named(config.task, structure["length"], config.batch_size)
    model = model_for(task, cell_at(structure, {}))
    return _on_task(model, task, _key(settings, choice.row), config.batch_size)


def _untrained(settings: Settings, choice: Choice) -> Network:
    """A network of a sweep without training; its parameters are drawn as the sweep drew them."""
    config = kept_config("gradient_sweep", sweep.SweepConfig, settings)
    row = choice.row
    structure = _structure(config, row)
    hparams = {}
    for name in sweep.axes_of(config, structure):
        if not isinstance(row.get(name), int | float):
            raise ValueError(f"{name} of network {row['network']} is not a number")
        hparams[name] = jnp.float32(row[name])
    check_fits(
        4 * structure["length"] * config.batch_size * structure["hidden_size"],
        "the length, batch_size and hidden_size of the run",
    )
    own = jax.random.fold_in(jax.random.key(config.seed), row["seed"])
    return Network(
        *untrained_network(structure, config.batch_size, config.input_size, hparams, own)
    )


def _fresh(folder: str, settings: Settings, stage: str) -> Network:
    """The network of a picture of the gradient."""
    config = kept_config("gradient_flow", gradient_flow.FlowConfig, settings)
    if config.run:
        raise ValueError(
            f"{folder} shows the network of the run {shown(config.run)}; diagnose that one: "
            "--run=THAT_FOLDER"
        )
    _check_stage(folder, stage, parameters.STAGES[:1])
    check_kept(folder, stage)
    check_fits(
        4 * config.length * config.batch_size * config.hidden_size,
        "the length, batch_size and hidden_size of the run",
    )
    network = gradient_flow.fresh(config)
    kept: dict[str, Params] = parameters.load_tree(folder, stage, None, {"cell": network.params})
    return network._replace(params=jax.tree.map(jnp.asarray, kept["cell"]))


LEARNERS: dict[str, Callable[[Settings, Choice], Learner]] = {
    "sine": _sine,
    "memory": _memory,
    "digits": _digits,
    "series": _series,
    "gradient_sweep": _sweep,
}
"""Experiment whose networks train -> the network and the data of a run."""
