"""Handwritten digits, read pixel by pixel: which cells remember 64 steps, and their gradients.

The 8x8 digits of scikit-learn (1,797 images of ten classes), one pixel a step and the class asked
at the last; with --permuted the pixels come in one random order, the same for all images, in which
what belongs together is far apart. Images are shifted and turned a little whenever they are drawn
for training, or the 1,347 of them are soon known by heart. Every cure of --cures
(experiments/setup/presets.py) is trained --seeds times, all seeds side by side, and evaluated by
the share of the 450 test images that it gets right after its last iteration. The test set is a
quarter of every class, set apart before anything else; nothing is drawn from it in training and no
setting was chosen on it: with --judge=validation a quarter of the training images is held out in
its place, and the test images are left alone.

Written to --workdir: networks.jsonl, one line a network; arrays/, curves and profiles by cure;
learning_curves.png; gradient_profiles.png, the gradient of the loss at the state of each step,
before training and after; table.md; summary.txt. A run that was stopped, however, goes on after its
last finished cure when started again with the same settings.

Flags files:
  experiments/flags/digits.flags           tanh, with cures and without; IRNN, LSTM, GRU
  experiments/flags/digits_permuted.flags  the same, in the random order

Example:
  pip install -e ".[data]"
  python -m experiments.digits --flagfile=experiments/flags/digits.flags
"""

import numpy as np

from experiments.cli.options import launch
from experiments.cli.start_jax import start_jax
from experiments.reports import digits as digits_report
from experiments.reports.summary import write_summary
from experiments.setup.digits import PIXELS, DigitsConfig, load, task_of
from experiments.setup.method import check_flossing, check_method
from experiments.setup.task_config import apply_preset, check_task_config, preset_names
from experiments.training.groups import Group, Training
from experiments.training.loop import END, START
from experiments.training.outcome import describe_training
from experiments.training.parts import Row
from experiments.training.side_by_side import trained
from experiments.training.task_training import Data, task_algorithm, task_schedule
from rnn_jax.tasks.task import Task

GOOD = 0.05
"""A network that has learned gets no more than this share of the test images wrong."""


def data_of(config: DigitsConfig, images: np.ndarray, labels: np.ndarray) -> Data:
    """What is trained on and what judges."""
    task, examples = task_of(config, images, labels)
    return Data(task, lambda key: examples, config.train_steps, ends_training=False)


def groups_of(config: DigitsConfig, data: Data) -> list[Group]:
    """A group for each cure; its networks are the seeds."""
    return [_group(apply_preset(config, cure), cure, data) for cure in preset_names(config)]


def _group(config: DigitsConfig, cure: str, data: Data) -> Group:
    check_method(config)
    check_flossing(config, PIXELS, config.batch_size)
    algorithm = task_algorithm(config, data, PIXELS, config.batch_size)
    return Group(
        settings={"task": task_name(config), "cure": cure or "as given", "length": PIXELS},
        hparams={"learning_rate": np.full(config.seeds, config.learning_rate)},
        seeds=np.arange(config.seeds),
        program=Training(algorithm, task_schedule(algorithm, data, config.test_every)),
        describe=describe_training(GOOD, (START, END)),
    )


def task_name(config: DigitsConfig) -> str:
    """What the figures call the task."""
    return "digits, pixels permuted" if config.permuted else "digits, pixel by pixel"


def run(config: DigitsConfig) -> list[Row]:
    """Trains what is not yet trained, and draws; the lines of all networks, in order."""
    check_task_config(config)
    data = data_of(config, *load())
    groups = groups_of(config, data)
    with trained("digits", config, groups) as (workdir, rows):
        task: Task = data.task
        text = digits_report.save(
            workdir, task_name(config), rows, groups, task.chance_wrong, config.test_every
        )
        write_summary(workdir, text)
    return rows


def main(config: DigitsConfig) -> None:
    """Starts JAX as asked, and runs the experiment."""
    start_jax(config.cpu_devices, config.compilation_cache)
    run(config)


if __name__ == "__main__":
    launch(main, DigitsConfig)
