"""Cells of a series that were not measured: marked, never scored, and seen by no choice."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments.analysis import forecasts
from experiments.analysis.forecasts import Forecasts
from experiments.data.series_data import actual, fingerprint, normalized, read_series
from experiments.reports import series as series_report
from rnn_jax import plots
from rnn_jax.objectives import mean_loss, task_objective
from rnn_jax.tasks.series import fill_gaps, series, windows_from
from rnn_jax.types import Batch

RNG = np.random.default_rng(4)
ROWS, LEARNED, HELD_OUT = 60, 36, 48
VALUES = RNG.normal(size=(ROWS, 2)).cumsum(axis=0)
GAPS = np.zeros((ROWS, 2), bool)
GAPS[[3, 4, 20, 34, 35, 36, 37, 41, 50, 51, 53, 59], 1] = True
GAPS[[7, 8, 47, 48], 0] = True
MEASURED = ~GAPS
WITH_GAPS = np.where(GAPS, np.nan, VALUES)


# What stands in


def test_a_line_among_the_rows_learned_from_and_the_value_before_after_them():
    filled = fill_gaps(WITH_GAPS, LEARNED)
    np.testing.assert_array_equal(filled[MEASURED], VALUES[MEASURED])
    b = VALUES[:, 1]
    np.testing.assert_allclose(filled[[3, 4], 1], b[2] + (b[5] - b[2]) * np.array([1, 2]) / 3)
    np.testing.assert_allclose(filled[20, 1], (b[19] + b[21]) / 2)
    # A gap at the end of the rows learned from is not filled from the validation rows.
    np.testing.assert_array_equal(filled[34:38, 1], b[33])
    np.testing.assert_array_equal(filled[[41, 50, 51, 53, 59], 1], b[[40, 49, 49, 52, 58]])
    np.testing.assert_array_equal(filled[[47, 48], 0], VALUES[46, 0])


def test_nothing_that_stands_in_comes_from_the_future():
    """Other values from any row on leave all before it; only learned rows look ahead of theirs."""
    filled = fill_gaps(WITH_GAPS, LEARNED)
    for row in range(LEARNED, ROWS):
        changed = WITH_GAPS.copy()
        changed[row:] += 100
        np.testing.assert_array_equal(fill_gaps(changed, LEARNED)[:row], filled[:row])


def test_a_series_that_begins_with_a_gap_is_refused():
    with pytest.raises(ValueError, match="first value of column 1 was not measured"):
        fill_gaps(np.array([[1, np.nan], [2, 2]]), 2)


# What is asked

LENGTH, WARMUP = 8, 2


def task_and_model():
    filled = fill_gaps(WITH_GAPS, LEARNED)
    task = series(filled[:LEARNED], LENGTH, 64, warmup=WARMUP, measured=MEASURED[:LEARNED])
    return task, rnn_jax.sequence_model(rnn_jax.elman(4), 2)


def windows_of(values, starts):
    """Inputs, targets and starts by hand, `[T, B, D]`."""
    rows = np.asarray(starts)[None] + np.arange(LENGTH + 1)[:, None]
    return values[rows[:-1]], values[rows[1:]]


def test_only_measured_targets_have_a_loss_and_a_gradient():
    task, model = task_and_model()
    params = model.init(jax.random.key(0), 2)
    objective = task_objective(model, task)
    batch = task.sample(jax.random.key(1))
    carry, zeros = jnp.zeros((64, 4)), jnp.zeros((LENGTH, 64, 4))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def evaluate(params, targets):
        run = objective.run(params, carry, Batch(batch.inputs, targets), zeros)
        outputs = model.readout(params.readout, run.states)
        return mean_loss(run), (outputs, task.wrong(outputs, targets))

    (loss, (outputs, wrong)), gradient = evaluate(params, batch.targets)
    targets, counts = np.split(np.asarray(batch.targets, np.float64), 2, axis=-1)
    squares = np.square(np.asarray(outputs, np.float64) - targets)
    last = np.square(np.concatenate([targets[:1], targets[:-1]]) - targets)
    losses = []
    for b in range(64):
        steps = [
            [np.mean(s[t, b][counts[t, b] > 0]) for s in (squares, last)]
            for t in range(WARMUP, LENGTH)
            if counts[t, b].any()
        ]
        own, repeated = np.mean(steps, axis=0)
        losses.append(own)
        assert wrong[b] == (own > repeated)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    # Whatever stands in among the targets, nothing changes.
    rubbish = np.concatenate([np.where(counts > 0, targets, 1e3), counts], axis=-1)
    (other, _), others = evaluate(params, rubbish.astype(np.float32))
    assert other == loss
    jax.tree.map(np.testing.assert_array_equal, others, gradient)


def test_windows_end_at_a_measured_row_and_carry_what_was_measured():
    task, _ = task_and_model()
    batch = jax.device_get(task.sample(jax.random.key(2)))
    filled = fill_gaps(WITH_GAPS, LEARNED).astype(np.float32)
    starts = [int(np.flatnonzero((filled == x).all(axis=1))[0]) for x in batch.inputs[0]]
    inputs, targets = windows_of(filled, starts)
    counts = windows_of(MEASURED, starts)[1]
    np.testing.assert_array_equal(batch.inputs, inputs)
    np.testing.assert_array_equal(batch.targets, np.concatenate([targets, counts], axis=-1))
    assert counts[-1].any(axis=-1).all()
    both = np.ones((30, 2), bool)
    both[12:] = False
    with pytest.raises(ValueError, match="nothing was measured from row 12 on"):
        series(VALUES[:30], 12, 4, measured=both)
    with pytest.raises(ValueError, match=r"measured has shape \(30, 1\), but values \(30, 2\)"):
        series(VALUES[:30], 12, 4, measured=both[:, :1])


def test_a_series_without_gaps_is_the_task_that_it_was():
    plain = series(VALUES, LENGTH, 5, warmup=WARMUP)
    told = series(VALUES, LENGTH, 5, warmup=WARMUP, measured=np.ones_like(GAPS))
    assert (told.loss, told.asked, told[-6:]) == (plain.loss, None, plain[-6:])
    one, other = (task.sample(jax.random.key(0)) for task in (plain, told))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_windows_to_choose_by_ask_for_measured_values_alone():
    filled = fill_gaps(WITH_GAPS, LEARNED)[:HELD_OUT]
    batch = windows_from(filled, LEARNED, LENGTH, WARMUP, MEASURED[:HELD_OUT])
    counts = np.asarray(batch.targets)[WARMUP:, :, 2:]
    np.testing.assert_array_equal(
        np.swapaxes(counts, 0, 1).reshape(-1, 2), MEASURED[LEARNED : LEARNED + 12]
    )
    lost = MEASURED[:HELD_OUT].copy()
    lost[LEARNED : LEARNED + 6] = False
    fewer = windows_from(filled, LEARNED, LENGTH, WARMUP, lost)
    assert (batch.inputs.shape[1], fewer.inputs.shape[1]) == (2, 1)
    lost[LEARNED:] = False
    with pytest.raises(ValueError, match="not one of the values from 36 to 47"):
        windows_from(filled, LEARNED, LENGTH, WARMUP, lost)


def test_chance_is_the_best_line_to_measured_values():
    one = fill_gaps(WITH_GAPS, ROWS)[:, 1:]
    asked = MEASURED[1:, 1]
    slope, offset = np.polyfit(one[:-1, 0][asked], one[1:, 0][asked], 1)
    wanted = np.mean(np.square(slope * one[:-1, 0] + offset - one[1:, 0])[asked])
    task = series(one, LENGTH, 5, measured=MEASURED[:, 1:])
    assert task.chance_loss == pytest.approx(wanted)


# What is read from a file


def write_csv(path, values=WITH_GAPS):
    lines = ["year,a,b"]
    for year, row in zip(range(1900, 1900 + ROWS), values, strict=True):
        lines.append(",".join([str(year), *("" if np.isnan(v) else repr(float(v)) for v in row)]))
    path.write_text("\n".join(lines) + "\n")
    return path


PARTS = {"held_out": ROWS - HELD_OUT, "validation": HELD_OUT - LEARNED, "least": 9}


def read(path, missing="interpolate"):
    return read_series(path, "a,b", "year", missing, **PARTS)


def test_mean_and_scale_are_those_of_the_measured_rows_learned_from(tmp_path):
    found = read(write_csv(tmp_path / "a.csv"))
    for column in range(2):
        known = VALUES[:LEARNED, column][MEASURED[:LEARNED, column]]
        np.testing.assert_allclose(found.mean[column], known.mean())
        np.testing.assert_allclose(found.scale[column], known.std())
    np.testing.assert_array_equal(found.measured, MEASURED)
    np.testing.assert_array_equal(actual(found), WITH_GAPS[HELD_OUT:])
    held_out = WITH_GAPS.copy()
    held_out[HELD_OUT:] += 50
    other = read(write_csv(tmp_path / "b.csv", held_out))
    np.testing.assert_array_equal(normalized(other)[:HELD_OUT], normalized(found)[:HELD_OUT])


def test_a_gap_is_another_series_than_the_number_that_stands_in(tmp_path):
    gaps = read(write_csv(tmp_path / "a.csv"))
    told = read(write_csv(tmp_path / "b.csv", gaps.values))
    np.testing.assert_array_equal(gaps.values, told.values)
    assert fingerprint(gaps) != fingerprint(told)


def test_what_the_last_value_scores_on_the_validation_rows(tmp_path):
    found = read(write_csv(tmp_path / "a.csv"))
    known = normalized(found)
    errors = [
        np.mean([(known[t, d] - known[t - 1, d]) ** 2 for d in range(2) if MEASURED[t, d]])
        for t in range(LEARNED, HELD_OUT)
        if MEASURED[t].any()
    ]
    assert series_report.validation_baseline(found) == pytest.approx(np.mean(errors))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0], r"line 2, column 'b': the number is missing, and nothing before it"),
        (range(1, LEARNED), None),
        (range(LEARNED, HELD_OUT), r"column 'b': there is no number in the 12 rows to compare"),
        (
            range(HELD_OUT, ROWS),
            r"in the 12 rows to foretell \(lines 50 to 61\); give other",
        ),
    ],
)
def test_a_part_without_numbers_is_refused(rows, said, tmp_path):
    values = VALUES.copy()
    values[rows, 1] = np.nan
    path = write_csv(tmp_path / "a.csv", values)
    with pytest.raises(ValueError, match=said or "all of the 36 rows to learn from are"):
        read(path)


def test_without_interpolation_the_first_gap_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"line 5, column 'b': .*missing; give --missing=interp"):
        read(write_csv(tmp_path / "a.csv"), "error")


# What is scored and shown


def found_by(networks=3):
    own = RNG.normal(size=(2, networks, ROWS - HELD_OUT, 2))
    filled = fill_gaps(WITH_GAPS, LEARNED)
    return Forecasts(WITH_GAPS[HELD_OUT:], *own, *forecasts.baselines(filled, HELD_OUT, season=5))


def test_errors_leave_out_what_was_not_measured():
    found = found_by()
    for steps in (None, 5):
        errors = forecasts.rmse(found.one_step, found.actual, steps)
        for column in range(2):
            known = MEASURED[HELD_OUT:][:steps, column]
            own = found.one_step[:, :steps, column][:, known]
            wanted = np.sqrt(np.mean((own - VALUES[HELD_OUT:][:steps, column][known]) ** 2, axis=1))
            np.testing.assert_allclose(errors[:, column], wanted)
    assert np.isnan(forecasts.rmse(found.one_step, found.actual, 1)[:, 0]).all()


def test_baselines_know_nothing_of_the_future():
    """Each is a function of what was measured before the row (one step) or the first row (free)."""
    one_step, free = forecasts.baselines(fill_gaps(WITH_GAPS, LEARNED), HELD_OUT, season=5)
    for row in range(HELD_OUT, ROWS):
        changed = WITH_GAPS.copy()
        changed[row:] += 100
        others, free_others = forecasts.baselines(fill_gaps(changed, LEARNED), HELD_OUT, season=5)
        ahead = row - HELD_OUT
        for name, values in one_step.items():
            np.testing.assert_array_equal(others[name][ahead], values[ahead])
        if not ahead:
            jax.tree.map(np.testing.assert_array_equal, free_others, free)


def test_tables_and_words_where_nothing_was_measured():
    actual = WITH_GAPS[HELD_OUT:].copy()
    actual[:4, 0] = np.nan
    found = found_by()._replace(actual=actual)
    assert series_report.spans(found) == [1, 4, 12]
    lines = series_report.markdown(found, ["a", "b"]).splitlines()
    (row,) = [line for line in lines if line.startswith("| a | a network")]
    assert row.split("|")[4:6] == [" – ", " – "]
    assert "nan" not in "".join(lines)
    said = "\n".join(series_report.verdicts(found, ["a", "b"]))
    assert "a, free run of 4 rows: nothing was measured in these rows" in said
    assert series_report.gaps(found, ["a", "b"]) == [
        "a: 4 of 12 held-out rows were not measured; they are in no score, and a forecast one step "
        "ahead reads the value before in their place",
        "b: 4 of 12 held-out rows were not measured; they are in no score, and a forecast one step "
        "ahead reads the value before in their place",
    ]


def test_the_csv_has_empty_cells_and_no_other():
    text = forecasts.as_csv(found_by(), [str(t) for t in range(12)], ["a", "b"])
    lines = list(csv.DictReader(text.splitlines()))
    empty = np.array([line["actual"] == "" for line in lines]).reshape(2, 12).T
    np.testing.assert_array_equal(empty, GAPS[HELD_OUT:])
    assert all(value for line in lines for name, value in line.items() if name != "actual")


def test_the_figure_shades_gaps_and_dots_what_stands_alone():
    actual = WITH_GAPS[HELD_OUT:, 1]
    times = np.arange(12.0)
    forecast = plots.Forecast(np.zeros(12), np.ones(12), {})
    figure = plots.forecasts(times, actual, {"one": forecast}, "", "", "")
    (axes,) = figure.axes
    spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(s.x0, 6), round(s.x1, 6)) for s in spans] == [
        (1.5, 3.5),
        (4.5, 5.5),
        (10.5, 11.5),
    ]
    assert "not measured" in [text.get_text() for text in figure.legends[0].get_texts()]
    (dots,) = [line for line in axes.lines if line.get_marker() == "."]
    np.testing.assert_array_equal(dots.get_xdata(), [4])
    whole = plots.forecasts(times, VALUES[HELD_OUT:, 1], {"one": forecast}, "", "", "")
    assert not whole.axes[0].patches
