"""Figures of a benchmark, read back."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rnn_jax import plots

RATIOS = np.array([0.1, 0.5, 1.0, 2.0, 30.0, np.nan]).reshape(1, 1, 1, 2, 3)


def maps(ratios=RATIOS, others=("Flax",), cells=("elman",)):
    return plots.ratio_maps(ratios, others, cells, [32], [50, 200], [16, 64, 128], "finding")


def test_ratios_stand_in_their_cells_and_what_was_not_measured_is_left_blank():
    axes = maps().axes[0]
    written = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "0.10", (1, 0): "0.50", (2, 0): "1.00", (0, 1): "2.00", (1, 1): "30"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "64", "128"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B 32, T 50", "B 32, T 200"]


def test_colours_are_logarithmic_about_1_and_blue_where_ours_is_faster():
    image = maps().axes[0].images[0]
    at = {ratio: np.array(image.cmap(image.norm(ratio))[:3]) for ratio in (0.2, 1.0, 5.0)}
    assert image.norm(1.0) == 0.5
    assert image.norm(5.0) == pytest.approx(1 - image.norm(0.2))
    assert at[1.0].min() > 0.9
    (red, _, blue), (slow_red, _, slow_blue) = at[5.0], at[0.2]
    assert blue > red
    assert slow_red > slow_blue


def test_numbers_are_white_on_deep_colours():
    colours = {text.get_text(): to_rgb(text.get_color()) for text in maps().axes[0].texts}
    assert colours["30"] == colours["0.10"] == to_rgb("white")
    assert colours["1.00"] == colours["2.00"] == to_rgb("black")


def test_each_map_says_whose_it_is_and_its_geometric_mean(tmp_path):
    ratios = np.full((2, 3, 1, 2, 3), 2.0)
    ratios[1, 2] = np.nan
    ratios[0, 1, 0] = [[1, 1, 1], [8, 8, 8]]
    figure = maps(ratios, ["plain scan", "Flax"], ["elman", "lstm", "gru"])
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles == [
        "elman / plain scan: mean 2.00",
        "lstm / plain scan: mean 2.83",
        "gru / plain scan: mean 2.00",
        "elman / Flax: mean 2.00",
        "lstm / Flax: mean 2.00",
        "gru / Flax: not measured",
    ]
    *_, lower_left, _, _, bar = figure.axes
    assert lower_left.get_xlabel() == "hidden size H"
    assert "faster" in bar.get_ylabel()
    figure.savefig(tmp_path / "maps.png")


def test_scaling_draws_ranges_and_what_to_compare_with(tmp_path):
    x = np.array([1.0, 10.0])
    curve = plots.Curve("ours", x, np.array([2.0, 3.0]), np.array([1.0, 2.5]), np.array([4.0, 9.0]))
    named, nameless = plots.Curve("line", x, x), plots.Curve("", x, 2 * x)
    figure = plots.scaling([curve], [named, nameless], "x", "y", "finding")
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"ours", "line"}
    (bars,) = axes.containers
    ranges = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ranges, [[1.0, 4.0], [2.5, 9.0]])
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == (
        "finding",
        "x",
        "y",
    )
    figure.savefig(tmp_path / "scaling.png")
