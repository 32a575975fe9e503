"""Figures, table and words of the memory experiment, from its lines and arrays."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.training.groups import Group
from experiments.training.parts import Row
from rnn_jax import plots
from rnn_jax.gradflow import theory
from rnn_jax.io import records
from rnn_jax.plots import Learned

MANY = 6
"""Kinds that colours can tell apart."""
DELAYED = ("copy_memory", "delayed_xor")
"""Tasks whose length is a delay."""


class Trained(NamedTuple):
    """The networks of one kind at one length, at the learning rate that did best.

    Attributes:
        kind: the cure's name, and the gain where several were tried.
        cure, length: theirs.
        learning_rate: with the most networks that solved the task; of equals, the lowest loss.
        rows: their lines.
        learned: their curves and gradients.
        chance_loss: where the curve of the best answer without memory lies.
    """

    kind: str
    cure: str
    length: int
    learning_rate: float
    rows: list[Row]
    learned: Learned
    chance_loss: float


def best_cells(
    workdir: Path,
    rows: list[Row],
    groups: list[Group],
    chance: list[float],
    curve: str = "test_loss",
) -> list[Trained]:
    """The networks of each group and gain at the best learning rate, in the order of the groups.

    Args:
        workdir: the experiment's folder.
        rows: the lines of all networks.
        groups: theirs.
        chance: what the best answer without memory reaches, one a group.
        curve: the array whose curves are drawn.
    """
    ends = np.cumsum([len(group.seeds) for group in groups])
    found = []
    for number, (group, end) in enumerate(zip(groups, ends, strict=True)):
        mine = rows[end - len(group.seeds) : end]
        arrays = {
            name: records.load_array(workdir, f"{name}_{number:04d}")
            for name in (curve, "profile_start", "profile_end")
        }
        gains = sorted({row.get("gain", np.nan) for row in mine})
        for gain in gains:
            same = [row.get("gain", np.nan) == gain or len(gains) == 1 for row in mine]
            rates = {row["learning_rate"] for row, chosen in zip(mine, same, strict=True) if chosen}
            merits = [(_merit(mine, same, rate), -rate) for rate in rates]
            rate = -max(merits)[1]
            chosen = [i for i, row in enumerate(mine) if same[i] and row["learning_rate"] == rate]
            picked = [mine[index] for index in chosen]
            cure = str(group.settings["cure"]).replace("_", " ")
            found.append(
                Trained(
                    kind=f"{cure}, gain {gain:g}" if len(gains) > 1 else cure,
                    cure=cure,
                    length=int(group.settings["length"]),
                    learning_rate=float(rate),
                    rows=picked,
                    learned=Learned(
                        arrays[curve][chosen],
                        np.array([row["solved"] for row in picked]),
                        arrays["profile_start"][chosen],
                        arrays["profile_end"][chosen],
                    ),
                    chance_loss=chance[number],
                )
            )
    return found


def _merit(rows: list[Row], chosen: list[bool], rate: float) -> tuple[float, float]:
    mine = [
        row for row, yes in zip(rows, chosen, strict=True) if yes and row["learning_rate"] == rate
    ]
    losses = [np.inf if row["test_loss"] is None else row["test_loss"] for row in mine]
    return float(np.mean([row["solved"] for row in mine])), -float(np.median(losses))


def save(
    workdir: Path,
    task: str,
    rows: list[Row],
    groups: list[Group],
    chance: list[float],
    test_every: int,
) -> str:
    """Draws the figures and writes the table; returns the summary.

    Args:
        workdir: the experiment's folder.
        task: its name, for titles.
        rows: the lines of all networks.
        groups: theirs.
        chance: loss without memory, one a group.
        test_every: iterations between two points of a curve.
    """
    cells = best_cells(workdir, rows, groups, chance)
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    lengths = sorted({cell.length for cell in cells})
    names = {length: length_name(task, length) for length in lengths}
    task = task.replace("_", " ")
    grid = {(cell.kind, cell.length): cell for cell in cells}
    _save_curves(workdir, task, kinds, names, grid, test_every)
    records.save_figure(
        workdir,
        "gradient_profiles",
        plots.start_and_end(
            {kind: grid[kind, lengths[-1]].learned for kind in kinds},
            f"{task}, {names[lengths[-1]]}: the gradient before and after training",
        ),
    )
    if len(cells) > 1:
        records.save_figure(
            workdir,
            "success",
            plots.success_table(
                kinds,
                list(names.values()),
                np.array([[grid[k, n].learned.solved.mean() for n in lengths] for k in kinds]),
                [[slopes(grid[k, n]) for n in lengths] for k in kinds],
                f"{task}: who solves it; slope before → after, nats per step",
            ),
        )
    if len(lengths) > 2:
        _save_foretold(workdir, task, kinds, lengths, grid)
    table = markdown(kinds, names, grid)
    records.write_atomically(workdir / "table.md", table)
    return table + summary(workdir, cells, names)


Grid = dict[tuple[str, int], Trained]
"""(kind, length) -> networks."""


def _save_curves(
    workdir: Path,
    task: str,
    kinds: list[str],
    names: dict[int, str],
    grid: Grid,
    test_every: int,
) -> None:
    """A panel for each length, or for each kind where there are many."""
    lengths = list(names)
    if by_kind := len(kinds) > MANY:
        panels = {k: {names[n]: grid[k, n].learned for n in lengths} for k in kinds}
        chance = {k: grid[k, lengths[-1]].chance_loss for k in kinds}
    else:
        panels = {names[n]: {k: grid[k, n].learned for k in kinds} for n in lengths}
        chance = {names[n]: grid[kinds[0], n].chance_loss for n in lengths}
    solved = sum(int(trained.learned.solved.sum()) for trained in grid.values())
    total = sum(len(trained.rows) for trained in grid.values())
    title = f"{task}: {solved} of {total} networks have learned it"
    records.save_figure(
        workdir,
        "learning_curves",
        plots.learning_curves(panels, test_every, chance, title, ordered=by_kind),
    )


def _save_foretold(
    workdir: Path, task: str, kinds: list[str], lengths: list[int], grid: Grid
) -> None:
    """How long a sequence each kind has learned, against what its untrained gradient foretells."""
    predicted, found = foretold(kinds, lengths, grid)
    records.save_figure(
        workdir,
        "foretold",
        plots.foretold(
            predicted,
            found,
            [grid[kind, lengths[0]].cure for kind in kinds],
            lengths[-1],
            "Does the untrained gradient tell who will learn?",
        ),
    )


def foretold(kinds: list[str], lengths: list[int], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Trainable length before training, and the longest that half of the seeds learned, `[kinds]`.

    The first comes from the median slope of the untrained networks at the longest T.
    """
    slope = np.array([middle(grid[kind, lengths[-1]].rows, "slope_start") for kind in kinds])
    learned = [
        max([n for n in lengths if grid[kind, n].learned.solved.mean() >= 0.5], default=0)
        for kind in kinds
    ]
    return np.asarray(theory.trainable_length(slope)), np.array(learned)


