"""Series: windows, dates, what may be known when, baselines, and the experiment's files."""

import csv
import dataclasses
import gzip
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments import series as experiment
from experiments.analysis import forecasts
from experiments.data import calendar_dates
from experiments.data.series_data import fingerprint, normalized, read_series
from experiments.series import SeriesConfig, filled
from rnn_jax.io.tables import read_table
from rnn_jax.tasks.series import series, windows_from
from rnn_jax.training.step import TrainState

RNG = np.random.default_rng(2)
VALUES = RNG.normal(size=(60, 2)).cumsum(axis=0)


def test_windows_are_pieces_of_the_series_and_ask_for_the_next_value():
    counting = np.arange(30.0)[:, None]
    batch = jax.device_get(series(counting, 7, 2000).sample(jax.random.key(0)))
    assert batch.inputs.shape == batch.targets.shape == (7, 2000, 1)
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    np.testing.assert_array_equal(np.diff(batch.inputs, axis=0), 1)
    # All that fit: the last target is the last value.
    assert set(batch.inputs[0, :, 0]) == set(range(23))


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_window_is_wrong_where_the_last_value_would_have_been_nearer(warmup):
    task = series(VALUES, 8, 500, warmup=warmup)
    batch = jax.device_get(task.sample(jax.random.key(3)))
    outputs = batch.targets + RNG.normal(size=batch.targets.shape).astype(np.float32)
    first = max(warmup, 1)
    for b, wrong in enumerate(np.asarray(task.wrong(jnp.asarray(outputs), batch.targets))):
        own = np.square(outputs[first:, b] - batch.targets[first:, b]).mean()
        last = np.square(batch.inputs[first:, b] - batch.targets[first:, b]).mean()
        assert wrong == (own > last)
    assert task.first_loss_step == warmup


def test_chance_is_the_best_straight_line_from_the_last_value():
    """Each column's line by `polyfit` where there is one; wrong counted window by window."""
    one = VALUES[:, :1]
    task = series(one, 8, 5, warmup=3)
    slope, offset = np.polyfit(one[:-1, 0], one[1:, 0], 1)
    line = slope * one[:-1] + offset
    assert task.chance_loss == pytest.approx(np.mean(np.square(line - one[1:])))
    wrong = [
        np.square(line - one[1:])[start + 3 : start + 8].mean()
        > np.square(one[:-1] - one[1:])[start + 3 : start + 8].mean()
        for start in range(60 - 8)
    ]
    assert task.chance_wrong == pytest.approx(np.mean(wrong))


def test_windows_of_the_validation_rows_ask_for_those_alone():
    counting = np.arange(50.0)[:, None]
    batch = windows_from(counting, 30, length=8, warmup=3)
    asked = np.asarray(batch.targets)[3:, :, 0].T.ravel()
    np.testing.assert_array_equal(asked, np.arange(30, 30 + len(asked)))
    assert 50 - len(asked) - 30 < 5
    with pytest.raises(ValueError, match="no window of 25 steps"):
        windows_from(counting, 30, length=25, warmup=3)


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        (VALUES[:, 0], {}, r"shape \(60,\)"),
        (VALUES * np.nan, {}, "finite"),
        (VALUES[:8], {}, "8 values, but a window of 8 steps holds 9"),
        (VALUES, {"warmup": 7}, "warmup is 7 of 8"),
    ],
)
def test_values_that_make_no_task(values, settings, said):
    with pytest.raises(ValueError, match=said):
        series(values, 8, 3, **settings)


# Dates


def table(tmp_path, cells, name="day"):
    path = tmp_path / "dates.csv"
    path.write_text("\n".join([name, *cells]) + "\n")
    return read_table(path)


