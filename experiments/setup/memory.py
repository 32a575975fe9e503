"""The settings of the memory experiment."""

import dataclasses

from experiments.cli.options import option
from experiments.setup.task_config import TaskConfig
from experiments.setup.tasks import TASK_HELP


@dataclasses.dataclass(frozen=True)
class MemoryConfig(TaskConfig):
    """Settings of the experiment; see `--help`."""

    task: str = option("adding", f"what is to be learned: {TASK_HELP}")
    length: str = option("100", "axis: T, time steps; of copy_memory and delayed_xor the delay")
    gains: str = option("", "axis: scale of W; empty for --gain, or what the cure sets")
    learning_rate: str = option("0.001", "axis: step size; the best of them is told")
    seeds: int = option(5, "networks of each cure, length and learning rate", minimum=1)
    train_steps: int = option(3000, "iterations of a network that does not solve it", minimum=1)
    workdir: str = option("runs/memory", "folder for results and figures", affects_results=False)
