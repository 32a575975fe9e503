"""Who learns to remember? Tasks with long memory, the cures, and the gradient beside them.

Every cure of --cures is trained on --task at every --length, --seeds times, all seeds side by side.
A network has solved the task when at most 1 % of 400 sequences drawn apart from training are wrong
(delayed_xor: 1 % of the answers). They are the same at every test, and the first test passed ends
its training. Its gradient is measured before the first iteration and after the last. A cure is a
few settings laid over the others (experiments/setup/presets.py); without --cures the settings alone
are trained. With several --learning_rate each is tried, and the best is told.

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

import functools
import itertools
import math

import jax
import numpy as np

from experiments.cli import axes
from experiments.cli.options import UsageError, launch
from experiments.cli.start_jax import start_jax
from experiments.reports import memory as memory_report
from experiments.reports.summary import write_summary
from experiments.setup.host_memory import check_groups, check_networks
from experiments.setup.memory import MemoryConfig
from experiments.setup.method import check_flossing, check_method, floss_iterations
from experiments.setup.task_config import apply_preset, check_task_config, preset_names
from experiments.setup.tasks import task_named
from experiments.training.groups import Group, Training
from experiments.training.loop import END, START
from experiments.training.outcome import describe_training
from experiments.training.parts import Row
from experiments.training.side_by_side import trained
from experiments.training.task_training import Data, task_algorithm, task_schedule

TEST_SEQUENCES = 400


def groups_of(config: MemoryConfig) -> list[Group]:
    """A group for each cure and length; its networks are learning rates times seeds."""
    rates = axes.numbers("learning_rate", config.learning_rate, above=0)
    lengths = axes.whole_numbers("length", config.length, minimum=1)
    hparams = {"learning_rate": rates}
    if config.gains:
        hparams["gain"] = axes.numbers("gains", config.gains, above=0)
    names = preset_names(config)
    check_groups(len(names) * len(lengths), "--length")
    count = config.seeds * math.prod(map(len, hparams.values()))
    check_networks(count, 0, "--seeds, or give fewer of --learning_rate and --gains")
    groups = []
    for cure in names:
        settings = apply_preset(config, cure)
        check_method(settings)
        for length in lengths:
            groups.append(_group(settings, cure, length, hparams))
    return groups


def _group(config: MemoryConfig, cure: str, length: int, values: dict[str, list[float]]) -> Group:
    make = functools.partial(task_named, config.task)
    task = make(length, config.batch_size)
    for iteration in floss_iterations(config):
        if iteration % config.test_every:
            raise UsageError(
                f"--floss_at={config.floss_at}: flossing comes between two tests, and {iteration} "
                f"is not a multiple of --test_every={config.test_every}"
            )
    steps = jax.eval_shape(task.sample, jax.random.key(0)).inputs.shape[0]
    check_flossing(config, steps, config.batch_size)
    data = Data(task, make(length, TEST_SEQUENCES).sample, config.train_steps)
    algorithm = task_algorithm(config, data, length, config.batch_size)
    points = np.array(list(itertools.product(*values.values())))
    return Group(
        settings={"task": config.task, "cure": cure or "as given", "length": length},
        hparams={
            name: np.repeat(points[:, column], config.seeds) for column, name in enumerate(values)
        },
        seeds=np.tile(np.arange(config.seeds), len(points)),
        program=Training(algorithm, task_schedule(algorithm, data, config.test_every)),
        describe=describe_training(task.solved_wrong, (START, END)),
    )


def run(config: MemoryConfig) -> list[Row]:
    """Trains what is not yet trained, and draws; the lines of all networks, in order."""
    check_task_config(config)
    groups = groups_of(config)
    with trained("memory", config, groups) as (workdir, rows):
        chance = [task_named(config.task, g.settings["length"], 1).chance_loss for g in groups]
        text = memory_report.save(workdir, config.task, rows, groups, chance, config.test_every)
        write_summary(workdir, text)
    return rows


def main(config: MemoryConfig) -> None:
    """Starts JAX as asked, and runs the experiment."""
    start_jax(config.cpu_devices, config.compilation_cache)
    run(config)


if __name__ == "__main__":
    launch(main, MemoryConfig)