@pytest.mark.parametrize(
    ("cells", "years"),
    [
        (["1999", "2001", "2003"], [1999, 2001, 2003]),
        (["1999-11", "1999-12", "2000-01"], [1999 + 10 / 12, 1999 + 11 / 12, 2000]),
        (["2000-01-31", "2000-02-29", "2000-03-31"], None),
        (["2000-01-15", "2000-02-15", "2000-03-15"], None),
        (["2000-02-22", "2000-02-29", "2000-03-07"], None),
    ],
)
def test_evenly_spaced_dates(cells, years, tmp_path):
    found = calendar_dates.times(table(tmp_path, cells), "day")
    assert (np.diff(found) > 0).all()
    if years:
        np.testing.assert_allclose(found, years)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["2000-01", "2000-02", "2000-04"], "line 4, column 'day': 2000-04 comes 2 months after"),
        (["2000-01-01", "2000-01-02", "2000-01-05"], "line 4, column 'day': .* 3 days after"),
        (["2000", "2001", "2001"], "line 4, column 'day': 2001 does not come after 2001"),
        (["2000", "soon", "2002"], "line 3, column 'day': 'soon' is no date"),
        (["2000", "2001-01", "2002"], "line 3, column 'day': '2001-01' is not written like"),
        (["2000-13", "2001-01"], "line 2, column 'day': '2000-13' is no day"),
        (["2001-02-29", "2001-03-01"], "line 2, .*'2001-02-29' is no day of the calendar"),
    ],
)
def test_dates_that_are_none_or_not_even(cells, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        calendar_dates.times(table(tmp_path, cells), "day")


# Data


def write_csv(path, rows=60, **columns):
    columns = {"year": range(1900, 1900 + rows), "a": VALUES[:rows, 0]} | columns
    lines = [",".join(columns)]
    lines += [",".join(str(cell) for cell in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


PARTS = {"held_out": 10, "validation": 12, "least": 9}


def test_nothing_is_known_of_the_rows_after_those_learned_from(tmp_path):
    """Other values at the end leave mean and scale as they are."""
    first = read_series(write_csv(tmp_path / "a.csv"), "a", "year", "error", **PARTS)
    changed = VALUES[:, 0].copy()
    changed[38:] = 1000
    other = read_series(write_csv(tmp_path / "b.csv", a=changed), "a", "year", "error", **PARTS)
    assert (first.validation, first.held_out) == (38, 50)
    np.testing.assert_allclose(first.mean, VALUES[:38, :1].mean(axis=0))
    np.testing.assert_array_equal((first.mean, first.scale), (other.mean, other.scale))
    np.testing.assert_allclose(normalized(first)[:38].std(axis=0), 1)
    assert fingerprint(first) != fingerprint(other)
    assert first.dates[-1] == "1959"


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        ({"a": [3.5] * 60}, {}, r"column 'a': all of the 38 rows .* are 3.5 \(lines 2 to 39\)"),
        ({}, {"column": "b"}, "no column 'b'; there are 'year', 'a'"),
        ({}, {"column": "a,a"}, "--column=a,a: name one or more"),
        ({}, {"column": ""}, "--column=: name one or more columns of .*there are 'year', 'a'"),
        ({}, {"held_out": 45}, "60 rows: --held_out=45 and --validation=12 leave 3"),
        ({}, {"date_column": "day"}, "no column 'day'"),
        ({"a": [1.0, "x"] * 30}, {}, "line 3, column 'a': 'x' is no number"),
        ({"a": [1.0, ""] * 30}, {}, "line 3, column 'a': the number is missing; .*interpolate"),
        ({"a": [1e300, 2e300] * 30}, {}, r"column 'a', line 2: 1e\+300 cannot be compared .* inf"),
        ({"a": [1e-300, 2e-300] * 30}, {}, "column 'a', line 2: 1e-300 cannot be .*; give the col"),
        ({"a": [1.0, 2.0] * 29 + [1e30, 1]}, {}, r"column 'a', line 60: 1e\+30 cannot be compared"),
    ],
)
def test_files_that_make_no_series(columns, given, said, tmp_path):
    settings = {"column": "a", "date_column": "year", "missing": "error", **PARTS, **given}
    names = [settings.pop(name) for name in ("column", "date_column", "missing")]
    with pytest.raises(ValueError, match=said):
        read_series(write_csv(tmp_path / "a.csv", **columns), *names, **settings)


def test_packed_files_gaps_and_rows_without_dates(tmp_path):
    cells = [*VALUES[:, 0].astype(str)]
    cells[5] = ""
    plain = write_csv(tmp_path / "a.csv", a=cells)
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    found = read_series(packed, "a,year", "", "interpolate", **PARTS)
    assert found.values[5, 0] == pytest.approx((VALUES[4, 0] + VALUES[6, 0]) / 2)
    assert found.dates[:2] == ["1", "2"]
    np.testing.assert_array_equal(found.values[:, 1], np.arange(1900, 1960))


def test_the_sunspots_that_come_with_the_project():
    config = filled(SeriesConfig())
    found = experiment.read(config)
    assert found.values.shape == (3120, 1)
    assert (found.dates[0], found.dates[-1]) == ("1749-01", "2008-12")
    assert found.dates[found.held_out] == "1994-01"
    np.testing.assert_array_equal(found.values[:3, 0], [58.0, 62.6, 70.0])


# Forecasts


def test_baselines_row_by_row():
    one_step, free = forecasts.baselines(VALUES, 40, season=6)
    for row in range(40, 60):
        ahead = row - 40
        np.testing.assert_array_equal(one_step["last value"][ahead], VALUES[row - 1])
        np.testing.assert_array_equal(one_step["a season ago"][ahead], VALUES[row - 6])
        np.testing.assert_array_equal(free["last value"][ahead], VALUES[39])
        back = row
        while back >= 40:
            back -= 6
        np.testing.assert_array_equal(free["a season ago"][ahead], VALUES[back])
    assert list(forecasts.baselines(VALUES, 40, season=0)[0]) == ["last value"]


def test_forecasts_of_a_network_by_hand(x64):
    """tanh in NumPy: the state is warmed from the first row on; then true values, or its own."""
    model = rnn_jax.sequence_model(rnn_jax.elman(4), 2)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(0), 2)
    )

    state = TrainState(step=0, params=params, opt_state=None, carry=None)
    found = forecasts.forecaster(model, VALUES.astype(np.float32), 40)(state.params)
    U, W, b = (np.asarray(leaf) for leaf in params.cell)
    V, c = (np.asarray(leaf) for leaf in params.readout)
    values = VALUES.astype(np.float32).astype(np.float64)

    def read(s, x):
        s = np.tanh(x @ U + s @ W + b)
        return s, s @ V + c

    s = np.zeros(4)
    for row in range(40):
        s, answer = read(s, values[row])
    warmed, first = s, answer
    for row in range(40, 60):
        np.testing.assert_allclose(found["one_step"][row - 40], answer, rtol=1e-5, atol=1e-6)
        s, answer = read(s, values[row])
    s, answer = warmed, first
    for row in range(20):
        np.testing.assert_allclose(found["free_run"][row], answer, rtol=1e-5, atol=1e-6)
        s, answer = read(s, answer)


