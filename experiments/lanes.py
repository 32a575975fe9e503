"""Networks that learn side by side, some iterations at a time, until each has solved its task.

The host sees them between two stretches: it tells how far they are, lets go of those that have
solved the task or left the finite range, and stops when none is left.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.recipes import Recipe
from experiments.sweep_theory import told_at
from experiments.sweeping import Arrays, Layout, Row, Work
from rnn_jax import sweep

MOMENTS = ("start", "end")


def learn(work: Work, layout: Layout, say: Callable[[str], None]) -> Iterator[sweep.Lanes]:
    """The `sweeping.Batches` of groups whose fit is a `Recipe`.

    Of each network: loss and gradient_norm `[C]`, the means over each of C stretches, norms before
    clipping; worst_norm `[C]`, the largest; traces `[C, T]`, |dL/ds_t| at the last iteration of
    each; test_loss and wrong `[C]`, after each; log_norms_start, log_norms_end `[T, B]` and
    exponent_start, exponent_end, its gradient's flow; steps, iterations that it trained;
    diverged_step and diverged_time_step, 0 where there is none. After a network's end its numbers
    stay as they were.
    """
    chosen: Recipe = work.group.fit
    keys = work.keys[work.indices]
    numbers = {name: values[work.indices] for name, values in work.numbers.items()}

    def run(program: Any, rows: Any, which: np.ndarray) -> Any:
        return sweep.sweep(
            program,
            jax.tree.map(lambda leaf: leaf[which], rows),
            keys[which],
            width=layout.width,
            lanes=layout.lanes,
            mesh=layout.mesh,
        )

    everyone = np.arange(len(keys))
    say("first measurement")
    state = run(chosen.init, numbers, everyone)
    start = run(chosen.flow, (numbers, state), everyone)
    live = everyone
    stretches: list[Arrays] = []
    end = {
        name: np.zeros(len(keys), int) for name in ("steps", "diverged_step", "diverged_time_step")
    }
    for first in range(0, chosen.num_steps, chosen.test_every):
        if chosen.floss is not None and first in chosen.floss_at:
            say(f"iteration {first}: flossing")
            state = _replaced(state, live, run(chosen.floss, (numbers, state), live))
        new, found = run(chosen.train, (numbers, state), live)
        stretches.append(_stretch(found, live, stretches[-1] if stretches else None))
        end["steps"][live] += chosen.test_every
        bad = ~(np.isfinite(found["loss"]) & np.isfinite(found["gradient_norm"]))
        gone = bad.any(axis=1)
        at = np.argmax(bad, axis=1)
        end["diverged_step"][live[gone]] = (first + 1 + at)[gone]
        end["diverged_time_step"][live[gone]] = found["nonfinite_step"][gone, at[gone]]
        # A network that left the finite range is kept as it was a stretch before.
        state = _replaced(
            state, live[~gone], jax.tree.map(lambda leaf, keep=~gone: leaf[keep], new)
        )
        solved = ~gone & (found["wrong"] <= chosen.solved_wrong)
        live = live[~gone & ~solved]
        done = len(keys) - len(live) - np.count_nonzero(end["diverged_step"])
        say(
            f"iteration {first + chosen.test_every} of {chosen.num_steps}: test loss "
            f"{np.median(stretches[-1]['test_loss']):.3g}, {done} of {len(keys)} solved"
        )
        if not len(live):
            break
    finish = run(chosen.flow, (numbers, state), everyone)
    flows = {
        f"{name}_{moment}": values
        for moment, flow in zip(MOMENTS, (start, finish), strict=True)
        for name, values in flow.items()
    }
    curves = {name: np.stack([part[name] for part in stretches], 1) for name in stretches[0]}
    # Curves are of one length, whenever the last network came to its end.
    missing = chosen.num_steps // chosen.test_every - len(stretches)
    curves = {
        name: np.concatenate([values, np.repeat(values[:, -1:], missing, axis=1)], axis=1)
        for name, values in curves.items()
    }
    yield sweep.Lanes(work.indices, {**curves, **flows, **end})


def _replaced(tree: Any, which: np.ndarray, new: Any) -> Any:
    """The rows `which` of every leaf replaced."""

    def put(leaf: np.ndarray, rows: np.ndarray) -> np.ndarray:
        leaf = np.array(leaf)
        leaf[which] = rows
        return leaf

    return jax.tree.map(put, tree, new)


def _stretch(found: Arrays, live: np.ndarray, before: Arrays | None) -> Arrays:
    """A stretch's numbers of all networks; those at their end keep what they had."""
    new = {
        "loss": found["loss"].mean(axis=1),
        "gradient_norm": found["gradient_norm"].mean(axis=1),
        "worst_norm": found["gradient_norm"].max(axis=1),
        "traces": found["traces"],
        "test_loss": found["test_loss"],
        "wrong": found["wrong"],
    }
    return (
        new if before is None else {name: _replaced(before[name], live, new[name]) for name in new}
    )


def describe(solved_wrong: float) -> Callable[[Row, Arrays], tuple[Row, Arrays]]:
    """What is told of a network that learned: a group's `describe`.

    Args:
        solved_wrong: largest share of wrong sequences of a network that has solved its task.

    The line has wrong and test_loss of the last test, solved and the number of steps, where it
    diverged (None where it did not), and slope, horizon, verdict and exponent at start and end.
    """

    def described(point: Row, results: Arrays) -> tuple[Row, Arrays]:
        del point
        diverged = int(results["diverged_step"])
        wrong = float(results["wrong"][-1])
        line: Row = {
            "solved": bool(not diverged and wrong <= solved_wrong),
            "wrong": None if diverged else wrong,
            "test_loss": None if diverged else float(results["test_loss"][-1]),
            "steps": int(results["steps"]),
            "diverged_step": diverged or None,
            "diverged_time_step": int(results["diverged_time_step"]) or None,
        }
        kept = {
            name: results[name]
            for name in ("loss", "gradient_norm", "worst_norm", "traces", "test_loss", "wrong")
        }
        flow, profiles = told_at(MOMENTS, results)
        return line | flow, kept | profiles

    return described
