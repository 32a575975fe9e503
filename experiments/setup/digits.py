"""The settings of the digits experiment, and the images: what trains, and what judges."""

import dataclasses
import functools

import numpy as np

from experiments.cli.options import UsageError, option
from experiments.setup.task_config import TaskConfig
from rnn_jax.tasks import digits
from rnn_jax.tasks.task import Task
from rnn_jax.types import Batch

PIXELS = 64
GREYS = 16
"""Largest value of a pixel."""
HELD_OUT = 0.25
"""Share of each class in the test set; and of the rest in the validation set."""
SPLIT_SEED = 0
PERMUTATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class DigitsConfig(TaskConfig):
    """Settings of the experiment; see `--help`."""

    permuted: bool = option(False, "read the pixels in one random order, not row by row")
    learning_rate: float = option(0.003, "step size", above=0)
    shift: float = option(0.5, "pixels by which training images are shifted at most", minimum=0)
    turn: float = option(10.0, "degrees by which training images are turned at most", minimum=0)
    judge: str = option(
        "test",
        "what is held out from training and judges: the test set, or a part of the training set",
        choices=("test", "validation"),
    )
    seeds: int = option(5, "networks of each cure", minimum=1)
    train_steps: int = option(1000, "iterations of every network", minimum=1)
    workdir: str = option("runs/digits", "folder for results and figures", affects_results=False)


def load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[1797, 64]` in 0..1, row by row, and classes `[1797]`.

    Raises:
        UsageError: scikit-learn, which brings them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            f'the digits come with scikit-learn ({error}); install it: pip install -e ".[data]"'
        ) from error
    images, labels = load_digits(return_X_y=True)
    return (images / GREYS).astype(np.float32), labels.astype(np.int32)


def task_of(config: DigitsConfig, images: np.ndarray, labels: np.ndarray) -> tuple[Task, Batch]:
    """What is trained on and what judges, two disjoint parts of the images."""
    order = None
    if config.permuted:
        order = np.random.default_rng(PERMUTATION_SEED).permutation(images.shape[1])
    kept, judges = digits.split(labels, HELD_OUT, SPLIT_SEED)
    if config.judge == "validation":
        part, held_out = digits.split(labels[kept], HELD_OUT, SPLIT_SEED)
        kept, judges = kept[part], kept[held_out]
    vary = functools.partial(digits.moved, shift=config.shift, turn=config.turn)
    task = digits.digits(
        images[kept],
        labels[kept],
        config.batch_size,
        order=order,
        vary=vary if config.shift or config.turn else None,
    )
    return task, digits.whole(images[judges], labels[judges], order)
