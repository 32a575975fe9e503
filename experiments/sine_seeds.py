"""The sine experiment over many seeds, as a table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import free_running
from experiments.history import History
from rnn_jax import records

Row = dict[str, float]


def row_of(seed: int, history: History, carried: free_running.FreeRun, warmed: np.ndarray) -> Row:
    """What is told of a run: its last losses and the errors of its free runs."""
    return {
        "seed": seed,
        "loss, last 100": float(history.loss[-100:].mean()),
        "free run 49, carried state": carried.error,
        "free run 200, 49 true points": float(warmed[: free_running.SHORT_RUN].mean()),
        "free run 1,000, 49 true points": float(warmed.mean()),
    }


def table(workdir: Path, seeds: Sequence[int], run: Callable[[int], Row]) -> list[Row]:
    """Runs every seed and prints a line of each; seeds.json holds what is found so far."""
    rows: list[Row] = []
    for seed in seeds:
        rows.append(run(seed))
        records.write_atomically(workdir / "seeds.json", json.dumps(rows, indent=1) + "\n")
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
        print(_line(seed, list(rows[-1].values())[1:]), flush=True)
    columns = list(zip(*(row.values() for row in rows), strict=True))[1:]
    for word, pick in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
        print(_line(word, [float(pick(column)) for column in columns]))
    return rows


def _line(name: Any, cells: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |"
