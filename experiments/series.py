"""Forecast a series of your own: one step ahead, and running free.

Reads columns of any CSV file with a line of names (gzip too); without --csv the monthly sunspot
numbers, 1749 to 2008, that come with the project. The last --held_out rows are what is foretold:
they are neither learned from nor looked at in any choice. Networks learn from windows of the rows
before, --seeds of them side by side, and are compared on the --validation rows between; with
several --cures (experiments/setup/presets.py) the one with the lowest median loss there makes the
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

import numpy as np

from experiments.analysis import forecasts
from experiments.cli.options import UsageError, launch
from experiments.cli.start_jax import start_jax
from experiments.data.series_data import Series, fingerprint, normalized
from experiments.reports import series as series_report
from experiments.reports.summary import write_summary
from experiments.setup.method import check_flossing, check_method, model_of
from experiments.setup.series import SeriesConfig, filled, read, task_of
from experiments.setup.task_config import apply_preset, check_task_config, preset_names
from experiments.training.algorithm import Arrays
from experiments.training.groups import Group, Training
from experiments.training.loop import END, START
from experiments.training.outcome import describe_training
from experiments.training.parts import Row
from experiments.training.side_by_side import trained
from experiments.training.task_training import Data, task_algorithm, task_schedule
from rnn_jax.training import TrainState
from rnn_jax.types import Key


def groups_of(config: SeriesConfig, read: Series) -> list[Group]:
    """A group for each cure; its networks are the seeds."""
    task, examples = task_of(config, read)
    data = Data(task, lambda key: examples, config.train_steps, ends_training=False)
    return [_group(apply_preset(config, cure), cure, read, data) for cure in preset_names(config)]


def _group(config: SeriesConfig, cure: str, read: Series, data: Data) -> Group:
    check_method(config)
    if config.zoneout or config.detach:
        raise UsageError(
            f"--zoneout={config.zoneout:g} and --detach={config.detach:g}: a network that runs "
            "free has no inputs to bring their chance along; leave both at 0"
        )
    check_flossing(config, config.length, config.batch_size)
    algorithm = task_algorithm(config, data, config.length, config.batch_size)
    model = model_of(config, data.task, config.length)
    forecast = forecasts.forecaster(model, normalized(read), read.held_out)

    def measure(state: TrainState, key: Key) -> Arrays:
        return algorithm.measure(state, key) | forecast(state.params)

    def describe(point: Row, results: Arrays) -> tuple[Row, Arrays]:
        line, kept = describe_flow(point, results)
        ends = {name: results[f"{name}_end"] for name in (forecasts.ONE_STEP, forecasts.FREE_RUN)}
        return line, kept | ends

    describe_flow = describe_training(data.task.solved_wrong, (START, END))
    schedule = task_schedule(algorithm, data, config.test_every)
    return Group(
        settings={"task": "series", "cure": cure or "as given", "length": config.length},
        hparams={"learning_rate": np.full(config.seeds, config.learning_rate)},
        seeds=np.arange(config.seeds),
        program=Training(algorithm._replace(measure=measure), schedule),
        describe=describe,
    )


def run(config: SeriesConfig) -> list[Row]:
    """Trains what is not yet trained, and foretells; the lines of all networks, in order."""
    config = filled(config)
    check_task_config(config)
    found = read(config)
    groups = groups_of(config, found)
    facts = {"values": fingerprint(found)}
    with trained("series", config, groups, **facts) as (workdir, rows):
        text = series_report.save(workdir, found, rows, groups, config.season, config.test_every)
        write_summary(workdir, text)
    return rows


def main(config: SeriesConfig) -> None:
    """Starts JAX as asked, and runs the experiment."""
    start_jax(config.cpu_devices, config.compilation_cache)
    run(config)


if __name__ == "__main__":
    launch(main, SeriesConfig)
