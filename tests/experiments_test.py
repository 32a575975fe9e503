"""The experiments, run as a user runs them but smaller."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments import diagnose, gradient_flow, sine
from experiments.analysis import flow_measurements
from experiments.analysis.outcomes import outcome_of
from experiments.reports import sine as sine_report
from experiments.setup.networks import Network
from experiments.training.algorithm import first_nonfinite
from experiments.training.nonfinite import advice, describe
from rnn_jax import training
from rnn_jax.io import records

TINY = sine.SineConfig(train_steps=30, log_every=10, hidden_size=4, trace_parameters=True)


@pytest.fixture(scope="module")
def tutorial_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tutorial"
    return sine.run(dataclasses.replace(TINY, workdir=str(folder)))


def test_the_folder_holds_what_the_help_promises(tutorial_run):
    folder = tutorial_run.workdir
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == "sine"
    assert config["hidden_size"] == 4
    rows = records.load_metrics(folder)
    assert [row["step"] for row in rows] == [10, 20, 30]
    loss = records.load_array(folder, "loss")
    assert [row["loss"] for row in rows] == pytest.approx([loss[9], loss[19], loss[29]])
    trace = records.load_array(folder, "trace")
    assert trace.shape == (30, 49)
    assert np.isfinite(trace).all()
    assert (trace > 0).all()
    for name in ("free_run", "loss", "gradient_heatmap", "gradient_profile", "closed_loop"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    assert (folder / "parameter_heatmap.png").exists()
    with np.load(folder / "arrays" / "trace_parameters.npz") as summands:
        assert sorted(summands) == ["U", "W", "b"]
        assert summands["W"].shape == (30, 49)


def test_a_run_says_in_three_lines_where_the_figures_are(tutorial_run):
    text = sine_report.summary(tutorial_run.workdir, tutorial_run.history, tutorial_run.carried)
    lines = text.splitlines()
    assert len(lines) == 3
    assert all(str(tutorial_run.workdir) in line for line in lines)


def test_a_run_is_the_same_run_whenever_it_is_run(tutorial_run, tmp_path):
    again = sine.run(dataclasses.replace(TINY, workdir=str(tmp_path / "again")))
    np.testing.assert_array_equal(again.history.loss, tutorial_run.history.loss)
    other = sine.run(dataclasses.replace(TINY, seed=1, workdir=str(tmp_path / "other")))
    assert not np.array_equal(other.history.loss, tutorial_run.history.loss)


def test_training_through_the_free_run(tmp_path):
    config = dataclasses.replace(
        TINY,
        batch_size=3,
        phases="real",
        free_run_steps=11,
        init="orthogonal",
        schedule="cosine",
        clip_norm=1.0,
        workdir=str(tmp_path / "run"),
    )
    result = sine.run(config)
    assert result.history.trace.shape == (30, 49 + 11)
    assert result.history.loss[-5:].mean() < result.history.loss[:5].mean()


def test_seeds_make_a_table(tmp_path, capsys):
    config = dataclasses.replace(TINY, seeds=2, workdir=str(tmp_path / "run"))
    rows = sine.run_seeds(config)
    assert [row["seed"] for row in rows] == [0, 1]
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "run" / "summary.txt").read_text()
    median = np.median([row["final_loss"] for row in rows])
    assert f"| median | {median:.1e} |" in printed


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_recorded(tmp_path):
    config = dataclasses.replace(TINY, learning_rate=1e38, workdir=str(tmp_path / "run"))
    with pytest.raises(
        FloatingPointError, match=r"iteration \d+: .*time step \d+.*Try: .*clip_norm"
    ):
        sine.run(config)
    rows = records.load_metrics(tmp_path / "run")
    assert rows
    assert len(records.load_array(tmp_path / "run", "trace")) == rows[-1]["step"]


def where_nonfinite(loss, trace):
    loss, trace = np.asarray(loss, np.float32), np.asarray(trace, np.float32)
    norm = np.linalg.norm(trace, axis=1)
    return first_nonfinite(training.Metrics(loss.mean(axis=1), loss, norm, trace))


def test_where_the_numbers_stopped_being_finite_is_said():
    good = np.ones((3, 4))
    assert [int(value) for value in where_nonfinite(good, good)] == [0, 0, 0]
    bad = good.copy()
    bad[1, 2:] = np.nan
    found = where_nonfinite(bad, good)
    assert [int(value) for value in found] == [2, 3, 0]
    assert describe(found, np.nan) == "the loss is nan from time step 3 on"
    backward = good.copy()
    backward[2, :2] = np.inf
    found = where_nonfinite(good, backward)
    assert [int(value) for value in found] == [3, 0, 2]
    assert "time step 2, going back" in describe(found, 1.0)
    assert "lower --clip_norm" in advice(1.0)
    assert "--clip_norm=1" in advice(0.0)


SMALL = gradient_flow.FlowConfig(hidden_size=8, length=20, batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_gradient_flow_draws_one_network_and_several_beside_it(cell, tmp_path):
    config = dataclasses.replace(
        SMALL, cell=cell, compare_gains="0.5,2", workdir=str(tmp_path / "flow")
    )
    result = gradient_flow.run(config)
    for name in ("profile", "credit", "summands", "singular_values", "eigenvalues", "truncation"):
        assert (result.workdir / f"{name}.png").stat().st_size > 5000
    assert (result.workdir / "comparison.png").exists()
    assert [flow.name for flow in result.compared] == ["gain 0.5", "gain 2"]
    measured = result.measured
    assert measured.log_norms.shape == (20, 2)
    assert np.isneginf(measured.credit[np.triu_indices(20, 1)]).all()
    # The last lag is the whole product, the first a single Jacobian.
    assert measured.lags[0] == 1
    assert measured.lags[-1] == 20


@pytest.mark.slow
def test_the_three_textbook_cases_get_their_verdicts():
    for gain, verdict in ((0.7, "vanishing"), (1.0, "healthy"), (3.0, "exploding")):
        config = dataclasses.replace(
            SMALL, hidden_size=32, length=60, gain=gain, recurrent_init="orthogonal", input_std=0.01
        )
        network = gradient_flow.network_of(config)
        found = gradient_flow.gradflow.diagnose(*network)
        assert found.verdict == verdict


def test_a_run_is_diagnosed_at_its_start_and_its_end(tutorial_run, capsys):
    diagnose.main(diagnose.DiagnoseConfig(run=str(tutorial_run.workdir)))
    said = capsys.readouterr().out
    assert "start of training" in said
    assert "end of training" in said
    assert "from start to end: " in said
    assert "gradient norm by quantile" in said
    # Ten iterations of three lines; the best answer without memory is sin(10 / 49)^2 / 2.
    mean_loss = records.load_metrics(tutorial_run.workdir)[-1]["mean_loss"]
    end = said.partition("--- end of training ---")[2]
    assert f"(loss {mean_loss:.2g}; {np.sin(10 / 49) ** 2 / 2:.2g} without memory)" in end
    assert "without memory" not in said.partition("--- end of training ---")[0]


def test_the_outcome_of_a_run_is_not_made_up(tutorial_run):
    folder = tutorial_run.workdir
    loss = records.load_metrics(folder)[-1]["mean_loss"]
    assert outcome_of(folder, {}, 0.5) == (loss, 0.5)
    assert outcome_of(folder, {"test_loss": 0.25}, 0.5) == (0.25, 0.5)
    for row in ({"test_loss": None}, {"test_loss": "0.2"}, {"verdict": "vanishing"}):
        assert outcome_of(folder, row, 0.5) is None


def test_gradient_flow_looks_at_a_run(tutorial_run, tmp_path):
    config = dataclasses.replace(
        SMALL, run=str(tutorial_run.workdir), workdir=str(tmp_path / "flow")
    )
    network = gradient_flow.network_of(config)
    assert network.xs.shape == (49, 1, 1)
    logs = gradient_flow.gradflow.state_gradients(*network)
    # The profile of the run's last iteration, up to the batch that it is measured on.
    trace = records.load_array(tutorial_run.workdir, "trace")[-1]
    np.testing.assert_allclose(logs[:, 0], np.log(trace), atol=4)
    start = dataclasses.replace(config, moment="start")
    assert np.abs(gradient_flow.network_of(start).params.W).max() < 0.01


def test_a_run_that_is_not_there(tmp_path):
    config = dataclasses.replace(SMALL, run=str(tmp_path), workdir=str(tmp_path / "flow"))
    with pytest.raises(ValueError, match="not the folder of a run"):
        gradient_flow.run(config)


def test_eigenvalues_of_jacobian_products_by_lag():
    """A linear network's product over n steps is W^n, whose eigenvalues are known."""
    rng = np.random.default_rng(4)
    W = 0.4 * rng.normal(size=(6, 6)).astype(np.float32)
    cell = rnn_jax.elman(6, "identity")
    params = rnn_jax.ElmanParams(np.ones((1, 6), np.float32), W, np.zeros(6, np.float32))
    network = Network(cell, params, jnp.zeros((2, 6)), jnp.ones((90, 2, 1)), None)
    lags = np.array([1, 3, 70])
    found = flow_measurements.product_eigenvalues_by_lag(network, lags)
    moduli = np.sort(np.abs(np.linalg.eigvals(W.astype(np.float64))))[::-1]
    np.testing.assert_allclose(found[:2], np.log(moduli) * lags[:2, None], rtol=1e-5, atol=1e-6)
    # After 70 steps the smaller ones are lost in the rounding of the largest.
    assert found[2, 0] == pytest.approx(70 * np.log(moduli[0]), rel=1e-5)
    assert np.isnan(found[2, -1])
