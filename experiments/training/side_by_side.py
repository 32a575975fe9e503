"""Networks that learn a task side by side: their folder, their devices, their memory."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.cli.options import UsageError
from experiments.cli.run_folder import settings_of
from experiments.setup.host_memory import check_fits, check_networks
from experiments.setup.task_config import TaskConfig
from experiments.training import memory_check, parts
from experiments.training.groups import Group, Training, run_groups
from experiments.training.liveness import num_bytes
from experiments.training.parts import Row
from experiments.training.programs import Layout, network_functions
from experiments.training.store import CheckpointOptions
from rnn_jax import sharding, sweep
from rnn_jax.io import records


def layout_of(width: int, groups: list[Group]) -> Layout:
    """All networks of a group at once, on every device its share; a width of 0 is chosen."""
    mesh = sharding.lanes_mesh()
    largest = max(len(group.seeds) for group in groups)
    width = width or min(16, math.ceil(largest / mesh.size))
    blocks = math.ceil(largest / (width * mesh.size))
    return Layout(width, width * mesh.size * blocks, mesh)


def check_memory(groups: list[Group], layout: Layout) -> None:
    """`UsageError` where a group takes more memory than there is; nothing is compiled."""
    flags = "--hidden_size, --length, --batch_size, --width, --test_every or --cpu_devices"
    for group in groups:
        check_group(group, layout.width, flags)


def check_group(group: Group, width: int, lower: str) -> None:
    """`UsageError` where a group's programs and results do not fit; nothing is compiled.

    Args:
        group: of networks to train, or to measure.
        width: networks side by side.
        lower: the flags that make it less, as the message names them.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    hparams = {name: jax.ShapeDtypeStruct((1,), np.float32) for name in group.hparams}
    # The devices made of a CPU share its memory.
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    if not isinstance(group.program, Training):
        needed = memory_check.width_bytes(group.program, hparams, keys, width)
        check_fits(devices * needed, lower)
        return
    algorithm, schedule = group.program
    init, train_chunk, measure, _ = network_functions(algorithm)
    chunk = train_chunk(schedule.chunk_size)
    state = jax.eval_shape(jax.vmap(init), hparams, keys)
    for function in (chunk, measure):
        needed = memory_check.width_bytes(function, (hparams, state), keys, width)
        check_fits(devices * needed, lower)
    _, results, _ = jax.eval_shape(jax.vmap(chunk), (hparams, state), keys)
    # All states, old and new, what they began as, and the results of every chunk.
    chunks = -(-schedule.num_steps // schedule.chunk_size)
    arrays = 2 * num_bytes(state) + num_bytes(state.params) + chunks * num_bytes(results)
    check_networks(len(group.seeds), arrays, "--seeds, --train_steps or --length")


@contextlib.contextmanager
def trained(
    experiment: str, config: TaskConfig, groups: list[Group], **facts: str
) -> Iterator[tuple[Path, list[Row]]]:
    """Trains what is not yet trained; yields the folder, locked, and the lines of all networks.

    Args:
        experiment: its name.
        config: its settings.
        groups: what is to be trained.
        facts: what else results depend on, kept with the settings.
    """
    layout = layout_of(config.width, groups)
    check_memory(groups, layout)
    workdir = Path(config.workdir)
    with records.held(config.workdir):
        if config.overwrite or not config.resume:
            parts.start_afresh(workdir)
        records.open_run(workdir, settings_of(experiment, config) | facts, config.overwrite)
        options = CheckpointOptions(config.checkpoint_every, config.resume)
        yield workdir, run_groups(groups, workdir, config.seed, layout, options)


PROGRAM_BYTES = 50 * 10**6
"""What a group takes beside its blocks: compiler, code, results on their way. Measured: 40 to 60 MB
at H = 128, T = 500, B = 16, widths 4 to 16."""


def width_within(limit: int, group: Group, width: int, lower: str) -> int:
    """The widest block, halving, that the devices of this host can hold at once.

    Args:
        limit: bytes.
        group: of networks to train, or to measure.
        width: the most networks side by side.
        lower: the flags that make it less, as the message names them.
    """
    keys = jax.random.split(jax.random.key(0), 1)
    rows: Any = {name: np.zeros(1, np.float32) for name in group.hparams}
    fit: Any = group.program
    if isinstance(fit, Training):
        init, train_chunk, _, _ = network_functions(fit.algorithm)
        rows = (rows, jax.eval_shape(jax.vmap(init), rows, keys))
        fit = train_chunk(fit.schedule.chunk_size)
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1

    def needed_by(width: int) -> int:
        return PROGRAM_BYTES + devices * sweep.block_bytes(fit, rows, keys, width)

    needed = needed_by(width)
    while needed > limit and width > 1:
        width //= 2
        needed = needed_by(width)
    if needed > limit:
        raise UsageError(
            f"--memory_mb={limit // 10**6}: one network on each of {devices} devices needs "
            f"{needed / 1e6:.0f} MB; give that much, or lower {lower}"
        )
    return width
