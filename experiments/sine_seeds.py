"""The sine experiment over many seeds, as a table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import free_running, interruption
from experiments.history import History
from rnn_jax import records
from rnn_jax.reading import MAX_LINES_BYTES, read_bytes

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


def table(
    workdir: Path, seeds: Sequence[int], run: Callable[[int], Row], resume: bool = True
) -> list[Row]:
    """Runs every seed and prints a line of each; seeds.json holds what is found so far.

    Args:
        workdir: the folder.
        seeds: in order.
        run: one of them.
        resume: take the first of them from seeds.json, where they are there.

    Raises:
        Interrupted: a signal came, and a seed was brought to its end.
    """
    rows = found(workdir, seeds) if resume else []
    with interruption.noticed() as asked_to_stop:
        for number, seed in enumerate(seeds):
            if number == len(rows):
                if asked_to_stop():
                    raise interruption.Interrupted(f"stopped after {number} of {len(seeds)} seeds")
                rows.append(run(seed))
                content = json.dumps(rows, indent=1) + "\n"
                records.write_atomically(workdir / "seeds.json", content)
            if number == 0:
                print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
            print(_line(seed, list(rows[number].values())[1:]), flush=True)
    columns = list(zip(*(row.values() for row in rows), strict=True))[1:]
    for word, pick in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
        print(_line(word, [float(pick(column)) for column in columns]))
    return rows


def found(workdir: Path, seeds: Sequence[int]) -> list[Row]:
    """The rows of seeds.json, as far as they are those of the seeds in order."""
    try:
        stored = json.loads(read_bytes(workdir / "seeds.json", MAX_LINES_BYTES))
        rows = [{name: float(value) for name, value in row.items()} for row in stored]
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return []
    if [row.get("seed") for row in rows] != list(seeds[: len(rows)]):
        return []
    return [{**row, "seed": int(row["seed"])} for row in rows]


def _line(name: Any, cells: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |"
