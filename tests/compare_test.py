"""Runs side by side: drawn as they are, called by what differs, refused in one line."""

import dataclasses

import numpy as np
import pytest

from experiments import compare
from experiments.cli.options import UsageError
from rnn_jax import plots
from rnn_jax.gradflow.profile import e_folding_length
from rnn_jax.io import records

T = 30


def write_run(folder, settings, slope=-0.2, iterations=40, num_steps=T):
    """A run whose ln|dL/ds_t| is a straight line of the given slope going back."""
    path = records.open_run(folder, {"experiment": "sine", "seed": 0, **settings})
    rng = np.random.default_rng(len(str(folder)))
    lags = num_steps - 1 - np.arange(num_steps)
    norms = np.exp(slope * lags + rng.normal(size=(iterations, 1)))
    records.save_array(path, "trace", norms.astype(np.float32))
    records.save_array(path, "loss", np.exp(rng.normal(size=iterations)))
    records.save_array(path, "gradient_norm", np.exp(rng.normal(size=iterations)))
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / "one", {"learning_rate": 0.1}),
        write_run(tmp_path / "two", {"learning_rate": 0.2}, slope=0.1, iterations=25),
    ]


def test_labels_tell_the_settings_that_differ_and_no_other(folders):
    assert compare.labels_of(compare.load_runs(folders)) == [
        "learning_rate=0.1",
        "learning_rate=0.2",
    ]


def test_a_setting_that_one_run_lacks_and_runs_of_equal_settings(folders, tmp_path):
    folders += [
        write_run(tmp_path / "three", {"learning_rate": 0.2}),
        write_run(tmp_path / "four", {"learning_rate": 0.2, "momentum": 0.9}),
    ]
    first, second, third, fourth = compare.labels_of(compare.load_runs(folders))
    assert first == "learning_rate=0.1, momentum=not set"
    assert fourth == "learning_rate=0.2, momentum=0.9"
    assert second == f"learning_rate=0.2, momentum=not set ({folders[1]})"
    assert third.endswith(f"({folders[2]})")


def test_slopes_and_profiles_are_those_of_the_runs(folders):
    for run, slope in zip(compare.load_runs(folders), (-0.2, 0.1), strict=True):
        found = compare.trained(run)
        np.testing.assert_allclose(found.slopes, slope, rtol=1e-4)
        assert found.iterations[0] == 1
        assert found.iterations[-1] == len(run.loss)
        np.testing.assert_allclose(np.diff(np.log(found.end)), -slope, rtol=1e-4)


def test_the_e_folding_length_of_a_slope():
    assert e_folding_length(-0.25) == 4
    assert e_folding_length(0.0) == e_folding_length(0.25) == np.inf
    assert np.isnan(e_folding_length(np.nan))


def test_the_figure_draws_each_run_in_its_colour_and_names_the_lengths():
    runs = {
        name: plots.Trained(
            np.full(50, loss), np.ones(T), np.exp(-np.arange(T)), np.arange(5.0), np.full(5, slope)
        )
        for name, loss, slope in (("a", 0.5, -0.2), ("b", 0.1, 0.05))
    }
    figure = plots.trained_side_by_side(runs, "finding")
    losses, profiles, lengths = figure.axes
    assert losses.get_yscale() == "log"
    for number, (loss, slope) in enumerate(((0.5, -0.2), (0.1, 0.05))):
        colour = losses.lines[number].get_color()
        np.testing.assert_array_equal(losses.lines[number].get_ydata(), loss)
        start, end = profiles.lines[2 * number : 2 * number + 2]
        np.testing.assert_array_equal(start.get_ydata(), 0)
        np.testing.assert_allclose(end.get_ydata(), -np.arange(T), atol=1e-12)
        np.testing.assert_array_equal(lengths.lines[number].get_ydata(), slope)
        assert end.get_color() == lengths.lines[number].get_color() == colour
    names = dict(
        zip(lengths.get_yticks(), (t.get_text() for t in lengths.get_yticklabels()), strict=True)
    )
    assert names[0] == "∞"
    assert names[0.2] == names[-0.2] == "5"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_the_command_leaves_a_figure_and_a_table(folders, tmp_path, capsys):
    config = compare.CompareConfig(runs=tuple(folders), workdir=str(tmp_path / "both"))
    compare.main(config)
    assert (tmp_path / "both" / "compare.png").stat().st_size > 20000
    text = (tmp_path / "both" / "table.md").read_text()
    assert text in capsys.readouterr().out
    first, second = text.splitlines()[2:]
    assert first.startswith("| learning_rate=0.1 | 40 |")
    assert first.endswith("| – | -0.200 → -0.200 | 5 → 5 |")
    assert second.endswith("| +0.100 → +0.100 | inf → inf |")
    compare.main(config)  # the same comparison again
    other = dataclasses.replace(config, runs=tuple(reversed(folders)))
    with pytest.raises(ValueError, match="--overwrite"):
        compare.main(other)


def test_what_cannot_be_compared_is_named_in_one_line(folders, tmp_path):
    empty = records.open_run(tmp_path / "empty", {"experiment": "sine"})
    torn = write_run(tmp_path / "torn", {})
    (tmp_path / "torn" / "arrays" / "trace.npy").write_bytes(b"\x93NUMPY")
    for folder, said in (
        (str(tmp_path / "nowhere"), "nowhere is not the folder of a run"),
        (str(empty), r"empty holds no training run .*loss\.npy"),
        (torn, "torn holds no training run"),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            compare.load_runs([folders[0], folder])
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="two or more"):
        compare.load_runs(folders[:1])


def test_a_run_that_went_wrong_is_drawn_as_far_as_it_came(folders):
    runs = compare.load_runs(folders)
    broken = runs[1]._replace(loss=runs[1].loss.copy(), trace=runs[1].trace.copy())
    broken.loss[-3:] = np.nan
    broken.trace[-3:] = np.nan
    assert np.isnan(compare.trained(broken).slopes[-1])
    assert compare.finding(["a", "b"], [runs[0], broken]).endswith(": a")


def test_runs_of_unequal_lengths_and_experiments_have_their_last_step_in_common(folders, tmp_path):
    longer = write_run(tmp_path / "longer", {"experiment": "digits"}, num_steps=T + 9)
    runs = compare.load_runs([folders[0], longer])
    assert compare.labels_of(runs) == [folders[0], longer]
    assert "different kinds" in compare.finding(["a", "b"], runs)
    drawn = dict(zip("ab", (compare.trained(run) for run in runs), strict=True))
    profiles = plots.trained_side_by_side(drawn, "finding").axes[1]
    for line, steps in zip(profiles.lines[::2], (T, T + 9), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1 - steps, 1))
