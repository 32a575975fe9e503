"""How fast is it? Ours beside PyTorch and the usual Flax loop, measured in turn in one run.

Sections, of which --sections chooses:
  tutorial  the tutorial's training iteration (H = 16, B = 1, T = 49, Adam), compilation apart
  compile   its 6,000 iterations from fresh weights to the end, compilation included
  compile_step  what a training step takes to compile, beside a plain scan's
  traces    training with |dL/ds_t| recorded over training without
  process   the whole process `python -m experiments.sine`, with an empty cache and again
  sweep     1,000 networks of the tutorial's size: a sweep, one by one, one vmap, PyTorch
  networks  time per network against the number of them in a sweep
  grid      elman, lstm and gru at every size, beside plain JAX, Flax and PyTorch
  lengths   time per time step at T = 100 to 100,000
  long      T = 100,000 by nested checkpointing, beside the direct way: time and memory
  memory    peak memory of a training run, beside plain JAX, Flax and PyTorch
  limit     beside a C program of your own, where --limit_source names one

Before anything is timed, the gradients of all sides at the same weights are compared; where they
differ by more than 1e-4, relative, nothing is timed.

PyTorch is an extra, `pip install 'rnn_jax[benchmark]'`; without it its rows are left out.

Written to --workdir: config.json, results.json (every single time, as soon as it is measured),
table.md, ratios.png, and a figure each of grid, lengths and networks.

Example:
  python -m experiments.benchmark --flagfile=experiments/flags/benchmark_tutorial.flags
"""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import (
    compiling,
    contenders,
    flax_loop,
    gradients,
    grid,
    lengths,
    long,
    peak,
    process,
    report,
    sweeps,
    traces,
    tutorial,
)
from experiments.benchmarks.report import Findings, Number, Row, Wanted
from experiments.cli import axes
from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import UsageError, check, launch, option
from experiments.cli.run_folder import open_run_folder
from experiments.setup.sine import parts_of
from rnn_jax import plots, sharding
from rnn_jax.io import records

TRACE_PAIRS = 3
"""Pairs of runs for each of `repeats`: a ratio near 1 wants more of them."""
PROCESS_RUNS = 3
"""At most so many cold and warm processes: each takes seconds."""
ON_EVERY_CORE = {"sweep", "networks"}
"""Sections that take a device for each core."""


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of a benchmark; see `--help`."""

    sections: str = option(
        "tutorial,compile,traces,process,limit",
        "comma-separated parts to measure; sweep and networks, without others, take a device for "
        "each core",
    )
    iterations: int = option(6000, "training iterations in each timed run", minimum=1)
    torch_iterations: int = option(
        500, "at most so many in each of PyTorch's runs, which take longest", minimum=1
    )
    repeats: int = option(7, "rounds; each runs every side once", minimum=1)
    limit_source: str = option(
        "", "C file whose program prints 'C limit: X us/iter', as a yardstick; empty for none"
    )
    cells: str = option("elman,lstm,gru", "axis of the grid")
    hidden_size: str = option("16,64,128,256,512", "axis of the grid: H")
    batch_size: str = option("1,32,128", "axis of the grid: B")
    length: str = option("50,200,1000", "axis of the grid: T", renamed_from=("num_steps",))
    workdir: str = option("runs/benchmark", "folder for the table, the figure and all times")
    overwrite: bool = option(False, "replace a run of other settings in --workdir")


def grid_axes(config: BenchmarkConfig) -> grid.Axes:
    """The axes of the section grid, checked."""
    return grid.Axes(
        axes.words("cells", config.cells, tuple(contenders.CELLS)),
        axes.whole_numbers("hidden_size", config.hidden_size, minimum=1),
        axes.whole_numbers("batch_size", config.batch_size, minimum=1),
        axes.whole_numbers("length", config.length, minimum=1),
    )


def torch_iterations(config: BenchmarkConfig) -> int:
    """Iterations in a run of PyTorch's; its time per iteration does not depend on their number."""
    return min(config.torch_iterations, config.iterations)


Section = Callable[[BenchmarkConfig, Any], Iterable[Findings]]
"""`(config, torch) -> findings`, part by part; torch: `experiments.benchmarks.pytorch` or None."""

SECTIONS: dict[str, Section] = {
    "tutorial": lambda config, torch: [
        tutorial.iteration_findings(
            torch, config.iterations, torch_iterations(config), config.repeats
        )
    ],
    "compile": lambda config, torch: [
        tutorial.end_to_end_findings(torch, torch_iterations(config), config.repeats)
    ],
    "compile_step": lambda config, torch: compiling.findings(config.repeats),
    "traces": lambda config, torch: [
        traces.findings(config.iterations, TRACE_PAIRS * config.repeats)
    ],
    "process": lambda config, torch: [
        process.process_findings(
            ("experiments.sine", "--flagfile=experiments/flags/sine_200.flags"),
            Wanted("<=", 6),
            min(PROCESS_RUNS, config.repeats),
        )
    ],
    "sweep": lambda config, torch: [sweeps.findings(torch, config.repeats)],
    "networks": lambda config, torch: [sweeps.by_number(config.repeats)],
    "grid": lambda config, torch: grid.findings(torch, grid_axes(config), config.repeats),
    "lengths": lambda config, torch: lengths.findings(config.repeats),
    "long": lambda config, torch: long.findings(config.repeats),
    "memory": lambda config, torch: peak.findings(torch),
    "limit": lambda config, torch: [
        process.limit_findings(config.limit_source, config.iterations, config.repeats)
    ],
}