def test_errors_and_spread():
    actual = VALUES[:20]
    own = actual + RNG.normal(size=(3, 20, 2))
    wanted = [[np.sqrt(np.mean((f[:7, d] - actual[:7, d]) ** 2)) for d in range(2)] for f in own]
    np.testing.assert_allclose(forecasts.rmse(own, actual, 7), wanted)
    np.testing.assert_allclose(forecasts.spread(own), own.std(axis=0, ddof=1))
    np.testing.assert_array_equal(forecasts.spread(own[:1]), 0)


# The experiment

GAPS = [2, 3, 20, 38, 39, 50, 51, 59]
"""Rows without a number in column b: learned from, to compare on, and held out."""
WITH_GAPS = ["" if row in GAPS else value for row, value in enumerate(VALUES[:, 1])]
SMALL = SeriesConfig(
    column="a,b",
    date_column="year",
    held_out=12,
    validation=12,
    season=4,
    length=8,
    warmup=2,
    hidden_size=4,
    batch_size=4,
    train_steps=4,
    test_every=2,
    seeds=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    path = write_csv(folder / "a.csv", b=WITH_GAPS)
    config = dataclasses.replace(
        SMALL, csv=str(path), missing="interpolate", workdir=str(folder / "run")
    )
    return config, experiment.run(config), folder / "run"


def test_the_folder_holds_what_the_help_promises(finished):
    _, rows, folder = finished
    assert [row["steps"] for row in rows] == [4, 4]
    for name in (
        "forecast_1", "forecast_2", "learning_curves", "gradient_profiles", "gradient_heatmap"
    ):  # fmt: skip
        assert (folder / f"{name}.png").stat().st_size > 5000
    with (folder / "forecast.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 12
    assert [line["date"] for line in lines[:12]] == [str(year) for year in range(1948, 1960)]
    assert [line["column"] for line in lines[::12]] == ["a", "b"]
    second = lines[12:]
    measured = [row not in GAPS for row in range(48, 60)]
    assert [line["actual"] != "" for line in second] == measured
    second = [line for line in second if line["actual"]]
    actual = [float(line["actual"]) for line in second]
    np.testing.assert_allclose(actual, VALUES[48:, 1][measured], 1e-5)
    table = (folder / "table.md").read_text().splitlines()
    shown = next(line for line in table if line.startswith("| b | mean of the networks"))
    cells = [float(cell) for cell in shown.split("|")[3:-1]]
    for kind, cell in (("one_step", cells[0]), ("free_run", cells[-1])):
        errors = [float(line[f"{kind}_mean"]) - float(line["actual"]) for line in second]
        assert cell == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=5e-3)
    said = (folder / "summary.txt").read_text()
    assert re.search(r"^b, one step ahead: error \S+ (beats|DOES NOT BEAT) last value", said, re.M)
    assert "b: 3 of 12 held-out rows were not measured; they are in no score" in said
    better = float(re.search(r"a, one step ahead: error (\S+)", said)[1])
    last = float(re.search(r"a, one step ahead: .*?last value \((\S+)\)", said)[1])
    assert f"error {better:.3g} {'beats' if better < last else 'DOES NOT BEAT'} last value" in said


def test_a_run_does_not_go_on_with_other_values(finished):
    config, *_ = finished
    write_csv(Path(config.csv), b=2 * VALUES[:, 1])
    with pytest.raises(ValueError, match="values was"):
        experiment.run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 7}, "--warmup=7: of --length=8"),
        ({"missing": "guess"}, "--missing=guess: take one of error, interpolate"),
        ({"validation": 3}, "--validation=3: no window"),
        ({"length": 40}, "--held_out=12 and --validation=12 leave 36"),
        ({"season": 55}, "leave 36 to learn from, where the settings want 43"),
        ({"csv": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(changes, message, tmp_path):
    path = write_csv(tmp_path / "a.csv", b=VALUES[:, 1])
    config = dataclasses.replace(SMALL, csv=str(path), workdir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment.run(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sunspots_one_month_ahead_are_foretold_better_than_by_either_baseline(tmp_path):
    config = dataclasses.replace(
        filled(SeriesConfig()),
        cures="gru",
        hidden_size=32,
        schedule="cosine",
        clip_norm=1.0,
        train_steps=600,
        workdir=str(tmp_path / "run"),
    )
    experiment.run(config)
    said = (tmp_path / "run" / "summary.txt").read_text()
    assert re.search(r"one step ahead: error \S+ beats last value .* and beats a season ago", said)
