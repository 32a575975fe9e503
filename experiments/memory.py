"""Who learns to remember? Tasks with long memory, the cures, and the gradient beside them.

Every cure of --cures is trained on --task at every --length, --seeds times, all seeds side by side.
A network has solved the task when at most 1 % of 400 sequences drawn apart from training are wrong
(delayed_xor: 1 % of the answers). They are the same at every test, and the first test passed ends
its training. Its gradient is measured before the first iteration and after the last. A cure is a
few settings laid over the others (experiments/cures.py); without --cures the settings alone are
trained. With several --learning_rate each is tried, and the best is told.

Written to --workdir: networks.jsonl, one line a network; arrays/, curves and profiles by group;
learning_curves.png against the chance line; gradient_profiles.png, start and end; success.png where
there are several cures or lengths; foretold.png, the length learned against the one that the
untrained gradient foretells, from three lengths on; table.md; summary.txt. A run that was stopped,
however, goes on after its last finished group when started again with the same settings.

Flags files:
  experiments/flags/adding.flags          T = 100: tanh, IRNN, GRU, LSTM
  experiments/flags/copy.flags            copy memory, delay 100
  experiments/flags/temporal_order.flags  SGD, with clipping, with clipping and Omega
  experiments/flags/cures.flags           every cure, by length
  experiments/flags/cures_adding.flags    every cure on adding
  experiments/flags/cures_quick.flags     the effect of four of them, in about a minute
  experiments/flags/flossing.flags        gradient flossing on delayed XOR
  experiments/flags/foretold.flags        the untrained gradient against the length learned

Example:
  python -m experiments.memory --flagfile=experiments/flags/adding.flags
"""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np

from experiments import axes, footprint, lanes, learning, memory_figures
from experiments.learning import Learning, check_learning, cure_names, cured
from experiments.method import check_flossing, check_method, floss_iterations
from experiments.options import UsageError, launch, option
from experiments.recipes import Data, recipe
from experiments.sweep_tasks import TASKS
from experiments.sweeping import Group, Row
from rnn_jax.tasks.task import Task

TEST_SEQUENCES = 400


@dataclasses.dataclass(frozen=True)
class MemoryConfig(Learning):
    """Settings of the experiment; see `--help`."""

    task: str = option("adding", "what is to be learned", choices=tuple(TASKS))
    length: str = option("100", "axis: T, time steps; of copy_memory and delayed_xor the delay")
    gains: str = option("", "axis: scale of W; empty for --gain, or what the cure sets")
    learning_rate: str = option("0.001", "axis: step size; the best of them is told")
    seeds: int = option(5, "networks of each cure, length and learning rate", minimum=1)
    train_steps: int = option(3000, "iterations of a network that does not solve it", minimum=1)
    workdir: str = option("runs/memory", "folder for results and figures")


def groups_of(config: MemoryConfig) -> list[Group]:
    """A group for each cure and length; its networks are learning rates times seeds."""
    rates = axes.numbers("learning_rate", config.learning_rate, above=0)
    lengths = axes.whole_numbers("length", config.length, minimum=1)
    numbers = {"learning_rate": rates}
    if config.gains:
        numbers["gain"] = axes.numbers("gains", config.gains, above=0)
    names = cure_names(config)
    footprint.check_groups(len(names) * len(lengths), "--length")
    count = config.seeds * math.prod(map(len, numbers.values()))
    footprint.check_networks(count, 0, "--seeds, or give fewer of --learning_rate and --gains")
    groups = []
    for cure in names:
        settings = cured(config, cure)
        check_method(settings)
        for length in lengths:
            groups.append(_group(settings, cure, length, numbers))
    return groups


def _group(config: MemoryConfig, cure: str, length: int, numbers: dict[str, list[float]]) -> Group:
    make = functools.partial(_task, config)
    task = make(length, config.batch_size)
    for iteration in floss_iterations(config):
        if iteration % config.test_every:
            raise UsageError(
                f"--floss_at={config.floss_at}: flossing comes between two tests, and {iteration} "
                f"is no multiple of --test_every={config.test_every}"
            )
    steps = jax.eval_shape(task.sample, jax.random.key(0)).inputs.shape[0]
    check_flossing(config, steps, config.batch_size)
    data = Data(task, make(length, TEST_SEQUENCES).sample, TEST_SEQUENCES)
    points = np.array(list(itertools.product(*numbers.values())))
    return Group(
        settings={"task": config.task, "cure": cure or "as given", "length": length},
        numbers={
            name: np.repeat(points[:, column], config.seeds) for column, name in enumerate(numbers)
        },
        seeds=np.tile(np.arange(config.seeds), len(points)),
        fit=recipe(config, data, length, config.batch_size, config.train_steps, config.test_every),
        describe=lanes.describe(task.solved_wrong),
    )


def _task(config: MemoryConfig, length: int, batch_size: int) -> Task:
    try:
        return TASKS[config.task](length, batch_size)
    except ValueError as error:
        raise UsageError(f"--task={config.task} --length={length}: {error}") from error


def run(config: MemoryConfig) -> list[Row]:
    """Trains what is not yet trained, and draws; the lines of all networks, in order."""
    check_learning(config)
    groups = groups_of(config)
    with learning.trained("memory", config, groups) as (workdir, rows):
        chance = [_task(config, g.settings["length"], 1).chance_loss for g in groups]
        text = memory_figures.save(workdir, config.task, rows, groups, chance, config.test_every)
        learning.tell(workdir, text)
    return rows


def main(config: MemoryConfig) -> None:
    """Starts JAX as asked, and runs the experiment."""
    learning.start_jax(config)
    run(config)


if __name__ == "__main__":
    launch(main, MemoryConfig)
