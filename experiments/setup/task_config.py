"""The settings that experiments share whose networks learn a task side by side."""

import dataclasses
from typing import TypeVar

from experiments.cli import axes
from experiments.cli.options import MOST_DEVICES, UsageError, check, option
from experiments.setup.host_memory import check_networks
from experiments.setup.method import Method, check_method
from experiments.setup.presets import PRESETS
from experiments.setup.run import CheckpointConfig, FolderConfig


@dataclasses.dataclass(frozen=True)
class TaskConfig(Method, CheckpointConfig, FolderConfig):
    """How networks learn, how many, and where; see an experiment's `--help`."""

    cures: str = option("", f"axis: {', '.join(PRESETS)}; empty for the settings as they are")
    seeds: int = option(5, "networks of each kind", minimum=1)
    seed: int = option(0, "of all of them", minimum=0)
    batch_size: int = option(32, "B, sequences of an iteration", minimum=1)
    train_steps: int = option(3000, "iterations of a network at most", minimum=1)
    test_every: int = option(100, "iterations between two tests", minimum=1)
    width: int = option(0, "networks side by side on a device; 0 to choose", minimum=0)
    cpu_devices: int = option(
        0,
        "devices to make of a CPU; 0 for one a core",
        minimum=0,
        maximum=MOST_DEVICES,
        affects_results=False,
    )


Config = TypeVar("Config", bound=TaskConfig)


def check_task_config(config: TaskConfig) -> None:
    """`UsageError` for settings that cannot be, before anything runs."""
    check(config)
    check_method(config)
    # Before there are arrays with an entry each.
    check_networks(config.seeds, 0, "--seeds")
    if config.train_steps % config.test_every:
        raise UsageError(
            f"--train_steps={config.train_steps} is not a multiple of "
            f"--test_every={config.test_every}; give one, so that the last chunk ends in a test"
        )


def apply_preset(config: Config, name: str) -> Config:
    """The settings with those of a preset laid over them; as they are for an empty name."""
    return dataclasses.replace(config, **PRESETS[name].settings) if name else config


def preset_names(config: TaskConfig) -> list[str]:
    """The presets asked for; one without a name where there are none."""
    return axes.words("cures", config.cures, tuple(PRESETS)) if config.cures else [""]
