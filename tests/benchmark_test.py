"""The benchmark: its clock, its ratios, its table, and what it refuses to time."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from absl import flags

from experiments import benchmark
from experiments.benchmarks import (
    flax_loop,
    gradients,
    numpy_wave,
    process,
    report,
    timing,
    traces,
    tutorial,
)
from experiments.benchmarks.report import COST, Number, Row, Wanted
from experiments.benchmarks.timing import Side, Times
from experiments.cli import options
from experiments.setup.sine import SineConfig, parts_of
from rnn_jax.types import Batch

H = tutorial.CONFIG.hidden_size
FLAGS = Path(benchmark.__file__).parent / "flags"


def config_from(file, config_class):
    flag_values = flags.FlagValues()
    options.define_flags(config_class, flag_values, "test")
    flag_values(["test", f"--flagfile={file}"])
    return options.from_flags(config_class, flag_values)


# The clock.


def test_the_stopwatch_times_the_work_and_waits_for_its_result():
    now = [100.0]

    def lasting(seconds, result=None):
        now[0] += seconds
        return result

    pending = SimpleNamespace(block_until_ready=lambda: lasting(4.0))
    run = timing.stopwatch(
        prepare=lambda: lasting(16.0, "prepared"),
        work=lambda prepared: lasting(2.0, pending) if prepared == "prepared" else None,
        clock=lambda: now[0],
    )
    assert run() == 6.0
    assert now[0] == 122.0


def scripted(name, seconds, order):
    remaining = iter(seconds)

    def run():
        order.append(name)
        return next(remaining)

    return run


def test_sides_take_turns_and_compilation_is_apart():
    order = []
    sides = {
        "a": Side(scripted("a", [9.0, 2.0, 6.0, 4.0], order), iterations=2),
        "b": Side(scripted("b", [1.0, 3.0, 3.0, 3.0], order)),
    }
    times = timing.interleaved(sides, repeats=3)
    assert order == ["a", "b"] * 4
    np.testing.assert_array_equal(times["a"].seconds, [1.0, 3.0, 2.0])
    np.testing.assert_array_equal(times["b"].seconds, [3.0, 3.0, 3.0])
    # The first run less the median run; a first run that was no slower compiled nothing.
    assert times["a"].compilation == 5.0
    assert times["b"].compilation == 0.0
    assert timing.spread(times["a"].seconds) == (2.0, 1.0, 3.0)


def test_without_warm_up_the_first_run_counts():
    times = timing.interleaved({"a": Side(scripted("a", [5.0, 1.0], []))}, 2, warm_up=False)
    np.testing.assert_array_equal(times["a"].seconds, [5.0, 1.0])
    assert times["a"].compilation == 0.0


@pytest.mark.parametrize(
    ("repeats", "least", "rounds"),
    # Two sides of 3 s: a budget of 10 s is spent after two rounds.
    [(7, 1, 2), (7, 3, 3), (1, 3, 1), (2, 3, 2)],
)
def test_rounds_end_with_the_budget_but_not_below_the_least(repeats, least, rounds):
    sides = {name: Side(lambda: 3.0) for name in "ab"}
    times = timing.interleaved(sides, repeats, budget=10.0, least=least)
    assert [len(side.seconds) for side in times.values()] == [rounds, rounds]


@pytest.mark.parametrize(
    ("seconds", "calls", "found"),
    [([0.05, 0.01, 0.02, 0.01], 3, 0.01), ([0.06, 0.05, 0.01], 2, 0.05), ([9.0, 0.01], 1, 9.0)],
)
def test_a_pace_is_the_quickest_of_a_few_calls_and_of_one_if_that_is_long(
    monkeypatch, seconds, calls, found
):
    now, remaining = [0.0], list(seconds)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += remaining.pop(0)
        return len(seconds) - len(remaining)

    quickest, last = timing.pace(work)
    assert quickest == pytest.approx(found)
    assert last == calls


# The report.


def times(*seconds, name="side", compilation=0.0):
    return Times(name, np.array(seconds), compilation)


def test_ratios_are_of_runs_taken_side_by_side():
    faster = Row("w", times(1.0, 2.0, 4.0), times(10.0, 10.0, 80.0))
    np.testing.assert_array_equal(report.ratios(faster), [10.0, 5.0, 20.0])
    cost = faster._replace(ratio=COST)
    np.testing.assert_allclose(report.ratios(cost), [0.1, 0.2, 0.05], rtol=1e-15)
    assert report.ratios(faster._replace(other=None)) is None


@pytest.mark.parametrize(
    ("row", "met"),
    [
        # Medians: 10 for the ratio, 2 s for ours alone.
        (Row("w", times(1, 2, 4), times(10, 10, 80), wanted=Wanted(">=", 10)), True),
        (Row("w", times(1, 2, 4), times(10, 10, 80), wanted=Wanted(">=", 10.1)), False),
        (Row("w", times(1, 2, 4), times(10, 10, 80), COST, Wanted("<=", 0.11)), True),
        (Row("w", times(1, 2, 4), times(10, 10, 80), COST, Wanted("<=", 0.09)), False),
        (Row("w", times(1, 2, 4), wanted=Wanted("<=", 2)), True),
        (Row("w", times(1, 2, 4), wanted=Wanted("<=", 1.9)), False),
        (Row("w", times(1, 2, 4), times(10, 10, 80)), None),
    ],
)
def test_medians_are_held_against_what_was_wanted(row, met):
    assert report.is_met(row) is met


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 us"),
        (2.1049e-5, "21.0 us"),
        (0.99951e-3, "1.00 ms"),
        (1.7e-3, "1.70 ms"),
        (0.099996, "100 ms"),
        (0.5, "500 ms"),
        (3.456, "3.46 s"),
        (1234.5, "1234 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert report.duration(seconds) == text


def test_the_table():
    rows = [
        Row("loop", times(2e-5, 1e-5, 4e-5), times(2e-3, 2e-3, 2e-3), wanted=Wanted(">=", 60)),
        Row("traces", times(1.1, 1.2), times(1.0, 1.0), COST, Wanted("<=", 1.03)),
        Row("process", times(3.0, 5.0), wanted=Wanted("<=", 6)),
        Row("plain", times(1.0), times(2.0)),
    ]
    assert report.table(rows).splitlines() == [
        "| what | ours | other | ratio median (min..max) | wanted |",
        "|---|---|---|---|---|",
        "| loop | 20.0 us (10.0 us..40.0 us) | 2.00 ms (2.00 ms..2.00 ms) | 100 (50.0..200) | "
        ">= 60: met |",
        "| traces | 1.15 s (1.10 s..1.20 s) | 1.00 s (1.00 s..1.00 s) | 1.15 (1.10..1.20) "
        "ours/other | <= 1.03: missed |",
        "| process | 4.00 s (3.00 s..5.00 s) | - | - | <= 6 s: met |",
        "| plain | 1.00 s (1.00 s..1.00 s) | 2.00 s (2.00 s..2.00 s) | 2.00 (2.00..2.00) | - |",
    ]


def test_json_holds_every_number():
    row = Row(
        "w",
        times(1.0, 2.0),
        times(3.0, 8.0, compilation=0.5),
        wanted=Wanted(">=", 4),
        at={"cell": "elman", "H": 16},
    )
    assert json.loads(json.dumps(report.as_json(row), allow_nan=False)) == {
        "what": "w",
        "at": {"cell": "elman", "H": 16},
        "ours": {
            "name": "side",
            "seconds": {"median": 1.5, "low": 1.0, "high": 2.0},
            "runs": [1.0, 2.0],
            "compilation_seconds": 0.0,
        },
        "other": {
            "name": "side",
            "seconds": {"median": 5.5, "low": 3.0, "high": 8.0},
            "runs": [3.0, 8.0],
            "compilation_seconds": 0.5,
        },
        "ratio": {"of": "other/ours", "median": 3.5, "low": 3.0, "high": 4.0, "pairs": [3.0, 4.0]},
        "wanted": ">= 4",
        "met": False,
    }


def test_numbers_that_are_no_times_have_a_table_and_json_of_their_own():
    numbers = [
        Number("mean", 1.234, wanted=Wanted(">=", 1.5), at={"other": "Flax"}),
        Number("peak", 0.6755, "GB", Wanted("<=", 1)),
        Number("difference", 2.5e-6),
    ]
    assert report.numbers_table(numbers).splitlines() == [
        "| what | found | wanted |",
        "|---|---|---|",
        "| mean | 1.23 | >= 1.5: missed |",
        "| peak | 0.675 GB | <= 1 GB: met |",
        "| difference | 2.5e-06 | - |",
    ]
    assert report.numbers_table([]) == ""
    assert json.loads(json.dumps(report.number_as_json(numbers[0]))) == {
        "what": "mean",
        "value": 1.234,
        "unit": "",
        "wanted": ">= 1.5",
        "at": {"other": "Flax"},
        "met": False,
    }


def test_compilation_is_listed_once_a_side_and_only_where_there_was_some():
    ours = times(1.0, name="ours", compilation=0.25)
    other = times(1.0, name="other", compilation=0.001)
    (line,) = report.compilation_lines([Row("a", ours, other), Row("b", ours)])
    assert line.endswith("ours 250 ms.")
    assert report.compilation_lines([Row("a", other)]) == []


def test_bars_are_the_rows_that_say_how_many_times_faster():
    rows = [
        Row("a " * 30, times(1.0, 2.0, 4.0), times(10.0, 10.0, 80.0), wanted=Wanted(">=", 6)),
        Row("b", times(1.0), times(2.0), COST),
        Row("c", times(1.0)),
        Row("d", times(1.0), times(3.0)),
        Row("of a grid", times(1.0), times(4.0), at={"cell": "elman"}),
    ]
    bars = report.bars(rows)
    # A long label is broken, so that it leaves room for the bars.
    assert bars.labels == ["\n".join(["a " * 15 + "a", "a " * 13 + "a"]), "d"]
    assert bars.medians == [10.0, 3.0]
    assert (bars.lows, bars.highs) == ([5.0, 3.0], [20.0, 3.0])
    np.testing.assert_array_equal(bars.wanted, [6.0, np.nan])


# The gradients of all sides, against NumPy by hand.


def reference_gradients(example):
    weights = reference.Weights(*(np.asarray(leaf) for leaf in jax.tree.leaves(example.params)))
    arguments = (
        weights,
        reference.PHI["tanh"],
        *map(np.asarray, (example.carry, *example.batch[:2])),
    )
    return reference.backward(*arguments, reference.forward(*arguments)).weights


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("side", ["ours", "flax"])
def test_gradients_equal_the_reference(x64, side, batch_size):
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), gradients.example(H).params)
    inputs, targets = rng.normal(size=(2, 49, batch_size, 1))
    batch = Batch(jnp.asarray(inputs), jnp.asarray(targets))
    example = gradients.Example(params, jnp.asarray(rng.normal(size=(batch_size, H))), batch)
    objective = parts_of(tutorial.CONFIG).objective
    gradient = {"ours": gradients.ours(objective), "flax": flax_loop.gradients}[side]
    given = jax.tree.leaves(gradient(*example))
    for found, wanted in zip(given, reference_gradients(example), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_example_has_the_tutorials_shape_and_no_part_that_does_not_count():
    example = gradients.example(H)
    assert example.batch.inputs.shape == example.batch.targets.shape == (49, 1, 1)
    assert example.carry.shape == (1, H)
    assert all(np.abs(g).max() > 1e-3 for g in reference_gradients(example))


def test_agreement_passes_for_the_same_weights_and_refuses_others():
    ours = gradients.ours(parts_of(tutorial.CONFIG).objective)
    example = gradients.example(H)
    found = gradients.check_agreement(ours, {"Flax": flax_loop.gradients}, example)
    assert list(found["Flax"]) == ["cell.U", "cell.W", "cell.b", "readout.V", "readout.c"]
    assert max(found["Flax"].values()) < gradients.TOLERANCE

    def of_other_weights(params, carry, batch):
        cell = params.cell._replace(W=1.001 * params.cell.W)
        return flax_loop.gradients(params._replace(cell=cell), carry, batch)

    def of_another_carry(params, carry, batch):
        return flax_loop.gradients(params, jnp.zeros_like(carry), batch)

    for wrong in (of_other_weights, of_another_carry):
        with pytest.raises(ValueError, match=r"by wrong differs from ours .* Nothing is timed"):
            gradients.check_agreement(ours, {"Flax": flax_loop.gradients, "wrong": wrong}, example)


@pytest.mark.parametrize(("error", "refused"), [(0.9e-4, False), (1.1e-4, True), (np.nan, True)])
def test_the_tolerance_of_agreement(error, refused):
    example = gradients.example(H)

    def ours(params, carry, batch):
        return params._replace(readout=params.readout._replace(c=jnp.ones(1)))

    def other(params, carry, batch):
        return params._replace(readout=params.readout._replace(c=jnp.ones(1) + error))

    if refused:
        with pytest.raises(ValueError, match=r"gradient of readout\.c by other"):
            gradients.check_agreement(ours, {"other": other}, example)
    else:
        gradients.check_agreement(ours, {"other": other}, example)


def test_nothing_is_timed_where_gradients_differ(monkeypatch, tmp_path):
    monkeypatch.setattr(
        flax_loop, "gradients", lambda params, carry, batch: jax.tree.map(jnp.ones_like, params)
    )
    monkeypatch.setitem(
        benchmark.SECTIONS, "tutorial", lambda config, torch: pytest.fail("it was timed")
    )
    config = benchmark.BenchmarkConfig(sections="tutorial", workdir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="Nothing is timed"):
        benchmark.run(config)


# The sides.


def test_numpy_waves_are_the_tutorials():
    rng = np.random.default_rng(0)
    times = np.arange(50) * 10 / 49
    starts = set()
    for _ in range(100):
        x, y = numpy_wave.draw(rng)
        assert x.shape == y.shape == (1, 49, 1)
        assert x.dtype == y.dtype == np.float32
        waves = np.sin(np.arange(10)[:, None] + times)
        (start,) = np.flatnonzero(np.abs(waves[:, :49] - x[0, :, 0]).max(axis=1) < 1e-6)
        np.testing.assert_allclose(y[0, :, 0], waves[start, 1:], atol=1e-6)
        starts.add(int(start))
    assert starts == set(range(10))


def test_the_settings_are_those_of_the_tutorials_flags():
    given = config_from(FLAGS / "sine_6000.flags", SineConfig)
    assert dataclasses.replace(given, workdir=tutorial.CONFIG.workdir) == tutorial.CONFIG


def test_the_flags_file_gives_the_defaults():
    given = config_from(FLAGS / "benchmark_tutorial.flags", benchmark.BenchmarkConfig)
    assert given == benchmark.BenchmarkConfig()


def test_the_flax_loop_learns():
    net = flax_loop.network(H)
    optimizer = flax_loop.optax.adam(0.01)
    step = flax_loop.make_step(net, optimizer)
    start = flax_loop.start(net, optimizer, seed=0)
    cell = start.params["layer"]["params"]["cell"]
    assert np.std(cell["h"]["kernel"]) == pytest.approx(1e-3, rel=0.3)
    first, last = (flax_loop.train(step, start, n, 100, seed=0) for n in (1, 300))
    # The loss of the tutorial is between 5.9e-3 and 6.9e-3 after 200 iterations, on average.
    assert first > 0.1 > 0.03 > last > 0


def test_all_of_ours_train_alike_and_write_what_an_experiment_writes(tmp_path):
    iterations = 2 * tutorial.CONFIG.log_every
    side = tutorial.ours_in_chunks(iterations, tmp_path / "run")
    # Twice: the buffers of a run are donated, and the next one needs its own.
    assert side.run() > 0
    assert side.run() > 0
    loss, trace = (np.load(tmp_path / f"run/arrays/{name}.npy") for name in ("loss", "trace"))
    assert loss.shape == (iterations,)
    assert trace.shape == (iterations, 49)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert loss[-20:].mean() < 0.1 * loss[:20].mean()
    one_chunk = tutorial.ours_in_one_chunk(iterations)
    assert one_chunk.run() > 0
    assert side.iterations == one_chunk.iterations == iterations


@pytest.fixture
def short_tutorial(monkeypatch):
    """The tutorial in four iterations and two chunks, and a count of how often it is traced."""
    config = dataclasses.replace(tutorial.CONFIG, train_steps=4, log_every=2)
    algorithm, traced = tutorial._untested(), []

    def train_chunk(hparams, state, key, num_steps):
        traced.append(num_steps)
        return algorithm.train_chunk(hparams, state, key, num_steps)

    counting = algorithm._replace(train_chunk=train_chunk)
    monkeypatch.setattr(tutorial, "CONFIG", config)
    monkeypatch.setattr(tutorial, "_untested", lambda: counting)
    return traced


def test_end_to_end_compiles_each_time_and_the_loop_once(short_tutorial, tmp_path):
    loop = tutorial.ours_in_chunks(4, tmp_path)
    loop.run(), loop.run()
    assert len(short_tutorial) == 1
    whole = tutorial.ours_from_nothing(tmp_path)
    whole.run()
    assert len(short_tutorial) == 2


def test_end_to_end_scales_pytorch_to_the_whole_tutorial(short_tutorial, monkeypatch):
    monkeypatch.setattr(tutorial, "ours_from_nothing", lambda folder: Side(lambda: 2.0))
    monkeypatch.setattr(tutorial, "torch_side", lambda torch, threads, n: Side(lambda: 3.0, n))
    (row,), (note,), *_ = tutorial.end_to_end_findings("torch", torch_iterations=1, repeats=2)
    np.testing.assert_array_equal(report.ratios(row), [6.0, 6.0])
    assert note == "PyTorch's 4 iterations are scaled from 1."
    (row,), notes, *_ = tutorial.end_to_end_findings("torch", torch_iterations=9, repeats=2)
    np.testing.assert_array_equal(report.ratios(row), [1.5, 1.5])
    assert not notes
    (row,), *_ = tutorial.end_to_end_findings(None, torch_iterations=1, repeats=1)
    assert row.other is None


def test_rows_of_the_iteration_compare_both_of_ours_with_every_other(monkeypatch):
    monkeypatch.setattr(tutorial, "ours_in_chunks", lambda n, folder: Side(lambda: 1.0 * n, n))
    monkeypatch.setattr(tutorial, "ours_in_one_chunk", lambda n: Side(lambda: 0.5 * n, n))
    monkeypatch.setattr(tutorial, "flax_side", lambda n: Side(lambda: 7.0 * n, n))
    seen = []

    def train(net, iterations, log_every, learning_rate, threads, seed):
        seen.append((net, iterations, log_every, learning_rate, threads))
        return 0.0

    torch = SimpleNamespace(network=lambda hidden_size, seed: f"H={hidden_size}", train=train)
    rows, notes, *_ = tutorial.iteration_findings(torch, 4, torch_iterations=3, repeats=2)
    assert not notes
    assert [(row.ours.name, row.other.name, row.wanted.bound) for row in rows] == [
        (ours, other, bound)
        for ours in ("ours, chunks of 100", "ours, one chunk")
        for other, bound in (("Flax", 6), ("PyTorch, 1 thread", 75), ("PyTorch, 2 threads", 75))
    ]
    assert [report.ratios(row).tolist() for row in rows[::3]] == [[7.0, 7.0], [14.0, 14.0]]
    assert seen == [("H=16", 3, 100, 0.01, threads) for _ in range(3) for threads in (1, 2)]


def test_traces_change_nothing_but_what_is_recorded():
    parts, key = parts_of(tutorial.CONFIG), jax.random.key(0)
    optimizer = parts.optimizer(0.01)
    run = {}
    for trace in (traces.trace_nothing, traces.traces.trace_states):
        state = traces.training.init_state(parts.model, optimizer, key, 1, 1)
        run[trace] = traces.training.train_chunk(
            parts.objective, optimizer, parts.sample, state, key, 5, trace
        )
    (bare, none), (traced, metrics) = run.values()
    assert none.trace == ()
    assert metrics.trace.shape == (5, 49)
    for a, b in zip(jax.tree.leaves(bare.params), jax.tree.leaves(traced.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_rows_of_the_traces_put_on_over_off(monkeypatch):
    monkeypatch.setattr(traces, "SHAPES", (traces.Shape(3, 2, 5, cost=2),))
    asked = []

    def training(shape, trace, iterations):
        asked.append(iterations)
        return Side(lambda: 3.0 if trace is traces.traces.trace_states else 2.0, iterations)

    monkeypatch.setattr(traces, "training_side", training)
    (row,), *_ = traces.findings(iterations=8, repeats=4)
    np.testing.assert_array_equal(report.ratios(row), [1.5] * 4)
    assert asked == [4, 4]
    assert row.wanted == ("<=", 1.03)
    assert not report.is_met(row)


def test_a_shape_of_the_traces_trains_what_it_says(monkeypatch):
    asked = []

    def train_chunk(objective, optimizer, sample, state, key, iterations, trace):
        asked.append((jax.eval_shape(sample, key).inputs.shape, state.carry.shape, iterations))

    monkeypatch.setattr(traces.training, "train_chunk", train_chunk)
    traces.training_side(traces.Shape(4, 3, 7, cost=1), traces.trace_nothing, 2).run()
    assert asked == [((7, 3, 1), (3, 4), 2)]


# PyTorch, there and not there.


def test_without_torch_its_rows_are_left_out_with_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmarks.pytorch", raising=False)
    config = benchmark.BenchmarkConfig(
        sections="tutorial", iterations=3, repeats=2, workdir=str(tmp_path / "run")
    )
    result = benchmark.run(config)
    (line,) = result.notes
    assert "rnn_jax[benchmark]" in line
    assert capsys.readouterr().err.count("PyTorch") == 2  # both in that line
    assert [row.other.name for row in result.rows] == ["Flax", "Flax"]
    assert list(result.differences) == ["Flax"]

    files = {path.name for path in result.workdir.iterdir()}
    assert {"config.json", "results.json", "table.md", "ratios.png"} <= files
    found = json.loads((result.workdir / "results.json").read_text())
    assert found["notes"] == [line]
    assert [len(row["ratio"]["pairs"]) for row in found["rows"]] == [2, 2]
    assert found["gradient_differences"]["Flax"]["cell.W"] < gradients.TOLERANCE
    assert found["machine"]["packages"]["jax"] == jax.__version__
    table = (result.workdir / "table.md").read_text()
    assert table.startswith(report.table(result.rows))
    assert table.endswith(line)
    assert json.loads((result.workdir / "config.json").read_text())["iterations"] == 3


def test_pytorch_computes_our_gradient():
    pytest.importorskip("torch")
    torch, _ = benchmark.load_pytorch()
    example = gradients.example(H)
    given = jax.tree.leaves(torch.gradients(*example))
    for found, wanted in zip(given, reference_gradients(example), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_pytorch_loop_learns():
    pytest.importorskip("torch")
    torch, _ = benchmark.load_pytorch()
    net = torch.network(H, seed=0)
    assert net.layer.weight_hh_l0.std().item() == pytest.approx(1e-3, rel=0.3)
    first = torch.train(net, 1, 100, 0.01, threads=1, seed=0)
    assert first > 0.1
    assert torch.train(net, 300, 100, 0.01, threads=2, seed=0) < 0.03
    assert torch.torch.get_num_threads() == 2


# Processes.


def test_each_cold_process_has_an_empty_cache_and_the_warm_one_its_leavings(monkeypatch):
    seen = []

    def seconds_of(command, environment):
        cache = Path(environment["XDG_CACHE_HOME"])
        seen.append((command, cache, cache.exists()))
        cache.mkdir(exist_ok=True)
        return {1: 9.0, 0: 3.0}[len(seen) % 2]

    monkeypatch.setattr(process, "seconds_of", seconds_of)
    arguments = ("experiments.sine", "--flagfile=x/y.flags")
    (cold, warm), *_ = process.process_findings(arguments, Wanted("<=", 6), repeats=2)
    np.testing.assert_array_equal(cold.ours.seconds, [9.0, 9.0])
    np.testing.assert_array_equal(warm.ours.seconds, [3.0, 3.0])
    assert cold.wanted is None
    assert report.is_met(warm)
    assert [full for _, _, full in seen] == [False, True, False, True]
    assert seen[0][1] == seen[1][1] != seen[2][1]
    assert all(command[1:4] == ("-m", *arguments) for command, _, _ in seen)
    assert len({command[-1] for command, _, _ in seen}) == 4


def test_a_process_is_run_and_its_failure_told():
    assert process.seconds_of([sys.executable, "-c", "import time; time.sleep(0.2)"], {}) >= 0.2
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(ValueError, match="ended with 1: no such thing"):
        process.seconds_of(command, {})


compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
C_PROGRAM = '#include <stdio.h>\nint main(){printf("%s\\n");return 0;}\n'


@compiler
def test_the_ratio_to_a_c_program_is_taken_from_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "ours_in_chunks", lambda n, folder: Side(lambda: 4.5e-6 * n, n))
    source = tmp_path / "limit.c"
    source.write_text(C_PROGRAM % "C limit: 1.50 us/iter loss 3e-1")
    (row,), notes, *_ = process.limit_findings(str(source), iterations=10, repeats=2)
    np.testing.assert_allclose(report.ratios(row), [3.0, 3.0])
    assert not notes


@compiler
@pytest.mark.parametrize(
    ("content", "message"),
    [(C_PROGRAM % "hello", "printed 'hello'; 'C limit: X us/iter'"), ("int", "cannot build it")],
)
def test_a_c_program_of_no_use_is_named(tmp_path, content, message):
    source = tmp_path / "limit.c"
    source.write_text(content)
    with pytest.raises(ValueError, match=message):
        process.limit_findings(str(source), iterations=1, repeats=1)


def test_without_a_compiler_the_yardstick_is_left_out(monkeypatch):
    monkeypatch.setattr(process.shutil, "which", lambda name: None)
    rows, (line,), *_ = process.limit_findings("limit.c", iterations=1, repeats=1)
    assert not rows
    assert "no C compiler" in line
    assert process.limit_findings("", iterations=1, repeats=1) == report.Findings([], [])


# Settings.


@pytest.mark.parametrize("sections", ["", ",", "tutorial,tutorail"])
def test_unknown_sections_are_refused(sections):
    config = benchmark.BenchmarkConfig(sections=sections)
    with pytest.raises(options.UsageError, match="take some of tutorial, compile, compile_step"):
        benchmark.run(config)


def test_a_missing_c_file_is_refused_before_anything_starts(tmp_path):
    config = benchmark.BenchmarkConfig(
        limit_source=str(tmp_path / "none.c"), workdir=str(tmp_path / "run")
    )
    with pytest.raises(options.UsageError, match="give a C file that exists"):
        benchmark.run(config)
    assert not (tmp_path / "run").exists()


def test_torch_runs_no_more_iterations_than_asked_for():
    config = benchmark.BenchmarkConfig(iterations=7, torch_iterations=1000)
    assert benchmark.torch_iterations(config) == 7
    assert benchmark.torch_iterations(dataclasses.replace(config, torch_iterations=5)) == 5


def test_sections_run_in_the_order_given(monkeypatch, tmp_path):
    ran = []

    def section(name):
        def measure(config, torch):
            ran.append(name)
            return [report.Findings([Row(name, times(1.0))], [f"{name} left out"])]

        return measure

    for name in ("traces", "process"):
        monkeypatch.setitem(benchmark.SECTIONS, name, section(name))
    monkeypatch.setattr(benchmark, "load_pytorch", lambda: (None, []))
    monkeypatch.setattr(benchmark, "check_gradients", lambda torch: {})
    result = benchmark.run(
        benchmark.BenchmarkConfig(sections="process, traces", workdir=str(tmp_path))
    )
    assert ran == [row.what for row in result.rows] == ["process", "traces"]
    assert result.notes == ["process left out", "traces left out"]
    # Nothing to draw: no row is a comparison.
    assert not (tmp_path / "ratios.png").exists()


def test_what_is_found_is_on_disk_as_soon_as_it_is(monkeypatch, tmp_path):
    def stopped(config, torch):
        yield report.Findings([Row("first", times(1.0), at={"H": 16})], [])
        figures = {"it": benchmark.plots.speed_ratios(["a"], [2.0], [1.0], [3.0], [1.0], "t")}
        yield report.Findings([], [], [Number("mean", 2.0)], figures)
        raise KeyboardInterrupt

    monkeypatch.setitem(benchmark.SECTIONS, "grid", stopped)
    monkeypatch.setattr(benchmark, "load_pytorch", lambda: (None, []))
    monkeypatch.setattr(benchmark, "check_gradients", lambda torch: {})
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(benchmark.BenchmarkConfig(sections="grid", workdir=str(tmp_path)))
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(row["what"], row["at"]) for row in found["rows"]] == [("first", {"H": 16})]
    assert [number["value"] for number in found["numbers"]] == [2.0]
    assert "| mean | 2.00 | - |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "it.png").stat().st_size > 5000


def test_the_full_flags_ask_for_every_section_but_those_with_a_command_of_their_own():
    full = config_from(FLAGS / "benchmark.flags", benchmark.BenchmarkConfig)
    sweep = config_from(FLAGS / "benchmark_sweep.flags", benchmark.BenchmarkConfig)
    assert set(benchmark.sections_of(sweep)) == benchmark.ON_EVERY_CORE
    asked = benchmark.sections_of(full)
    assert set(benchmark.SECTIONS) - set(asked) == benchmark.ON_EVERY_CORE | {"limit"}
    sizes = {name: list(axis) for name, axis in benchmark.grid_axes(full)._asdict().items()}
    assert sizes == {
        "cells": ["elman", "lstm", "gru"],
        "hidden_sizes": [16, 64, 128, 256, 512],
        "batch_sizes": [1, 32, 128],
        "num_steps": [50, 200, 1000],
    }
    folders = [
        config_from(file, benchmark.BenchmarkConfig).workdir
        for file in FLAGS.glob("benchmark*.flags")
    ]
    assert len(folders) == len(set(folders)) == 4


def test_help_lists_the_flags():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", "--help"],
        cwd=process.ROOT,
        capture_output=True,
        text=True,
    )
    assert "--limit_source" in done.stdout
    assert "--torch_iterations" in done.stdout
