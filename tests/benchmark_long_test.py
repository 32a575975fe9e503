"""The benchmark's long sequences, peaks of memory, compilation and numbers of networks."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import benchmark
from experiments.benchmarks import (
    compiling,
    contenders,
    lengths,
    long,
    peak,
    process,
    report,
    sweeps,
)
from experiments.benchmarks.contenders import Agreement, Shape
from experiments.benchmarks.timing import Side, Times

SMALL = Shape("elman", 3, 1, 10)


def test_each_round_compiles_the_step_anew():
    traced = []

    def make(given):
        def step(params, opt_state):
            traced.append(given)
            return params + 1, opt_state, params

        return contenders.Contender(jnp.ones(2), step, lambda params: params, optax.sgd(0.1))

    side = compiling.compilation(make, "given")
    assert side.run() > 0
    assert side.run() > 0
    assert traced == ["given", "given"]


def test_rows_of_compilation_put_ours_over_the_plain_scan(monkeypatch):
    seconds = {contenders.ours: 3.0, contenders.plain: 2.0}
    monkeypatch.setattr(compiling, "SHAPES", (SMALL,))
    monkeypatch.setattr(compiling, "compilation", lambda make, given: Side(lambda: seconds[make]))
    ((row,), *_), *rest = compiling.findings(repeats=2)
    assert not rest
    np.testing.assert_allclose(report.ratios(row), [1.5, 1.5])
    assert row.at == {"cell": "elman", "H": 3, "B": 1, "T": 10}
    assert report.is_met(row) is False


def test_lengths_are_compared_by_the_time_of_a_time_step(monkeypatch):
    steps = {"elman": (4e-6, 2e-6, 2e-6, 5e-6), "lstm": (8e-6, 4e-6, 4e-6, 4e-6)}

    def per_time_step(cell, repeats):
        return [
            Times(f"T {length:,}", np.full(repeats, seconds))
            for length, seconds in zip(lengths.NUM_STEPS, steps[cell], strict=True)
        ]

    monkeypatch.setattr(lengths, "per_time_step", per_time_step)
    elman, lstm, last = lengths.findings(repeats=2)
    for part, ratio, met in ((elman, 2.5, False), (lstm, 1.0, True)):
        assert [row.at["T"] for row in part.rows] == [100, 1_000, 10_000, 100_000, 100_000]
        np.testing.assert_allclose(report.ratios(part.rows[-1]), [ratio, ratio])
        assert report.is_met(part.rows[-1]) is met
    axes = last.figures["lengths"].axes[0]
    drawn = [container.lines[0].get_ydata() for container in axes.containers]
    np.testing.assert_allclose(drawn[0], [4e-4, 2e-3, 2e-2, 0.5])
    dashed = axes.lines[0].get_ydata()
    # Of slope 1, through the longest.
    np.testing.assert_allclose(dashed, [5e-4, 5e-3, 5e-2, 0.5])


def test_a_length_is_timed_per_time_step(monkeypatch):
    asked = []

    def side_of(contender, steps):
        asked.append((contender.num_steps, steps))
        return Side(lambda: 0.02 * steps, steps)

    monkeypatch.setattr(lengths, "NUM_STEPS", (5, 10))
    monkeypatch.setattr(lengths, "problem", lambda shape: shape)
    monkeypatch.setattr(lengths, "ours", lambda given: given)
    monkeypatch.setattr(lengths, "side_of", side_of)
    monkeypatch.setattr(lengths, "pace", lambda run: (run(), None))
    short, longer = lengths.per_time_step("elman", repeats=2)
    assert asked == [(5, 1), (5, 4), (10, 1), (10, 4)]
    np.testing.assert_allclose(short.seconds, 0.02 / 5)
    np.testing.assert_allclose(longer.seconds, 0.02 / 10)


@pytest.mark.slow
def test_a_problem_in_segments_has_the_same_gradient_and_another_program():
    given = contenders.problem(SMALL)
    segmented = contenders.in_segments(given, 4)
    sides = {"direct": contenders.ours(given), "in segments": contenders.ours(segmented)}
    assert segmented.model.cell.segment_length == 4
    assert contenders.agreement(sides, given)["in segments"].difference < 1e-5


def test_a_long_sequence_is_told_by_time_difference_and_memory(monkeypatch):
    shape = SMALL._replace(num_steps=100)
    seconds = iter((2.0, 3.0))

    def agreement(sides, given):
        return {name: Agreement(2.0, 1e-6) for name in sides}

    def side_of(contender, steps):
        took = next(seconds)
        return Side(lambda: took, steps)

    def of_a_process(side, shape, segment_length=0):
        return {0: 2_000_000_000, 10: 500_000_000}[segment_length]

    monkeypatch.setattr(long, "SHAPES", (shape,))
    monkeypatch.setattr(long, "agreement", agreement)
    monkeypatch.setattr(long, "side_of", side_of)
    monkeypatch.setattr(peak, "of_a_process", of_a_process)
    ((row,), _, numbers, _), *rest = long.findings(repeats=2)
    assert not rest
    np.testing.assert_allclose(report.ratios(row), [1.5, 1.5])
    assert "in segments of 10 / direct" in row.what
    assert [(number.value, report.is_met(number)) for number in numbers] == [
        (1e-6, True),
        (2.0, False),
        (0.5, True),
    ]


# Peak memory.


MEASURE_AN_ARRAY = """
import numpy as np
from experiments.benchmarks import peak
before = peak.highest_so_far()
array = np.ones(25_000_000)
print(peak.highest_so_far() - before)
"""


@pytest.mark.slow
def test_the_peak_of_a_process_is_its_own():
    """An array raises the peak by its size, and not that of a process started beside it."""
    found = int(process.output_of([sys.executable, "-c", MEASURE_AN_ARRAY], os.environ))
    assert 200e6 < found < 210e6
    array = np.ones(100_000_000)
    assert 0 < peak.of_a_process("ours", Shape("elman", 4, 1, 3)) < 0.5 * array.nbytes


@pytest.mark.slow
def test_a_larger_network_has_a_higher_peak():
    """Of a plain scan over T B H = 13e6, the states alone are 52 MB."""
    small, large = (
        peak.of_a_process("plain", Shape("elman", 128, 32, num_steps)) for num_steps in (10, 3200)
    )
    assert large - small > 4 * 3190 * 32 * 128


def test_memory_has_a_number_for_every_side_and_none_of_pytorchs_without_it(monkeypatch):
    monkeypatch.setattr(peak, "SHAPES", (SMALL,))
    monkeypatch.setattr(peak, "of_a_process", lambda side, shape, length: 250_000_000)
    (_, without), (_, with_torch) = peak.findings(None), peak.findings("torch")
    assert [number.at["side"] for number in without.numbers] == ["ours", "plain scan", "Flax"]
    assert with_torch.numbers[-1].at == {**contenders.axes_of(SMALL), "side": "PyTorch"}
    assert {(number.value, number.unit) for number in with_torch.numbers} == {(0.25, "GB")}


# Numbers of networks.


def test_networks_are_counted_with_their_iterations(monkeypatch):
    monkeypatch.setattr(sweeps, "one_by_one", lambda count: Side(lambda: 8.0 * count, count))
    monkeypatch.setattr(sweeps, "swept", lambda count, mesh: Side(lambda: 16.0, count))
    found = sweeps.by_number(repeats=2)
    seconds = [16.0 / count / sweeps.NUM_STEPS for count in (1, 10, 100, 1000)]
    np.testing.assert_allclose([row.ours.seconds[0] for row in found.rows], seconds)
    assert [row.at["networks"] for row in found.rows] == [1, 10, 100, 1000]
    np.testing.assert_allclose([report.ratios(row)[0] for row in found.rows], [0.5, 5, 50, 500])
    axes = found.figures["networks"].axes[0]
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(), 1e6 * np.array(seconds))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1e6 * 8.0 / sweeps.NUM_STEPS)


def test_a_sweep_of_some_networks_trains_so_many(monkeypatch):
    asked = []

    def sweep(fit, rates, keys, mesh):
        asked.append((len(rates), len(keys), mesh))

    monkeypatch.setattr(sweeps.sweep, "sweep", sweep)
    side = sweeps.swept(7, "mesh")
    side.run()
    assert asked == [(7, 7, "mesh")]
    assert side.iterations == 7
    loss, trace = jax.eval_shape(sweeps.one_network, *(rows[0] for rows in sweeps.networks(1)))
    assert loss.shape == (sweeps.NUM_STEPS,)
    assert trace.shape == (sweeps.NUM_STEPS, 49)


@pytest.mark.parametrize(
    ("sections", "devices"), [("sweep", True), ("networks, sweep", True), ("sweep,grid", False)]
)
def test_sweeps_by_themselves_take_a_device_for_each_core(monkeypatch, sections, devices):
    asked = []
    monkeypatch.setattr(benchmark.sharding, "use_cpu_devices", asked.append)
    monkeypatch.setattr(benchmark, "use_compilation_cache", lambda enabled: None)
    monkeypatch.setattr(
        benchmark, "run", lambda config: benchmark.Result([], [], {}, config.workdir)
    )
    benchmark.main(benchmark.BenchmarkConfig(sections=sections))
    assert asked == ([0] if devices else [])
