"""Gradient flow in thousands of networks: which keep their gradient, and where the edge is.

Every combination of the axes is a network, times --seeds. An axis is a list (--gain=0.5,1,2) or a
range start:stop:count (--gain=0.1:3.0:30). Numbers share one compiled program; what changes the
program (--cell, --activation, --recurrent_init, --length, --hidden_size) is grouped, one
compilation a group. An axis that a cell does not have (--leak of an lstm) is left out for it.

With --train_steps=0 the gradient flow at initialization is measured, on white inputs. With more,
each network learns --task, and its gradient flow is measured before, half-way and after.

Written to --workdir: networks.jsonl, one line a network; arrays/, profiles and loss curves by
group; figures (phase_diagram, prediction; with training also success); summary.txt. A run that was
stopped, however, goes on where it was when started again with the same settings.

Flags files:
  experiments/flags/phase_diagram.flags  gain against the size of the input, 14,400 networks

Several processes, on one machine or on many, share the work:
  python -m experiments.gradient_sweep --flagfile=... --distributed     (SLURM, Kubernetes, TPU pod)
  python -m experiments.gradient_sweep --flagfile=... --coordinator_address=host0:9876 \\
      --num_processes=2 --process_id=0                                  (and 1 on the other host)

Example:
  python -m experiments.gradient_sweep --flagfile=experiments/flags/phase_diagram.flags
"""

import contextlib
import dataclasses
import itertools
import math
from pathlib import Path

import jax
import numpy as np
from absl import logging

