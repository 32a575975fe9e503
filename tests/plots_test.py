"""Figures, read back: titles, labels, units, and that what is drawn is what was given."""

import numpy as np
import pytest

from rnn_jax import plots

RNG = np.random.default_rng(0)
NORMS = np.exp(RNG.normal(size=(40, 12)) - 3)
FLOW = plots.Flow("gain 1", RNG.normal(size=(20, 3)).cumsum(axis=0), 0.1, -0.2, (-0.5, 0.5), "fine")
FIGURES = {
    "free_run": lambda: plots.free_run(np.arange(10.0), np.ones(10), np.zeros(9), "t"),
    "loss": lambda: plots.loss_curve(np.exp(RNG.normal(size=50)), "t"),
    "heatmap": lambda: plots.gradient_heatmap(NORMS, "t", boundary=4),
    "profiles": lambda: plots.gradient_profiles({"start": NORMS[0], "end": NORMS[-1]}, "t"),
    "parameters": lambda: plots.parameter_heatmaps({"U": NORMS, "W": NORMS}, "t"),
    "flow": lambda: plots.flow_profile(FLOW, "t"),
    "comparison": lambda: plots.flow_comparison([FLOW, FLOW], "t"),
    "credit": lambda: plots.credit_heatmap(np.where(np.tri(9) > 0, -1.0, -np.inf), "t"),
    "summands": lambda: plots.summand_profile({"U": NORMS[0], "W": NORMS[1]}, "t"),
    "lags": lambda: plots.singular_values_by_lag(np.arange(5), RNG.normal(size=(5, 3)), "t", 0.1),
    "truncation": lambda: plots.truncation_curve(np.arange(5), np.ones(5), np.ones(5), "t"),
    "eigenvalues": lambda: plots.eigenvalue_plane(RNG.normal(size=5) + 1j, "t"),
    "exponents": lambda: plots.exponent_spectrum(-np.arange(5.0), "t"),
    "speed": lambda: plots.speed_ratios(["a"], [2.0], [1.5], [3.0], [1.0], "t"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_has_labels_and_the_figure_a_title_and_it_renders(name, tmp_path):
    figure = FIGURES[name]()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert all(axes.get_xlabel() for axes in panels)
    assert panels[0].get_ylabel() or name == "speed"
    assert any(axes.get_title(loc="left") for axes in panels)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_the_heat_map_holds_the_logarithms_time_upward_and_says_its_unit():
    figure = plots.gradient_heatmap(NORMS, "finding")
    axes, bar = figure.axes
    drawn = axes.images[0].get_array()
    np.testing.assert_allclose(drawn, np.log(NORMS).T)
    assert axes.images[0].origin == "lower"
    assert "nats" in bar.get_ylabel()
    assert axes.get_title(loc="left") == "finding"
    assert axes.images[0].get_cmap().name == "viridis"


def test_an_exact_zero_is_left_blank_not_drawn_as_a_number():
    norms = NORMS.copy()
    norms[3, 5] = 0
    figure = plots.gradient_heatmap(norms, "t")
    drawn = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert np.isnan(drawn[5, 3])
    assert np.isfinite(np.delete(drawn.ravel(), 5 * 40 + 3)).all()


def test_the_loss_axis_is_logarithmic_and_every_iteration_is_drawn():
    loss = np.exp(RNG.normal(size=30))
    axes = plots.loss_curve(loss, "t").axes[0]
    assert axes.get_yscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), loss)


def test_the_predicted_lines_have_their_slopes_and_start_at_the_last_step():
    axes = plots.flow_profile(FLOW, "t").axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    middle = np.median(FLOW.log_norms, axis=1)
    (exponent,) = (y for label, y in lines.items() if "Lyapunov" in label)
    (theory,) = (y for label, y in lines.items() if "theory" in label)
    np.testing.assert_allclose(np.diff(exponent), -0.1)
    np.testing.assert_allclose(np.diff(theory), 0.2)
    assert exponent[-1] == theory[-1] == pytest.approx(middle[-1])


def test_eigenvalues_outside_the_unit_circle_are_told_apart():
    axes = plots.eigenvalue_plane(np.array([0.5 + 0j, 1.5j]), "t").axes[0]
    points = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(points["grows"], [[0, 1.5]])
    np.testing.assert_array_equal(points["does not grow"], [[0.5, 0]])


def test_long_titles_are_broken_into_lines_that_fit():
    axes = plots.loss_curve(np.ones(5), "a title of words " * 10).axes[0]
    assert max(map(len, axes.get_title(loc="left").splitlines())) <= 70
