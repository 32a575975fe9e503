"""The settings of the series experiment, and what is learned of the series."""

import dataclasses

from experiments.cli.options import UsageError, option
from experiments.data.series_data import SUNSPOTS, Series, normalized, read_series
from experiments.setup.task_config import TaskConfig
from rnn_jax.tasks.series import series, windows_from
from rnn_jax.tasks.task import Task
from rnn_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class SeriesConfig(TaskConfig):
    """Settings of the experiment; see `--help`."""

    csv: str = option("", "file of the series; empty for the sunspots that come with the project")
    column: str = option("", "name of the column, or several with commas: a,b")
    date_column: str = option("", "name of the column of dates; empty where there is none")
    missing: str = option(
        "error", "what to do where a number is missing", choices=("error", "interpolate")
    )
    held_out: int = option(180, "rows at the end to foretell", minimum=1)
    validation: int = option(264, "rows before them to compare networks on", minimum=1)
    season: int = option(0, "rows of a season, for the baseline; 0 for none", minimum=0)
    length: int = option(132, "T, steps of a window", minimum=2)
    warmup: int = option(12, "first steps of a window that do not count", minimum=0)
    learning_rate: float = option(0.003, "step size", above=0)
    seeds: int = option(5, "networks of each cure", minimum=1)
    train_steps: int = option(1500, "iterations of every network", minimum=1)
    workdir: str = option("runs/series", "folder for results and figures", affects_results=False)


def filled(config: SeriesConfig) -> SeriesConfig:
    """The settings with the names of the sunspots' columns where no file is given."""
    if config.csv:
        return config
    return dataclasses.replace(
        config,
        column=config.column or "sunspots",
        date_column=config.date_column or "month",
        season=config.season or 132,
    )


def read(config: SeriesConfig) -> Series:
    """The series of a config; errors as in `read_series`."""
    if config.warmup > config.length - 2:
        raise UsageError(
            f"--warmup={config.warmup}: of --length={config.length} steps 2 must be left"
        )
    return read_series(
        config.csv or SUNSPOTS,
        config.column,
        config.date_column,
        config.missing,
        held_out=config.held_out,
        validation=config.validation,
        least=max(config.length + 2, config.season - config.validation),
    )


def task_of(config: SeriesConfig, read: Series) -> tuple[Task, Batch]:
    """What is trained on, and the validation windows; `UsageError` where they do not fit."""
    known, measured = normalized(read)[: read.held_out], read.measured[: read.held_out]
    first = read.validation
    try:
        task = series(
            known[:first],
            config.length,
            config.batch_size,
            warmup=config.warmup,
            measured=measured[:first],
        )
        examples = windows_from(known, first, config.length, config.warmup, measured)
    except ValueError as error:
        raise UsageError(
            f"--length={config.length} and --validation={config.validation}: {error}"
        ) from error
    return task, examples