from experiments import (
    axes,
    footprint,
    sweep_figures,
    sweep_fits,
    sweep_tasks,
    sweep_theory,
    sweeping,
)
from experiments.networks import CELLS, RECURRENT_INITS, WITH_ACTIVATION, check_cell
from experiments.options import MOST_DEVICES, UsageError, check, launch, option
from experiments.processes import check_processes
from experiments.runner import settings_of, use_compilation_cache
from experiments.sweeping import Group, Layout, Row
from rnn_jax import records, sharding, sweep
from rnn_jax.cells import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep; see `--help`."""

    gain: str = option("0.5,1,1.5", "axis: scale of W, its spectral radius if wide")
    input_std: str = option("0.1", "axis: standard deviation of the inputs, without training")
    bias_std: str = option("0", "axis: standard deviation of an elman or leaky cell's bias")
    leak: str = option("0.1", "axis: share of a leaky cell's state renewed at each step")
    forget_bias: str = option("1", "axis: an lstm's initial forget-gate bias")
    learning_rate: str = option("0.001", "axis: step size, with training")
    clip_norm: str = option("0", "axis: bound on the gradient's global norm; 0 for none")
    cell: str = option("elman", f"axis: {', '.join(CELLS)}")
    activation: str = option("tanh", f"axis: of elman and leaky cells; {', '.join(ACTIVATIONS)}")
    recurrent_init: str = option("gaussian", f"axis: how W is drawn; {', '.join(RECURRENT_INITS)}")
    hidden_size: str = option("64", "axis: H, number of hidden units")
    length: str = option("100", "axis: T, time steps; of copy_memory and delayed_xor the delay")
    seeds: int = option(4, "networks at each point", minimum=1)
    seed: int = option(0, "of the whole sweep", minimum=0)
    batch_size: int = option(4, "B, sequences of each network", minimum=1)
    input_size: int = option(16, "D, white inputs of each network without training", minimum=1)
    train_steps: int = option(0, "training iterations of each network; 0 for none", minimum=0)
    task: str = option("sine", "what is learned", choices=tuple(sweep_tasks.TASKS))
    optimizer: str = option("adam", "with training", choices=tuple(sweep_tasks.OPTIMIZERS))
    width: int = option(
        sweep.WIDTH, "networks side by side in a block; rounding may differ with it", minimum=1
    )
    lanes: int = option(
        0, "networks in a batch, which is what an end of the process loses; 0 to choose", minimum=0
    )
    memory_mb: int = option(
        0, "bound on the memory of the networks on each host, in MB; 0 for none", minimum=0
    )
    cpu_devices: int = option(
        0, "devices to make of a CPU; 0 for one a core", minimum=0, maximum=MOST_DEVICES
    )
    distributed: bool = option(False, "several processes, found by SLURM, Kubernetes or a TPU pod")
    coordinator_address: str = option("", "host:port of process 0, where nobody else tells it")
    num_processes: int = option(0, "how many there are, where nobody else tells it", minimum=0)
    process_id: int = option(-1, "which one this is, where nobody else tells it", minimum=-1)
    workdir: str = option("runs/gradient_sweep", "folder for results and figures")
    overwrite: bool = option(False, "start afresh, whatever is in --workdir")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


def structures(config: SweepConfig) -> list[Row]:
    """The settings of each group: every combination of what changes the program."""
    found: list[Row] = []
    choices = (
        axes.words("cell", config.cell, CELLS),
        axes.words("activation", config.activation, tuple(ACTIVATIONS)),
        axes.words("recurrent_init", config.recurrent_init, tuple(RECURRENT_INITS)),
        axes.whole_numbers("hidden_size", config.hidden_size, minimum=1),
        axes.whole_numbers("length", config.length, minimum=1),
    )
    count = math.prod(len(values) for values in choices)
    footprint.check_groups(count, "--hidden_size, --length or --cell")
    for cell, activation, recurrent_init, hidden_size, length in itertools.product(*choices):
        check_cell(recurrent_init, hidden_size)
        settings: Row = {"cell": cell}
        if cell in WITH_ACTIVATION:
            settings["activation"] = activation
        settings |= {
            "recurrent_init": recurrent_init,
            "hidden_size": hidden_size,
            "length": length,
        }
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


def groups_of(config: SweepConfig) -> list[Group]:
    """Every network of the sweep, by structure; seeds run fastest."""
    numbers = number_axes(config)
    extra = ("learning_rate", "clip_norm") if config.train_steps else ("input_std",)
    named = [
        (settings, [*sweep_fits.CELL_NUMBERS[settings["cell"]], *extra])
        for settings in structures(config)
    ]
    count = sum(math.prod(len(numbers[name]) for name in names) for _, names in named)
    longest = max(settings["length"] for settings, _ in named)
    footprint.check_networks(
        config.seeds * count,
        kept_bytes(config, longest),
        f"--seeds, or give fewer values of {', '.join(f'--{name}' for name in named[0][1])}",
    )
    groups = []
    for settings, names in named:
        grid = np.array(list(itertools.product(*(numbers[name] for name in names))), np.float64)
        points = np.repeat(grid, config.seeds, axis=0)
        if config.train_steps:
            trained = sweep_tasks.trained(
                settings, config.task, config.optimizer, config.batch_size, config.train_steps
            )
            fit, describe = trained.fit, trained.describe
        else:
            fit = sweep_fits.untrained(settings, config.batch_size, config.input_size)
            describe = sweep_theory.describe_flow
        groups.append(
            Group(
                settings,
                {name: points[:, column] for column, name in enumerate(names)},
                np.tile(np.arange(config.seeds), len(grid)),
                fit,
                describe,
            )
        )
    return groups


def kept_bytes(config: SweepConfig, length: int) -> int:
    """What is kept of a network beside its line: profiles, and with training its curves."""
    if not config.train_steps:
        return 4 * length
    chunks = -(-config.train_steps // sweep_tasks.CHUNK)
    return 4 * (length * (len(sweep_tasks.MOMENTS) + chunks) + 2 * config.train_steps)


def layout_of(config: SweepConfig, groups: list[Group]) -> Layout:
    """How to spread the networks over devices, within the memory allowed."""
    mesh = sharding.lanes_mesh()
    width = config.width
    if config.memory_mb:
        width = min(_width_within(config.memory_mb * 10**6, group, width) for group in groups)
    block = width * mesh.size
    check_memory(config, groups, width)
    if config.lanes % block:
        raise UsageError(
            f"--lanes={config.lanes}: {mesh.size} devices with blocks of {width} networks want a "
            f"multiple of {block}"
        )
    return Layout(width, config.lanes or sweep.default_lanes(width, mesh), mesh)


def check_memory(config: SweepConfig, groups: list[Group], width: int) -> None:
    """`UsageError` where a group takes more memory than there is; nothing is compiled."""
    available = footprint.available_bytes()
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    for group in groups:
        size, length = group.settings["hidden_size"], group.settings["length"]
        # Far more than a gated cell with Adam takes; to trace its program takes seconds.
        at_most = 4 * width * size * (50 * size + 500 * length * config.batch_size)
        if available is not None and jax.local_device_count() * at_most > available:
            numbers = {name: jax.ShapeDtypeStruct((1,), np.float32) for name in group.numbers}
            flags = "--hidden_size, --length, --batch_size, --width or --cpu_devices"
            footprint.check_lanes(group.fit, numbers, keys, width, flags)


PROGRAM_BYTES = 50 * 10**6
"""What a group takes beside its blocks: compiler, code, results on their way. Measured: 40 to 60 MB
at H = 128, T = 500, B = 16, widths 4 to 16."""


def _width_within(limit: int, group: Group, width: int) -> int:
    """The widest block, halving, that the devices of this host can hold at once."""
    keys = jax.random.split(jax.random.key(0), 1)
    numbers = {name: np.zeros(1, np.float32) for name in group.numbers}
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1

    def needed_by(width: int) -> int:
        return PROGRAM_BYTES + devices * sweep.block_bytes(group.fit, numbers, keys, width)

    needed = needed_by(width)
    while needed > limit and width > 1:
        width //= 2
        needed = needed_by(width)
    if needed > limit:
        raise UsageError(
            f"--memory_mb={limit // 10**6}: one network on each of {devices} devices needs "
            f"{needed / 1e6:.0f} MB; give that much, or lower --length, --hidden_size, "
            "--batch_size, --train_steps or --cpu_devices"
        )
    return width


def open_folder(config: SweepConfig) -> np.ndarray:
    """Opens or reopens the sweep's folder; errors are those of `records.open_run`."""
    workdir = Path(config.workdir)
    if config.overwrite:
        sweeping.start_afresh(workdir)
    records.open_run(workdir, settings_of("gradient_sweep", config), config.overwrite)
    return np.zeros(0, np.int64)


