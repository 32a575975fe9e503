"""What experiments share whose networks learn side by side: settings, cures, folder, devices."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from experiments import axes, footprint, lanes, sweeping
from experiments.cures import CURES
from experiments.method import Method, check_method
from experiments.options import MOST_DEVICES, UsageError, check, option
from experiments.resuming import Safety
from experiments.runner import settings_of, use_compilation_cache
from experiments.sweeping import Group, Layout, Row
from rnn_jax import records, sharding


@dataclasses.dataclass(frozen=True)
class Learning(Method):
    """Settings of a method, of what is trained by it, and where; see an experiment's `--help`."""

    cures: str = option("", f"axis: {', '.join(CURES)}; empty for the settings as they are")
    seeds: int = option(5, "networks of each kind", minimum=1)
    seed: int = option(0, "of all of them", minimum=0)
    batch_size: int = option(32, "B, sequences of an iteration", minimum=1)
    train_steps: int = option(3000, "iterations of a network at most", minimum=1)
    test_every: int = option(100, "iterations between two tests", minimum=1)
    width: int = option(0, "networks side by side on a device; 0 to choose", minimum=0)
    cpu_devices: int = option(
        0, "devices to make of a CPU; 0 for one a core", minimum=0, maximum=MOST_DEVICES
    )
    checkpoint_every: int = option(
        0,
        "iterations between two checkpoints of a group, which come after a test; 0 for one about "
        "every minute",
        minimum=0,
    )
    resume: bool = option(True, "go on where the run in --workdir stands")
    workdir: str = option("runs/learning", "folder for results and figures")
    overwrite: bool = option(False, "start afresh, whatever is in --workdir")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


Config = TypeVar("Config", bound=Learning)


def check_learning(config: Learning) -> None:
    """`UsageError` for settings that cannot be, before anything runs."""
    check(config)
    check_method(config)
    # Before there are arrays with an entry each.
    footprint.check_networks(config.seeds, 0, "--seeds")
    if config.train_steps % config.test_every:
        raise UsageError(
            f"--train_steps={config.train_steps} is no multiple of "
            f"--test_every={config.test_every}; give one, so that the last stretch ends in a test"
        )


def cured(config: Config, cure: str) -> Config:
    """The settings with a cure laid over them."""
    return dataclasses.replace(config, **CURES[cure].settings) if cure else config


def cure_names(config: Learning) -> list[str]:
    """The cures asked for; one without a name where none is."""
    return axes.words("cures", config.cures, tuple(CURES)) if config.cures else [""]


def layout_of(config: Learning, groups: list[Group]) -> Layout:
    """All networks of a group at once, on every device its share."""
    mesh = sharding.lanes_mesh()
    largest = max(len(group.seeds) for group in groups)
    width = config.width or min(16, math.ceil(largest / mesh.size))
    blocks = math.ceil(largest / (width * mesh.size))
    return Layout(width, width * mesh.size * blocks, mesh)


def check_memory(groups: list[Group], layout: Layout) -> None:
    """`UsageError` where a group takes more memory than there is; nothing is compiled."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    for group in groups:
        numbers = {name: jax.ShapeDtypeStruct((1,), np.float32) for name in group.numbers}
        state = jax.eval_shape(jax.vmap(group.fit.init), numbers, keys)
        flags = "--hidden_size, --length, --batch_size, --width, --test_every or --cpu_devices"
        for fit in (group.fit.train, group.fit.flow):
            footprint.check_lanes(fit, (numbers, state), keys, layout.width, flags)
        _, told = jax.eval_shape(jax.vmap(group.fit.train), (numbers, state), keys)
        # All states, old and new, and the last trace of every stretch.
        arrays = 2 * footprint.num_bytes(state) + (
            group.fit.num_steps // group.fit.test_every * footprint.num_bytes(told["traces"])
        )
        footprint.check_networks(len(group.seeds), arrays, "--seeds, --train_steps or --length")


@contextlib.contextmanager
def trained(
    experiment: str, config: Learning, groups: list[Group], **facts: str
) -> Iterator[tuple[Path, list[Row]]]:
    """Trains what is not yet trained; yields the folder, held, and the lines of all networks.

    Args:
        experiment: its name.
        config: its settings.
        groups: what is to be trained.
        facts: what else results depend on, kept with the settings.
    """
    layout = layout_of(config, groups)
    check_memory(groups, layout)
    workdir = Path(config.workdir)
    with records.held(config.workdir):
        if config.overwrite or not config.resume:
            sweeping.start_afresh(workdir)
        records.open_run(workdir, settings_of(experiment, config) | facts, config.overwrite)
        safety = Safety(config.checkpoint_every, config.resume)
        yield (
            workdir,
            sweeping.run_groups(groups, workdir, config.seed, layout, lanes.learn, safety),
        )


def tell(workdir: Path, text: str) -> None:
    """Writes summary.txt, and says the same."""
    records.write_atomically(workdir / "summary.txt", text)
    print(text, end="")


def start_jax(config: Learning) -> None:
    """Devices and compilation cache, as asked for."""
    sharding.use_cpu_devices(config.cpu_devices)
    use_compilation_cache(config.compilation_cache)