def length_name(task: str, length: int) -> str:
    """What a length is called in figures and tables."""
    return f"{'delay' if task in DELAYED else 'T'} = {length}"


def slopes(cell: Trained) -> str:
    """Median slope of the gradient before and after training, nats per step back."""
    return " → ".join(f"{middle(cell.rows, f'slope_{m}'):+.3f}" for m in ("start", "end"))


def middle(rows: list[Row], name: str) -> float:
    """Median of a number over the networks of which it is known; NaN where it is of none."""
    known = [row[name] for row in rows if row[name] is not None and np.isfinite(row[name])]
    return float(np.median(known)) if known else np.nan


def markdown(kinds: list[str], names: dict[int, str], grid: Grid) -> str:
    """The table cure x length: share of networks that solved it, and the slope before and after."""
    lines = [
        "| cure | " + " | ".join(names.values()) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for kind in kinds:
        cells = [grid[kind, length] for length in names]
        shown = [f"{cell.learned.solved.mean():.0%} ({slopes(cell)})" for cell in cells]
        lines.append(f"| {kind} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def summary(workdir: Path, cells: list[Trained], names: dict[int, str]) -> str:
    """One line a cure and length."""
    lines = []
    for cell in cells:
        count = int(cell.learned.solved.sum())
        steps = [row["steps"] for row in cell.rows if row["solved"]]
        losses = [row["test_loss"] for row in cell.rows if row["test_loss"] is not None]
        gone = sum(row["diverged_step"] is not None for row in cell.rows)
        words = f"{cell.kind}, {names[cell.length]}: {count} of {len(cell.rows)} solved it"
        if steps:
            words += f" in {int(np.median(steps)):,} iterations (median)"
        if losses:
            words += f"; test loss {np.median(losses):.3g}, without memory {cell.chance_loss:.3g}"
        if gone:
            words += f"; {gone} diverged"
        lines.append(f"{words}; learning rate {cell.learning_rate:g}")
    lines.append(f"Lines, arrays and figures: {workdir}/")
    return "\n".join(lines) + "\n"
