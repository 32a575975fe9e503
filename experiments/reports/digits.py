"""Figures, table and words of the digits experiment, from its lines and arrays."""

from pathlib import Path

import numpy as np

from experiments.reports.memory import Trained, best_cells, slopes
from experiments.training.groups import Group
from experiments.training.parts import Row
from rnn_jax import plots
from rnn_jax.io import records


def save(
    workdir: Path,
    task: str,
    rows: list[Row],
    groups: list[Group],
    chance_wrong: float,
    test_every: int,
) -> str:
    """Draws the figures and writes the table; returns the summary.

    Args:
        workdir: the experiment's folder.
        task: its name, for titles.
        rows: the lines of all networks.
        groups: theirs.
        chance_wrong: share of wrong answers without memory.
        test_every: iterations between two points of a curve.
    """
    cells = best_cells(workdir, rows, groups, [chance_wrong] * len(groups), curve="wrong")
    best = max(cells, key=lambda cell: np.mean(accuracies(cell)))
    panel = {cell.kind: cell.learned for cell in cells}
    records.save_figure(
        workdir,
        "learning_curves",
        plots.learning_curves(
            {"share of wrong test images": panel},
            test_every,
            {"share of wrong test images": chance_wrong},
            f"{task}: {best.kind} gets {np.mean(accuracies(best)):.1%} right",
            ylabel="share wrong",
        ),
    )
    records.save_figure(
        workdir,
        "gradient_profiles",
        plots.start_and_end(
            panel,
            f"{task}: the gradient before and after training",
            ("after: at least 95 % right", "after: less"),
        ),
    )
    table = markdown(cells)
    records.write_atomically(workdir / "table.md", table)
    return table + f"Lines, arrays and figures: {workdir}/\n"


def accuracies(cell: Trained) -> np.ndarray:
    """Share of right answers of each network after its last iteration; 0 where it diverged."""
    return np.array([0.0 if row["wrong"] is None else 1 - row["wrong"] for row in cell.rows])


def markdown(cells: list[Trained]) -> str:
    """A row for each kind: test accuracy with its spread over seeds, and the gradient's slope."""
    lines = [
        "| cell | test accuracy: mean ± standard deviation | smallest..largest | diverged "
        "| slope before → after, nats a step |",
        "|---" * 5 + "|",
    ]
    for cell in cells:
        found = accuracies(cell)
        gone = sum(row["diverged_step"] is not None for row in cell.rows)
        lines.append(
            f"| {cell.kind} | {found.mean():.1%} ± {found.std(ddof=min(1, len(found) - 1)):.1%} "
            f"| {found.min():.1%}..{found.max():.1%} | {gone} of {len(found)} | {slopes(cell)} |"
        )
    return "\n".join(lines) + "\n"