def run(config: SweepConfig) -> list[Row]:
    """Runs the sweep, or the rest of it; the lines of all networks, in order.

    Call it in every process; only the first writes, and gets lines.
    """
    check(config)
    groups = groups_of(config)
    layout = layout_of(config, groups)
    workdir = Path(config.workdir)
    writer = sharding.is_writer()
    with contextlib.ExitStack() as folder:

        def enter() -> np.ndarray:
            folder.enter_context(records.held(config.workdir))
            return open_folder(config)

        sharding.only_writer(enter)
        if writer:
            logging.warning(
                "%d networks in %d groups, each compiled once; batches of %d on %d devices",
                sum(len(group.seeds) for group in groups),
                len(groups),
                layout.lanes,
                layout.mesh.size,
            )
        rows = sweeping.run_groups(groups, workdir, config.seed, layout)
        if writer:
            text = sweep_figures.save(workdir, rows, groups)
            records.write_atomically(workdir / "summary.txt", text)
            print(text, end="")
    return rows


def main(config: SweepConfig) -> None:
    """Starts JAX as asked, and runs the sweep."""
    check_processes(config.coordinator_address, config.num_processes, config.process_id)
    sharding.use_cpu_devices(config.cpu_devices)
    if config.distributed or config.coordinator_address:
        sharding.connect(config.coordinator_address, config.num_processes, config.process_id)
    use_compilation_cache(config.compilation_cache)
    run(config)


if __name__ == "__main__":
    launch(main, SweepConfig)
