"""Learn a sine wave, let the network run free, and see its gradient at every time step.

A vanilla RNN reads a sine point by point and predicts the next point. Afterwards it runs free: each
prediction is the next input. The norm of dL/ds_t, the derivative of the loss by the state of every
time step, is recorded at every training iteration.

Flags files:
  experiments/flags/sine.flags       trained through its own free run; stays a sine for 1,000 steps
  experiments/flags/sine_200.flags   the tutorial, 200 iterations
  experiments/flags/sine_6000.flags  the tutorial, 6,000 iterations

Written to --workdir: config.json, metrics.jsonl, arrays/ and figures (free_run, loss,
gradient_heatmap, gradient_profile, closed_loop; with --trace_parameters also parameter_heatmap).
With several --seeds: networks.jsonl and arrays/ of all of them, and the table that is printed.

Examples:
  python -m experiments.sine --flagfile=experiments/flags/sine.flags
  python -m experiments.sine --flagfile=experiments/flags/sine_6000.flags --seeds=20
"""

from pathlib import Path

from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import launch
from experiments.cli.run_folder import open_run_folder
from experiments.reports import sine as sine_report
from experiments.reports.summary import write_summary
from experiments.setup.sine import SineConfig, check_config
from experiments.training import parts
from experiments.training.groups import run_groups
from experiments.training.parts import Row
from experiments.training.side_by_side import layout_of
from experiments.training.sine_training import Result, check_memory, seeds_group, train_one
from experiments.training.store import CheckpointOptions
from experiments.training.tensorboard_events import load_format
from rnn_jax.io import records


def run(config: SineConfig) -> Result:
    """Trains and tests one network, and draws; leaves the run's folder behind."""
    check_config(config)
    check_memory(config)
    if config.tensorboard:
        load_format()
    with records.held(config.workdir):
        workdir = _opened(config)
        result = train_one(config, workdir)
        sine_report.save(workdir, config, result)
    return result


def run_seeds(config: SineConfig) -> list[Row]:
    """Trains networks of several seeds side by side; prints a table of them."""
    check_config(config)
    check_memory(config)
    with records.held(config.workdir):
        workdir = _opened(config)
        groups = [seeds_group(config)]
        options = CheckpointOptions(config.checkpoint_every, config.resume)
        rows = run_groups(groups, workdir, config.seed, layout_of(0, groups), options)
        write_summary(workdir, sine_report.table(rows))
    return rows


def _opened(config: SineConfig) -> Path:
    """The run's folder, emptied of what an earlier run left where a fresh start is asked for."""
    if config.overwrite or not config.resume:
        parts.start_afresh(Path(config.workdir))
    return open_run_folder("sine", config)


def main(config: SineConfig) -> None:
    """Runs the experiment; it ends by saying in three lines where the figures are."""
    use_compilation_cache(config.compilation_cache)
    if config.seeds > 1:
        run_seeds(config)
    else:
        run(config)


if __name__ == "__main__":
    launch(main, SineConfig)
