"""The settings of a sweep, and the structures and numbers that they span."""

import dataclasses
import itertools
import math
from typing import Any

from experiments.cli import axes
from experiments.cli.options import MOST_DEVICES, UsageError, option
from experiments.setup.cells import (
    CELL_ARGS_HELP,
    CELL_HELP,
    RECURRENT_INITS,
    cell_arguments,
    cell_hparams,
    check_initializer,
    factory_named,
    known_arguments,
)
from experiments.setup.host_memory import check_groups
from experiments.setup.run import FolderConfig
from experiments.setup.tasks import OPTIMIZERS, TASK_HELP
from rnn_jax import sweep
from rnn_jax.cells import ACTIVATIONS
from rnn_jax.cells.registry import takes

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SweepConfig(FolderConfig):
    """Settings of a sweep; see `--help`."""

    gain: str = option("0.5,1,1.5", "axis: scale of W, its spectral radius if wide")
    input_std: str = option("0.1", "axis: standard deviation of the inputs, without training")
    bias_std: str = option("0", "axis: standard deviation of an elman or leaky cell's bias")
    leak: str = option("0.1", "axis: share of a leaky cell's state renewed at each step")
    forget_bias: str = option("1", "axis: an lstm's initial forget-gate bias")
    learning_rate: str = option("0.001", "axis: step size, with training")
    clip_norm: str = option("0", "axis: bound on the gradient's global norm; 0 for none")
    cell: str = option("elman", f"axis: {CELL_HELP}")
    cell_args: str = option("", CELL_ARGS_HELP)
    activation: str = option("tanh", f"axis: of elman and leaky cells; {', '.join(ACTIVATIONS)}")
    recurrent_init: str = option("gaussian", f"axis: how W is drawn; {', '.join(RECURRENT_INITS)}")
    hidden_size: str = option("64", "axis: H, number of hidden units")
    length: str = option("100", "axis: T, time steps; of copy_memory and delayed_xor the delay")
    seeds: int = option(4, "networks at each point", minimum=1)
    seed: int = option(0, "of the whole sweep", minimum=0)
    batch_size: int = option(4, "B, sequences of each network", minimum=1)
    input_size: int = option(16, "D, white inputs of each network without training", minimum=1)
    train_steps: int = option(0, "training iterations of each network; 0 for none", minimum=0)
    task: str = option("sine", f"what is learned: {TASK_HELP}")
    optimizer: str = option("adam", "with training", choices=tuple(OPTIMIZERS))
    width: int = option(
        sweep.WIDTH, "networks side by side in a block; rounding may differ with it", minimum=1
    )
    batch_networks: int = option(
        0,
        "networks in a batch, which is what an end of the process loses; 0 to choose",
        minimum=0,
        affects_results=False,
        renamed_from=("lanes",),
    )
    memory_mb: int = option(
        0, "bound on the memory of the networks on each host, in MB; 0 for none", minimum=0
    )
    cpu_devices: int = option(
        0,
        "devices to make of a CPU; 0 for one a core",
        minimum=0,
        maximum=MOST_DEVICES,
        affects_results=False,
    )
    distributed: bool = option(
        False,
        "several processes, found by SLURM, Kubernetes or a TPU pod",
        affects_results=False,
    )
    coordinator_address: str = option(
        "", "host:port of process 0, where the cluster does not say it", affects_results=False
    )
    num_processes: int = option(
        0, "how many there are, where the cluster does not say it", minimum=0, affects_results=False
    )
    process_id: int = option(
        -1,
        "which one this is, where the cluster does not say it",
        minimum=-1,
        affects_results=False,
    )
    workdir: str = option(
        "runs/gradient_sweep", "folder for results and figures", affects_results=False
    )


def structures(config: SweepConfig) -> list[Row]:
    """The settings of each group: every combination of what changes the program."""
    found: list[Row] = []
    cells = axes.distinct_words("cell", config.cell)
    factories = {cell: factory_named(cell) for cell in cells}
    arguments = dict(
        zip(cells, known_arguments(list(factories.values()), config.cell_args), strict=True)
    )
    choices = (
        cells,
        axes.words("activation", config.activation, tuple(ACTIVATIONS)),
        axes.words("recurrent_init", config.recurrent_init, tuple(RECURRENT_INITS)),
        axes.whole_numbers("hidden_size", config.hidden_size, minimum=1),
        axes.whole_numbers("length", config.length, minimum=1),
    )
    count = math.prod(len(values) for values in choices)
    check_groups(count, "--hidden_size, --length or --cell")
    for cell, activation, recurrent_init, hidden_size, length in itertools.product(*choices):
        check_initializer(recurrent_init, hidden_size)
        factory = factories[cell]
        settings: Row = {"cell": cell}
        if takes(factory, "activation"):
            settings["activation"] = activation
        if takes(factory, "recurrent_init"):
            settings["recurrent_init"] = recurrent_init
        if arguments[cell]:
            settings["cell_args"] = arguments[cell]
        settings |= {"hidden_size": hidden_size, "length": length}
        # A gated cell has no choice of activation: it is there once.
        if settings not in found:
            found.append(settings)
    return found


def number_axes(config: SweepConfig) -> dict[str, list[float]]:
    """name -> values of each numeric axis, checked."""
    read = axes.numbers
    return {
        "gain": read("gain", config.gain, above=0),
        "input_std": read("input_std", config.input_std, minimum=0),
        "bias_std": read("bias_std", config.bias_std, minimum=0),
        "leak": [_leak(config, value) for value in read("leak", config.leak, above=0)],
        "forget_bias": read("forget_bias", config.forget_bias),
        "learning_rate": read("learning_rate", config.learning_rate, above=0),
        "clip_norm": read("clip_norm", config.clip_norm, minimum=0),
    }


def _leak(config: SweepConfig, value: float) -> float:
    if value > 1:
        raise UsageError(f"--leak={config.leak}: {value:g} is above 1, which is the whole state")
    return value


def axes_of(config: SweepConfig, settings: Row) -> dict[str, list[float]]:
    """name -> values of the hyperparameters that the networks of a group have."""
    values = number_axes(config)
    factory = factory_named(settings["cell"])
    own = cell_arguments(factory, settings.get("cell_args", "")).numbers
    extra = ("learning_rate", "clip_norm") if config.train_steps else ("input_std",)
    names = [*cell_hparams(factory), *(name for name in own if name not in values), *extra]
    return {name: (values | own)[name] for name in names}
