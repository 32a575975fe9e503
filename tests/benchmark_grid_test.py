"""The grid of the benchmark: same gradients on all sides, and rows that say who was timed."""

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import grid
from experiments.benchmarks.report import Row
from experiments.benchmarks.timing import Times
from experiments.options import UsageError

SHAPE = grid.Shape("elman", 4, 2, 3)


def test_a_gradient_that_differs_is_named_and_nothing_is_timed():
    given = grid.problem(SHAPE)
    right, other = grid.ours(given), grid.plain(given)
    grid.check_agreement({"ours": right, "plain": other}, given, None)
    wrong = other._replace(
        gradients=lambda params: jax.tree.map(lambda g: 1.001 * g, other.gradients(params))
    )
    with pytest.raises(ValueError, match=r"gradients of Flax differ from ours by 0\.001"):
        grid.check_agreement({"ours": right, "Flax": wrong}, given, None)


def test_a_step_updates_as_the_gradient_says():
    """Adam's first step moves every weight by the learning rate, against its gradient's sign."""
    given = grid.problem(SHAPE)
    for make in (grid.ours, grid.plain, grid.flax):
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
        np.testing.assert_allclose(np.abs(moved), grid.LEARNING_RATE, rtol=2e-2)


def test_a_row_for_every_side_and_point(monkeypatch):
    monkeypatch.setattr(grid, "steps_in_a_run", lambda shape: 2)
    found = grid.findings(None, ["elman"], [3], [1], [4], repeats=2)
    assert [row.what for row in found.rows] == [
        "elman, H 3, B 1, T 4: plain scan",
        "elman, H 3, B 1, T 4: Flax",
    ]
    assert all(len(row.ours.seconds) == 2 for row in found.rows)
    assert found.notes[0].startswith("geometric mean against plain scan: ")


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
