"""Many networks of the tutorial's size: a sweep, one by one, one wide vmap, and PyTorch."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.report import Findings, Row, Wanted
from experiments.benchmarks.timing import Side, Times, interleaved, spread, stopwatch
from experiments.setup.sine import SineConfig, parts_of
from rnn_jax import losses, objectives, plots, sharding, sweep, training
from rnn_jax.model import Model
from rnn_jax.tasks import sine
from rnn_jax.training import optim
from rnn_jax.types import Array, Key

NUM_NETWORKS = 1000
NUM_STEPS = 200
NUMBERS = (1, 10, 100, 1000)
"""Networks side by side, to see what the number does."""
TORCH_NETWORKS = 20
SOLO_NETWORKS = 100
CONFIG = SineConfig()
"""Settings of the tutorial: H = 16, B = 1, T = 49, Adam."""
SAMPLE = sine.sampler(CONFIG.batch_size)


def learn(model: Model, learning_rate: Array, key: Key) -> tuple[Array, Array]:
    """One network: the loss and the trace of all its iterations."""
    optimizer = optim.recorded(optax.adam(learning_rate))
    objective = objectives.next_step_objective(model, losses.squared_error)
    init_key, data_key = jax.random.split(key)
    state = training.fresh_state(model, optimizer, init_key, 1, CONFIG.batch_size)
    _, metrics = training.scan_steps(objective, optimizer, SAMPLE, state, data_key, NUM_STEPS)
    return metrics.loss, metrics.trace


def one_network(learning_rate: Array, key: Key) -> tuple[Array, Array]:
    """`learn` of the tutorial's model."""
    return learn(parts_of(CONFIG).model, learning_rate, key)


def networks(count: int) -> tuple[np.ndarray, Key]:
    """Learning rates and keys of so many."""
    rates = np.full(count, CONFIG.learning_rate, np.float32)
    return rates, jax.random.split(jax.random.key(0), count)


def swept(count: int, mesh: Any) -> Side:
    """A sweep of so many networks over the devices of a mesh."""
    rows = networks(count)
    return Side(
        stopwatch(lambda: None, lambda _: sweep.sweep(one_network, *rows, mesh=mesh)), count
    )


def one_by_one(count: int) -> Side:
    """So many networks, each by a call of its own of one compiled program."""
    rates, keys = networks(count)
    alone = jax.jit(one_network)
    return Side(stopwatch(lambda: None, lambda _: [alone(rates[0], key) for key in keys]), count)


def findings(torch: Any, repeats: int) -> Findings:
    """Seconds per network of each way.

    Args:
        torch: the module `experiments.benchmarks.pytorch`, or None for no such row.
        repeats: rounds.
    """
    rates, keys = networks(NUM_NETWORKS)
    wide = jax.jit(jax.vmap(one_network))
    one_device = sharding.lanes_mesh(jax.devices()[:1])
    count = len(jax.devices())
    ours = f"sweep, {count} devices"
    sides = {
        ours: swept(NUM_NETWORKS, sharding.lanes_mesh()),
        "sweep, 1 device": swept(NUM_NETWORKS, one_device),
        "one by one": one_by_one(SOLO_NETWORKS),
        "one wide vmap": Side(stopwatch(lambda: None, lambda _: wide(rates, keys)), NUM_NETWORKS),
    }
    if torch:

        def in_torch(_: None) -> Any:
            for seed in range(TORCH_NETWORKS):
                net = torch.network(CONFIG.hidden_size, seed)
                torch.train(net, NUM_STEPS, CONFIG.log_every, CONFIG.learning_rate, 1, seed)

        sides["PyTorch, one by one"] = Side(stopwatch(lambda: None, in_torch), TORCH_NETWORKS)
    times = interleaved(sides, repeats)
    what = f"a network of {NUM_NETWORKS:,}, {NUM_STEPS} iterations: sweep / "
    rows = [
        Row(what + "one by one", times[ours], times["one by one"], wanted=Wanted(">=", 2)),
        Row(what + "one wide vmap", times[ours], times["one wide vmap"], wanted=Wanted(">=", 1.5)),
    ]
    if count > 1:
        rows.append(
            Row(what + "1 device", times[ours], times["sweep, 1 device"], wanted=Wanted(">=", 1.5))
        )
    if torch:
        pytorch = times["PyTorch, one by one"]
        rows.append(Row(what + "PyTorch", times[ours], pytorch, wanted=Wanted(">=", 150)))
        per_network = times[ours].compilation / NUM_NETWORKS
        compiled = Times(ours, times[ours].seconds + per_network)
        rows.append(
            Row(what + "PyTorch, compilation counted", compiled, pytorch, wanted=Wanted(">=", 60))
        )
    notes = [
        f"Ours one by one is scaled from {SOLO_NETWORKS} networks, PyTorch from {TORCH_NETWORKS}."
    ]
    return Findings(rows, notes)


def by_number(repeats: int) -> Findings:
    """Seconds per network and iteration of sweeps of few and of many networks.

    Args:
        repeats: rounds.
    """
    mesh = sharding.lanes_mesh()
    alone = "one by one"
    sides = {alone: one_by_one(SOLO_NETWORKS)}
    sides.update({_counted(count): swept(count, mesh) for count in NUMBERS})
    sides = {
        name: side._replace(iterations=side.iterations * NUM_STEPS) for name, side in sides.items()
    }
    times = interleaved(sides, repeats)
    reference = times.pop(alone)
    rows = [
        Row(f"a network and iteration, {name} in a sweep / {alone}", found, reference, at=at)
        for (name, found), at in zip(
            times.items(), ({"networks": count} for count in NUMBERS), strict=True
        )
    ]
    note = f"A sweep fills blocks of {sweep.WIDTH} networks on each of {mesh.size} devices."
    curve = _microseconds("in a sweep", NUMBERS, list(times.values()))
    ends = (NUMBERS[0], NUMBERS[-1])
    best = int(np.argmin(curve.middle))
    figure = plots.scaling(
        [curve],
        [_microseconds(alone, ends, [reference] * 2)],
        "networks trained side by side",
        "microseconds per network and iteration",
        f"Side by side a network costs {curve.middle[best]:.3g} us an iteration, alone "
        f"{1e6 * spread(reference.seconds).median:.3g} us",
    )
    return Findings(rows, [note], figures={"networks": figure})


def _counted(count: int) -> str:
    return f"{count:,} network" + ("s" if count > 1 else "")


def _microseconds(name: str, x: Sequence[int], times: Sequence[Times]) -> plots.Curve:
    middle, low, high = 1e6 * np.array([spread(found.seconds) for found in times]).T
    return plots.Curve(name, np.array(x), middle, low, high)
