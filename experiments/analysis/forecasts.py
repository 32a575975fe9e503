"""Forecasts of a series' last rows, one step ahead and running free, and the baselines' own."""

import csv
import io
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from rnn_jax.model import Model, ModelParams
from rnn_jax.types import Array

ONE_STEP, FREE_RUN = "one_step", "free_run"
LAST_VALUE, SEASON_AGO = "last value", "a season ago"


class Forecasts(NamedTuple):
    """What was foretold of the held-out rows, in the units of the data.

    Attributes:
        actual: `[H, D]`; NaN where nothing was measured.
        one_step, free_run: of each network, `[S, H, D]`.
        one_step_baselines, free_run_baselines: name -> `[H, D]`. The first have read what the
            network has: all that was before the row foretold; the second all before `first`.
    """

    actual: np.ndarray
    one_step: np.ndarray
    free_run: np.ndarray
    one_step_baselines: dict[str, np.ndarray]
    free_run_baselines: dict[str, np.ndarray]


def forecaster(
    model: Model, values: np.ndarray, first: int
) -> Callable[[ModelParams], dict[str, Array]]:
    """A program that foretells the rows from `first` on, by a network as it is now.

    Args:
        model: a `sequence_model`, with an output for each column.
        values: `[N, D]`, normalized; a stand-in is known before what comes after it.
        first: of the rows to foretell.

    Returns:
        `params -> one_step, free_run`, each `[N - first, D]`, normalized. The
        state is warmed by the true values from the first on: for the one-step forecast by all
        before the row, for the free run by those before `first`; that reads its own forecasts.
    """

    def forecast(params: ModelParams) -> dict[str, Array]:
        xs = jnp.asarray(values, jnp.float32)[:, None]
        start = model.cell.initial_state(params.cell, (1,))
        outputs, states = rnn_jax.apply(model, params, start, xs[:-1])
        # Output t is about row t + 1; the free run begins by reading row first - 1.
        warmed = jax.tree.map(lambda leaf: leaf[first - 2], states)
        alone, _ = rnn_jax.free_run(model, params, warmed, xs[first - 1], len(values) - first)
        return {ONE_STEP: outputs[first - 1 :, 0], FREE_RUN: alone[:, 0]}

    return forecast


def baselines(
    values: np.ndarray, first: int, season: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The last value, and that of a season ago, as one-step and as free forecasts, `[H, D]` each.

    Args:
        values: `[N, D]`.
        first: of the rows to foretell.
        season: rows; 0 for none. Where it is over, the free forecast repeats it.
    """
    ahead = np.arange(len(values) - first)
    one_step = {LAST_VALUE: values[first - 1 : -1]}
    free = {LAST_VALUE: np.repeat(values[first - 1 : first], len(ahead), axis=0)}
    if season:
        one_step[SEASON_AGO] = values[first - season + ahead]
        free[SEASON_AGO] = values[first - season + ahead % season]
    return one_step, free


def rmse(forecast: np.ndarray, actual: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Root mean squared error over the first `steps` rows: `[..., H, D]` -> `[..., D]`.

    Rows of which nothing was measured, NaN in `actual`, do not count; NaN where none was.
    """
    errors = (forecast - actual)[..., :steps, :]
    known = np.broadcast_to(~np.isnan(actual[:steps]), errors.shape)
    count = np.sum(known, axis=-2)
    total = np.sum(np.square(errors), axis=-2, where=known)
    return np.sqrt(np.where(count, total / np.maximum(count, 1), np.nan))


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over the networks, the first axis; 0 of a single one."""
    return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def as_csv(found: Forecasts, dates: list[str], names: list[str]) -> str:
    """forecast.csv: a line for each column of the data and each held-out row.

    `actual` is empty where nothing was measured.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = ((ONE_STEP, found.one_step_baselines), (FREE_RUN, found.free_run_baselines))
    writer.writerow(
        ["date", "column", "actual"]
        + [f"{kind}_{word}" for kind, _ in kinds for word in ("mean", "std")]
        + [f"{kind}_{name.replace(' ', '_')}" for kind, others in kinds for name in others]
    )
    networks = (found.one_step, found.free_run)
    for column, name in enumerate(names):
        numbers = [found.actual]
        numbers += [part for own in networks for part in (own.mean(axis=0), spread(own))]
        numbers += [values for _, others in kinds for values in others.values()]
        for row, date in enumerate(dates):
            cells = [part[row, column] for part in numbers]
            writer.writerow([date, name, *("" if np.isnan(c) else f"{c:.6g}" for c in cells)])
    return text.getvalue()
