"""The networks of a sweep, in groups that share a program, and how they are spread."""

import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from experiments.analysis.gradient_flow import untrained
from experiments.analysis.sweep_theory import describe_flow
from experiments.cli.options import UsageError
from experiments.setup.host_memory import available_bytes, check_networks
from experiments.setup.sweep import SweepConfig, axes_of, structures
from experiments.setup.tasks import task_named
from experiments.training.groups import Group
from experiments.training.outcome import describe_training
from experiments.training.parts import Row
from experiments.training.programs import Layout
from experiments.training.side_by_side import check_group, width_within
from experiments.training.sweep_training import CHUNK, STAGES, predict, sweep_training
from rnn_jax import sharding, sweep


def groups_of(config: SweepConfig) -> list[Group]:
    """Every network of the sweep, by structure; seeds run fastest."""
    named = [(settings, axes_of(config, settings)) for settings in structures(config)]
    count = sum(math.prod(map(len, axis.values())) for _, axis in named)
    longest = max(settings["length"] for settings, _ in named)
    check_networks(
        config.seeds * count,
        kept_bytes(config, longest),
        f"--seeds, or give fewer values of {', '.join(f'--{name}' for name in named[0][1])}",
    )
    groups = []
    for settings, axis in named:
        grid = np.array(list(itertools.product(*axis.values())), np.float64)
        points = np.repeat(grid, config.seeds, axis=0)
        program, describe = _program(config, settings)
        groups.append(
            Group(
                settings,
                {name: points[:, column] for column, name in enumerate(axis)},
                np.tile(np.arange(config.seeds), len(grid)),
                program,
                describe,
            )
        )
    return groups


def _program(config: SweepConfig, settings: Row) -> tuple[Any, Any]:
    """The `program` and `describe` of a group."""
    if not config.train_steps:
        return untrained(settings, config.batch_size, config.input_size), describe_flow
    training = sweep_training(
        settings, config.task, config.optimizer, config.batch_size, config.train_steps
    )
    solved_wrong = task_named(config.task, settings["length"], config.batch_size).solved_wrong
    theory = functools.partial(predict, config.task, config.batch_size)
    return training, describe_training(solved_wrong, STAGES, theory)


def layout_of(config: SweepConfig, groups: list[Group]) -> Layout:
    """How to spread the networks over devices, within the memory allowed."""
    mesh = sharding.lanes_mesh()
    width = config.width
    if config.memory_mb:
        limit = config.memory_mb * 10**6
        lower = "--length, --hidden_size, --batch_size, --train_steps or --cpu_devices"
        width = min(width_within(limit, group, width, lower) for group in groups)
    block = width * mesh.size
    check_memory(config, groups, width)
    if config.batch_networks % block:
        raise UsageError(
            f"--batch_networks={config.batch_networks}: {mesh.size} devices with blocks of {width} "
            f"networks want a multiple of {block}"
        )
    return Layout(width, config.batch_networks or sweep.default_lanes(width, mesh), mesh)


def check_memory(config: SweepConfig, groups: list[Group], width: int) -> None:
    """`UsageError` where a group takes more memory than there is; nothing is compiled."""
    available = available_bytes()
    for group in groups:
        size, length = group.settings["hidden_size"], group.settings["length"]
        # Far more than a gated cell with Adam takes; to trace its program takes seconds.
        at_most = 4 * width * size * (50 * size + 500 * length * config.batch_size)
        if available is not None and jax.local_device_count() * at_most > available:
            flags = "--hidden_size, --length, --batch_size, --width or --cpu_devices"
            check_group(group, width, flags)


def kept_bytes(config: SweepConfig, length: int) -> int:
    """What is kept of a network beside its line: profiles, and with training its curves."""
    if not config.train_steps:
        return 4 * length
    chunks = -(-config.train_steps // CHUNK)
    return 4 * (length * (len(STAGES) + chunks) + 2 * config.train_steps)
