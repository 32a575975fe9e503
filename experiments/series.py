"""Forecast a series of your own: one step ahead, and running free.

Reads columns of any CSV file with a line of names (gzip too); without --csv the monthly sunspot
numbers, 1749 to 2008, that come with the project. The last --held_out rows are what is foretold:
they are neither learned from nor looked at in any choice. Networks learn from windows of the rows
before, --seeds of them side by side, and are compared on the --validation rows between; with
several --cures (experiments/cures.py) the one with the lowest median loss there makes the
forecasts. Values are normalized by the rows learned from alone.

One step ahead a network has read all true values before the row. Running free it has read those
before the held-out rows, and then its own forecasts. Beside both: the last value, and the value one
--season ago. Dates (--date_column: YYYY, YYYY-MM or YYYY-MM-DD) must be evenly spaced. Missing
numbers are an error unless --missing=interpolate: then a straight line stands in for them in the
rows learned from, and the number before them in the rows after. What stands in is read, but never
asked: it is in no loss, choice or score, and is marked among the held-out rows.

Written to --workdir: forecast.csv (date, actual, empty where nothing was measured, mean and
standard deviation over the networks, baselines); forecast.png; learning_curves.png, loss on the
validation rows; gradient_profiles.png, the gradient of a window's last loss before training and
after; gradient_heatmap.png, over training; table.md; networks.jsonl; arrays/; summary.txt. A run
that was stopped goes on when started again.

Flags file:
  experiments/flags/series.flags  sunspots, the last 15 years held out

Examples:
  python -m experiments.series --flagfile=experiments/flags/series.flags
  python -m experiments.series --csv=sales.csv --column=price,sold --date_column=day --season=7
"""

import dataclasses

import numpy as np

from experiments import forecasts, lanes, learning, series_figures
from experiments.learning import Learning, check_learning, cure_names, cured
from experiments.method import check_flossing, check_method, model_of
from experiments.options import UsageError, launch, option
from experiments.recipes import Data, Learner, recipe
from experiments.series_data import SUNSPOTS, Series, fingerprint, normalized, read_series
from experiments.sweeping import Arrays, Group, Row
from rnn_jax.tasks.series import series, windows_from
from rnn_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class SeriesConfig(Learning):
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
    workdir: str = option("runs/series", "folder for results and figures")


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


def groups_of(config: SeriesConfig, read: Series) -> list[Group]:
    """A group for each cure; its networks are the seeds."""
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
    count = examples.inputs.shape[1]
    data = Data(task, lambda key: examples, count, ends_training=False)
    return [_group(cured(config, cure), cure, read, data) for cure in cure_names(config)]


def _group(config: SeriesConfig, cure: str, read: Series, data: Data) -> Group:
    check_method(config)
    check_flossing(config, config.length, config.batch_size)
    fit = recipe(
        config, data, config.length, config.batch_size, config.train_steps, config.test_every
    )
    model = model_of(config, data.task, config.length)
    foretell = forecasts.forecaster(model, normalized(read), read.held_out)

    def flow(learner: Learner, key: Key) -> dict[str, Array]:
        return fit.flow(learner, key) | foretell(learner, key)

    def described(point: Row, results: Arrays) -> tuple[Row, Arrays]:
        line, kept = told(point, results)
        ends = {name: results[f"{name}_end"] for name in (forecasts.ONE_STEP, forecasts.FREE_RUN)}
        return line, kept | ends

    told = lanes.describe(data.task.solved_wrong)
    return Group(
        settings={"task": "series", "cure": cure or "as given", "length": config.length},
        numbers={"learning_rate": np.full(config.seeds, config.learning_rate)},
        seeds=np.arange(config.seeds),
        fit=fit._replace(flow=flow),
        describe=described,
    )


def run(config: SeriesConfig) -> list[Row]:
    """Trains what is not yet trained, and foretells; the lines of all networks, in order."""
    config = filled(config)
    check_learning(config)
    found = read(config)
    groups = groups_of(config, found)
    facts = {"values": fingerprint(found)}
    with learning.trained("series", config, groups, **facts) as (workdir, rows):
        text = series_figures.save(workdir, found, rows, groups, config.season, config.test_every)
        learning.tell(workdir, text)
    return rows


def main(config: SeriesConfig) -> None:
    """Starts JAX as asked, and runs the experiment."""
    learning.start_jax(config)
    run(config)


if __name__ == "__main__":
    launch(main, SeriesConfig)
