"""The grid of the benchmark: same gradients on all sides, and rows that say who was timed."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import contenders, grid, report
from experiments.benchmarks.contenders import Agreement, Shape
from experiments.benchmarks.report import Row
from experiments.benchmarks.timing import Side, Times
from experiments.cli.options import UsageError

SHAPE = Shape("elman", 4, 2, 3)


def test_a_gradient_that_differs_is_named_and_nothing_is_timed():
    given = contenders.problem(SHAPE)
    right, other = contenders.ours(given), contenders.plain(given)
    told = contenders.agreement({"ours": right, "plain": other}, given)
    assert told["ours"].difference == 0
    assert told["plain"].difference < 1e-5
    assert 0 < told["plain"].seconds < 1
    wrong = other._replace(
        gradients=lambda params: jax.tree.map(lambda g: 1.001 * g, other.gradients(params))
    )
    with pytest.raises(ValueError, match=r"gradients of Flax differ from those of ours by 0\.001"):
        contenders.agreement({"ours": right, "Flax": wrong}, given)


def test_a_step_updates_as_the_gradient_says():
    """Adam's first step moves every weight by the learning rate, against its gradient's sign."""
    given = contenders.problem(SHAPE)
    for make in (contenders.ours, contenders.plain, contenders.flax):
        contender = make(given)
        start = contender.optimizer.init(contender.params)
        new, _, _ = jax.jit(contender.step)(contender.params, start)
        moved = np.concatenate(
            [
                np.ravel(b - a)
                for a, b in zip(
                    jax.tree.leaves(contender.params), jax.tree.leaves(new), strict=True
                )
            ]
        )
        np.testing.assert_allclose(np.abs(moved), contenders.LEARNING_RATE, rtol=2e-2)


@pytest.mark.parametrize(
    ("seconds", "steps"), [(1e-6, 500), (1e-3, 50), (0.05, 4), (0.99, 4), (1.01, 1), (9, 1)]
)
def test_a_run_has_four_steps_or_more_unless_one_takes_a_second(seconds, steps):
    assert contenders.steps_in_a_run(seconds) == steps


AXES = grid.Axes(["elman", "gru"], [3, 5], [1], [4, 8])


def times(name, *seconds):
    return Times(name, np.array(seconds))


def measured(torch, given, repeats):
    """A row each of two other sides; the ratio tells where it was measured: H + T / 10."""
    _, hidden_size, _, num_steps = given.shape
    at = contenders.axes_of(given.shape)
    ratio = hidden_size + num_steps / 10
    return [
        Row(f"{given.shape}: {name}", times("ours", 1.0), times(name, factor * ratio), at=at)
        for name, factor in (("plain scan", 1.0), ("Flax", 0.1))
    ]


def test_points_come_one_by_one_then_means_and_the_figure(monkeypatch):
    monkeypatch.setattr(grid, "problem", lambda shape: SimpleNamespace(shape=shape))
    monkeypatch.setattr(grid, "point", measured)
    monkeypatch.setattr(grid.plots, "ratio_maps", lambda *given: "figure")
    *points, last = grid.findings(None, AXES, repeats=2)
    assert [[row.what for row in part.rows] for part in points[:2]] == [
        ["elman, H 3, B 1, T 4: plain scan", "elman, H 3, B 1, T 4: Flax"],
        ["elman, H 3, B 1, T 8: plain scan", "elman, H 3, B 1, T 8: Flax"],
    ]
    assert len(points) == 8
    assert points[-1].rows[0].at == {"cell": "gru", "H": 5, "B": 1, "T": 8}
    mean = (3.4 * 3.8 * 5.4 * 5.8) ** 0.25
    assert [(n.value, n.at) for n in last.numbers] == [
        (pytest.approx(factor * mean), {"other": name, **cell})
        for name, factor in (("plain scan", 1), ("Flax", 0.1))
        for cell in ({}, {"cell": "elman"}, {"cell": "gru"})
    ]
    wanted = [number for number in last.numbers if number.wanted]
    assert [report.is_met(number) for number in wanted] == [True, False]
    assert last.figures == {"grid": "figure"}


def test_the_figure_has_each_ratio_in_its_place(monkeypatch):
    monkeypatch.setattr(grid, "problem", lambda shape: SimpleNamespace(shape=shape))
    monkeypatch.setattr(grid, "point", measured)
    drawn = []
    monkeypatch.setattr(grid.plots, "ratio_maps", lambda *given: drawn.append(given))
    list(grid.findings(None, AXES, repeats=2))
    ((ratios, others, cells, *_, title),) = drawn
    assert (others, cells) == (["plain scan", "Flax"], ["elman", "gru"])
    # Of B = 1: T down, H across.
    np.testing.assert_allclose(ratios[0, 1, 0], [[3.4, 5.4], [3.8, 5.8]])
    np.testing.assert_allclose(ratios[1, 0, 0], [[0.34, 0.54], [0.38, 0.58]])
    assert "50% of the points" in title


def test_a_row_for_every_side_of_a_point(monkeypatch):
    monkeypatch.setattr(contenders, "MOST_STEPS", 4)
    rows = grid.point(None, contenders.problem(SHAPE), repeats=2)
    assert [row.what for row in rows] == [
        "elman, H 4, B 2, T 3: plain scan",
        "elman, H 4, B 2, T 3: Flax",
    ]
    assert all(row.at == {"cell": "elman", "H": 4, "B": 2, "T": 3} for row in rows)
    assert all(len(row.ours.seconds) == 2 for row in rows)


def point_of_paces(monkeypatch, ours, pytorch, repeats=9):
    """The rows of a point whose gradients take so long, and how often each side was run."""
    runs = []

    def agreement(sides, given, torch):
        return {**dict.fromkeys(sides, Agreement(ours, 0.0)), "PyTorch": Agreement(pytorch, 0.0)}

    def side(seconds):
        def of(*given):
            steps = given[-1]
            return Side(lambda: runs.append(steps) or seconds * steps, steps)

        return of

    monkeypatch.setattr(grid, "agreement", agreement)
    monkeypatch.setattr(grid, "side_of", side(ours))
    monkeypatch.setattr(grid, "torch_side", side(pytorch))
    return grid.point("torch", contenders.problem(SHAPE), repeats), runs


def test_pytorch_takes_as_many_steps_as_its_own_pace_allows(monkeypatch):
    rows, runs = point_of_paces(monkeypatch, 1e-3, 5e-3)
    assert runs == [50, 50, 50, 10] * 10
    assert rows[-1].what.endswith("PyTorch")
    np.testing.assert_allclose(report.ratios(rows[-1]), [5.0] * 9)


@pytest.mark.parametrize(
    ("ours", "pytorch", "rounds", "warm_up"),
    # Runs of 4 steps up to a second each, then of 1; 1.5 s for each of 4 sides.
    [(0.05, 0.05, 8, 1), (0.9, 0.9, 3, 1), (2.5, 2.9, 3, 1), (2.5, 3.1, 2, 0), (9.0, 2.0, 2, 0)],
)
def test_a_point_ends_with_its_budget_after_a_few_rounds(
    monkeypatch, ours, pytorch, rounds, warm_up
):
    rows, runs = point_of_paces(monkeypatch, ours, pytorch)
    assert len(rows[0].ours.seconds) == rounds
    assert len(runs) == 4 * (rounds + warm_up)


def test_the_geometric_mean_is_of_the_median_ratios():
    rows = [
        Row("a", Times("ours", np.ones(3)), Times("other", np.array([2.0, 8.0, 9.0]))),
        Row("b", Times("ours", np.ones(3)), Times("other", np.array([1.0, 2.0, 2.0]))),
    ]
    assert grid.geometric_mean(rows) == pytest.approx(4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"cells": "rnn"}, "--cells=rnn"), ({"hidden_size": "0"}, "--hidden_size=0")],
)
def test_wrong_axes_are_refused(changes, said, tmp_path):
    config = benchmark.BenchmarkConfig(sections="grid", workdir=str(tmp_path), **changes)
    with pytest.raises(UsageError, match=said):
        benchmark.run(config)
