"""Figures of networks that learn, read back."""

import numpy as np

from rnn_jax import plots

RNG = np.random.default_rng(0)
CURVES = np.exp(RNG.normal(size=(4, 6)))


def learned(curves=CURVES):
    count = len(curves)
    return plots.Learned(
        curves,
        np.arange(count) % 2 == 0,
        RNG.normal(size=(count, 8)),
        RNG.normal(size=(count, 8)),
    )


def test_learning_curves_have_every_network_their_median_and_chance():
    curves = CURVES.copy()
    curves[0, 4:] = np.nan  # diverged
    figure = plots.learning_curves(
        {
            "T = 5": {"tanh": learned(curves), "lstm": learned()},
            "T = 9": {"tanh": learned(), "lstm": learned()},
        },
        50,
        {"T = 5": 1.5, "T = 9": 0.5},
        "finding",
    )
    first, second = figure.axes
    drawn = [line.get_ydata() for line in first.lines]
    np.testing.assert_array_equal(first.lines[0].get_xdata(), 50 * np.arange(1, 7))
    assert any(np.array_equal(y, curves[0], equal_nan=True) for y in drawn)
    assert any(len(y) == 6 and np.allclose(y[4:], np.median(curves[1:, 4:], axis=0)) for y in drawn)
    assert [1.5, 1.5] in [list(y) for y in drawn]
    assert [0.5, 0.5] in [list(line.get_ydata()) for line in second.lines]
    assert first.get_yscale() == "log"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["tanh", "lstm", "without memory"]


def test_curves_beside_a_baseline_of_zero_are_drawn_whole():
    figure = plots.learning_curves({"a": {"gru": learned()}}, 50, {"a": 0.0}, "finding")
    low, high = figure.axes[0].get_ylim()
    assert low < CURVES.min() < CURVES.max() < high


def test_profiles_start_grey_and_end_in_the_colour_of_their_success():
    networks = learned()
    axes = plots.start_and_end({"tanh": networks}, "finding").axes[0]
    for number, solved in enumerate(networks.solved):
        start, end = axes.lines[2 * number : 2 * number + 2]
        np.testing.assert_allclose(end.get_ydata(), networks.end[number] - networks.end[number, -1])
        np.testing.assert_allclose(
            start.get_ydata(), networks.start[number] - networks.start[number, -1]
        )
        assert end.get_color() == (plots.style.BLUE if solved else plots.style.RED)


def test_the_table_says_each_share_and_its_note():
    figure = plots.success_table(
        ["none", "clip"], ["T = 5"], np.array([[0.0], [0.75]]), [["a"], ["b"]], "finding"
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0%", "a", "75%", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none", "clip"]


def test_foretold_lengths_without_end_are_drawn_at_the_edge():
    figure = plots.foretold(
        np.array([30.0, np.inf]), np.array([20, 0]), ["gaussian", "orthogonal"], 50, "finding"
    )
    points = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    np.testing.assert_array_equal(points["gaussian"], [[30, 20]])
    np.testing.assert_array_equal(points["orthogonal"], [[1000, 5]])
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
