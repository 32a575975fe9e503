"""Gradient flow in thousands of networks: which keep their gradient, and where the edge is.

Every combination of the axes is a network, times --seeds. An axis is a list (--gain=0.5,1,2) or a
range start:stop:count (--gain=0.1:3.0:30). Numbers share one compiled program; what changes the
program (--cell, --activation, --recurrent_init, --length, --hidden_size) is grouped, one
compilation a group. An axis that a cell does not have (--leak of an lstm) is left out for it.

With --train_steps=0 the gradient flow at initialization is measured, on white inputs. With more,
each network learns --task, and its gradient flow is measured before, half-way and after.

Written to --workdir: networks.jsonl, one line a network; arrays/, profiles and loss curves by
group; figures (phase_diagram, prediction; with training also success); summary.txt. A run that was
stopped, however, goes on where it was when started again with the same settings.

Flags files:
  experiments/flags/phase_diagram.flags  gain against the size of the input, 14,400 networks

Several processes, on one machine or on many, share the work:
  python -m experiments.gradient_sweep --flagfile=... --distributed     (SLURM, Kubernetes, TPU pod)
  python -m experiments.gradient_sweep --flagfile=... --coordinator_address=host0:9876 \\
      --num_processes=2 --process_id=0                                  (and 1 on the other host)

Example:
  python -m experiments.gradient_sweep --flagfile=experiments/flags/phase_diagram.flags
"""

import contextlib
from pathlib import Path

import numpy as np
from absl import logging

from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import check, launch
from experiments.cli.processes import check_processes
from experiments.cli.run_folder import settings_of
from experiments.cli.signals import end_at_signals
from experiments.reports import gradient_sweep as sweep_report
from experiments.reports.summary import write_summary
from experiments.setup.sweep import SweepConfig
from experiments.training import parts
from experiments.training.groups import run_groups
from experiments.training.parts import Row
from experiments.training.sweep_groups import groups_of, layout_of
from rnn_jax import sharding
from rnn_jax.io import records


def open_folder(config: SweepConfig) -> np.ndarray:
    """Opens or reopens the sweep's folder; errors are those of `records.open_run`."""
    workdir = Path(config.workdir)
    if config.overwrite:
        parts.start_afresh(workdir)
    records.open_run(workdir, settings_of("gradient_sweep", config), config.overwrite)
    return np.zeros(0, np.int64)


def run(config: SweepConfig) -> list[Row]:
    """Runs the sweep, or the rest of it; the lines of all networks, in order.

    Call it in every process; only the first writes, and gets lines.
    """
    check(config)
    groups = groups_of(config)
    layout = layout_of(config, groups)
    workdir = Path(config.workdir)
    writer = sharding.is_writer()
    with contextlib.ExitStack() as folder:

        def enter() -> np.ndarray:
            folder.enter_context(records.held(config.workdir))
            return open_folder(config)

        sharding.only_writer(enter)
        if writer:
            logging.warning(
                "%d networks in %d groups, each compiled once; batches of %d on %d devices",
                sum(len(group.seeds) for group in groups),
                len(groups),
                layout.batch,
                layout.mesh.size,
            )
        rows = run_groups(groups, workdir, config.seed, layout)
        if writer:
            text = sweep_report.save(workdir, rows, groups)
            write_summary(workdir, text)
    return rows


def main(config: SweepConfig) -> None:
    """Starts JAX as asked, and runs the sweep."""
    check_processes(config.coordinator_address, config.num_processes, config.process_id)
    sharding.use_cpu_devices(config.cpu_devices)
    if config.distributed or config.coordinator_address:
        sharding.connect(config.coordinator_address, config.num_processes, config.process_id)
        # JAX's coordination service put a handler of its own in the place of ours.
        end_at_signals()
    use_compilation_cache(config.compilation_cache)
    run(config)


if __name__ == "__main__":
    launch(main, SweepConfig)
