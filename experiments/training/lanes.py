"""Networks that learn side by side, some iterations at a time, until each has solved its task.

The host sees them between two stretches: it tells how far they are, lets go of those that have
solved the task or left the finite range, and stops when none is left.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.analysis.sweep_fits import Numbers
from experiments.analysis.sweep_theory import told_at
from experiments.cli.signals import Interrupted
from experiments.training.recipes import Recipe
from experiments.training.resuming import is_due
from experiments.training.sweeping import Arrays, Layout, Row, Work
from rnn_jax import sweep
from rnn_jax.io import checkpoint, records

MOMENTS = ("start", "end")


class Standing(NamedTuple):
    """How far the networks of a group are, between two stretches.

    Attributes:
        iteration: where they are.
        state: of training, leaves `[N, ...]`.
        live: `[M]`, which of them still train.
        start: their gradient's flow before training, name -> `[N, ...]`.
        end: steps, diverged_step and diverged_time_step so far, `[N]` each.
        stretches: name -> `[N, ...]`, one entry a stretch.
    """

    iteration: int
    state: Any
    live: np.ndarray
    start: Arrays
    end: Arrays
    stretches: list[Arrays]


Run = Callable[[Any, Any, np.ndarray], Any]
"""`(program, rows of all networks, which of them) -> results`."""


def learn(work: Work, layout: Layout, say: Callable[[str], None]) -> Iterator[sweep.Lanes]:
    """The `sweeping.Batches` of groups whose fit is a `Recipe`.

    Of each network: loss and gradient_norm `[C]`, the means over each of C stretches, norms before
    clipping; worst_norm `[C]`, the largest; traces `[C, T]`, |dL/ds_t| at the last iteration of
    each; test_loss and wrong `[C]`, after each; log_norms_start, log_norms_end `[T, B]` and
    exponent_start, exponent_end, its gradient's flow; steps, iterations that it trained;
    diverged_step and diverged_time_step, 0 where there is none. After a network's end its numbers
    stay as they were.

    Raises:
        Interrupted: a signal came; the same call goes on from there.
        ValueError: the folder cannot be written, or no checkpoint in it is whole.
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

    now = _taken_up(work, chosen) if work.safety.resume else None
    if now is None:
        say("first measurement")
        now = _begun(chosen, numbers, run, len(keys))
    kept, kept_at = now.iteration, time.monotonic()
    while now.iteration < chosen.num_steps and len(now.live):
        if chosen.floss is not None and now.iteration in chosen.floss_at:
            say(f"iteration {now.iteration}: flossing")
            flossed = run(chosen.floss, (numbers, now.state), now.live)
            now = now._replace(state=_replaced(now.state, now.live, flossed))
        new, found = run(chosen.train, (numbers, now.state), now.live)
        now = _after(now, new, found, chosen)
        done = len(keys) - len(now.live) - np.count_nonzero(now.end["diverged_step"])
        say(
            f"iteration {now.iteration} of {chosen.num_steps}: test loss "
            f"{np.median(now.stretches[-1]['test_loss']):.3g}, {done} of {len(keys)} solved"
        )
        stop = work.asked_to_stop() and now.iteration < chosen.num_steps and len(now.live) > 0
        if stop or is_due(work.safety, now.iteration, kept, kept_at):
            _keep(work, now)
            kept, kept_at = now.iteration, time.monotonic()
        if stop:
            raise Interrupted(f"stopped at iteration {now.iteration} of {chosen.num_steps}")
    finish = run(chosen.flow, (numbers, now.state), np.arange(len(keys)))
    flows = {
        f"{name}_{moment}": values
        for moment, flow in zip(MOMENTS, (now.start, finish), strict=True)
        for name, values in flow.items()
    }
    curves = {
        name: np.stack([part[name] for part in now.stretches], 1) for name in now.stretches[0]
    }
    # Curves are of one length, whenever the last network came to its end.
    missing = chosen.num_steps // chosen.test_every - len(now.stretches)
    curves = {
        name: np.concatenate([values, np.repeat(values[:, -1:], missing, axis=1)], axis=1)
        for name, values in curves.items()
    }
    yield sweep.Lanes(work.indices, {**curves, **flows, **now.end})


def _begun(chosen: Recipe, numbers: Numbers, run: Run, count: int) -> Standing:
    """Fresh networks, measured."""
    everyone = np.arange(count)
    state = run(chosen.init, numbers, everyone)
    start = run(chosen.flow, (numbers, state), everyone)
    names = ("steps", "diverged_step", "diverged_time_step")
    return Standing(0, state, everyone, start, {name: np.zeros(count, int) for name in names}, [])


def _after(now: Standing, new: Any, found: Arrays, chosen: Recipe) -> Standing:
    """The networks after a stretch, of which those still training have a new state."""
    live, before = now.live, now.stretches[-1] if now.stretches else None
    bad = ~(np.isfinite(found["loss"]) & np.isfinite(found["gradient_norm"]))
    gone = bad.any(axis=1)
    at = np.argmax(bad, axis=1)
    end = {name: values.copy() for name, values in now.end.items()}
    end["steps"][live] += chosen.test_every
    end["diverged_step"][live[gone]] = (now.iteration + 1 + at)[gone]
    end["diverged_time_step"][live[gone]] = found["nonfinite_step"][gone, at[gone]]
    # A network that left the finite range is kept as it was a stretch before.
    state = _replaced(now.state, live[~gone], jax.tree.map(lambda leaf: leaf[~gone], new))
    solved = ~gone & (found["wrong"] <= chosen.solved_wrong)
    return now._replace(
        iteration=now.iteration + chosen.test_every,
        state=state,
        live=live[~gone & ~solved],
        end=end,
        stretches=[*now.stretches, _stretch(found, live, before)],
    )


def _keep(work: Work, now: Standing) -> None:
    """Writes a checkpoint of a group."""
    tree = {
        "state": dict(_named(jax.tree.leaves(now.state))),
        "live": now.live,
        "start": now.start,
        "end": now.end,
        "stretches": dict(_named(now.stretches)),
        "indices": work.indices,
    }
    try:
        # The run's own folder is not made again where somebody took it away.
        work.folder.parent.mkdir(exist_ok=True)
        checkpoint.save(work.folder, now.iteration, tree)
    except OSError as error:
        raise ValueError(records.cannot_write(work.folder, error)) from error


def _taken_up(work: Work, chosen: Recipe) -> Standing | None:
    """Where the group stands on disk; None where it has not begun, or other networks of it have."""
    stood = checkpoint.load(work.folder)
    if stood is None or stood.tree["indices"].tolist() != work.indices.tolist():
        return None
    tree = jax.tree.map(np.asarray, stood.tree)
    numbers = {name: values[0] for name, values in work.numbers.items()}
    like = jax.eval_shape(chosen.init, numbers, work.keys[0])
    leaves = [leaf for _, leaf in sorted(tree["state"].items())]
    return Standing(
        stood.step,
        jax.tree.unflatten(jax.tree.structure(like), leaves),
        tree["live"],
        tree["start"],
        tree["end"],
        [part for _, part in sorted(tree["stretches"].items())],
    )


def _named(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Items under names that sort in their order."""
    return ((f"{index:06d}", item) for index, item in enumerate(items))


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