class Result(NamedTuple):
    """What was found, and where it is.

    Attributes:
        rows: of the table.
        notes: lines to be read with them, such as what was left out.
        differences: relative differences of the gradients, side -> parameter -> value.
        workdir: the run's folder.
        numbers: what is no time.
    """

    rows: list[Row]
    notes: list[str]
    differences: dict[str, dict[str, float]]
    workdir: Path
    numbers: Sequence[Number] = ()


def sections_of(config: BenchmarkConfig) -> list[str]:
    """The names in --sections; `UsageError` for one that is not known."""
    names = [name.strip() for name in config.sections.split(",") if name.strip()]
    if not names or set(names) - set(SECTIONS):
        raise UsageError(f"--sections={config.sections}: take some of {', '.join(SECTIONS)}")
    return names


def load_pytorch() -> tuple[Any, list[str]]:
    """`experiments.benchmarks.pytorch`, or None and a line that says why."""
    try:
        return importlib.import_module("experiments.benchmarks.pytorch"), []
    except (ImportError, OSError) as error:
        return None, [
            f"PyTorch rows are left out ({error}); pip install 'rnn_jax[benchmark]' adds PyTorch"
        ]


def check_gradients(torch: Any) -> dict[str, dict[str, float]]:
    """Compares all sides' gradients; `ValueError` where they differ."""
    objective = parts_of(tutorial.CONFIG).objective
    others = {"Flax": flax_loop.gradients}
    if torch:
        others["PyTorch"] = torch.gradients
    at = gradients.example(tutorial.CONFIG.hidden_size)
    return gradients.check_agreement(gradients.ours(objective), others, at)


def run(config: BenchmarkConfig) -> Result:
    """Measures section after section; what is found is on disk as soon as it is."""
    check(config)
    names = sections_of(config)
    grid.check_memory(grid_axes(config))
    if config.limit_source and not Path(config.limit_source).is_file():
        raise UsageError(f"--limit_source={config.limit_source}: give a C file that exists")
    with records.held(config.workdir):
        return _run(config, names, open_run_folder("benchmark", config))


def _run(config: BenchmarkConfig, names: list[str], workdir: Path) -> Result:
    torch, notes = load_pytorch()
    _say(*notes)
    result = Result([], notes, check_gradients(torch), workdir)
    for name in names:
        _say(f"measuring: {name}")
        for found in SECTIONS[name](config, torch):
            _say(*map(report.line, found.rows), *found.notes)
            result = joined(result, found)
            save(result)
            for figure_name, figure in found.figures.items():
                records.save_figure(workdir, figure_name, figure)
        draw(result)
    return result


def joined(result: Result, found: Findings) -> Result:
    """The result with a section's findings, or a part of them, after it."""
    return result._replace(
        rows=[*result.rows, *found.rows],
        notes=[*result.notes, *found.notes],
        numbers=[*result.numbers, *found.numbers],
    )


def _say(*lines: str) -> None:
    for line in lines:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def save(result: Result) -> None:
    """results.json and table.md."""
    found = {
        "machine": machine(),
        "gradient_differences": result.differences,
        "notes": result.notes,
        "rows": [report.as_json(row) for row in result.rows],
        "numbers": [report.number_as_json(number) for number in result.numbers],
    }
    records.write_atomically(
        result.workdir / "results.json", json.dumps(found, indent=1, allow_nan=False) + "\n"
    )
    records.write_atomically(result.workdir / "table.md", text(result))


def draw(result: Result) -> None:
    """ratios.png, where some row says how many times faster."""
    bars = report.bars(result.rows)
    if bars.labels:
        low, high = (report.three_digits(pick(bars.medians)) for pick in (min, max))
        title = f"{low} to {high} times faster than the usual loops"
        records.save_figure(result.workdir, "ratios", plots.speed_ratios(*bars, title))


def text(result: Result) -> str:
    """The tables, and below them what was compiled apart and what was left out."""
    tables = [report.table(result.rows), report.numbers_table(result.numbers)]
    return "\n".join([*filter(None, tables), *report.compilation_lines(result.rows), *result.notes])


def machine() -> dict[str, Any]:
    """What the times were taken on."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(config: BenchmarkConfig) -> None:
    """Runs the benchmark and prints the table."""
    if set(sections_of(config)) <= ON_EVERY_CORE:
        sharding.use_cpu_devices(0)
    use_compilation_cache(False)
    result = run(config)
    print(text(result))
    print(f"Every single time, and the figure: {result.workdir}/")


if __name__ == "__main__":
    launch(main, BenchmarkConfig)
