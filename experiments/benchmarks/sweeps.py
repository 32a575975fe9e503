"""Many networks of the tutorial's size: a sweep, one by one, one wide vmap, and PyTorch."""

from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.report import Findings, Row, Wanted
from experiments.benchmarks.timing import Side, Times, interleaved, stopwatch
from experiments.sine import SineConfig, setup
from rnn_jax import losses, objectives, optim, sharding, sweep, train
from rnn_jax.model import Model
from rnn_jax.tasks import sine
from rnn_jax.types import Array, Key

NUM_NETWORKS = 1000
NUM_STEPS = 200
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
    state = train.fresh_state(model, optimizer, init_key, 1, CONFIG.batch_size)
    _, metrics = train.scan_steps(objective, optimizer, SAMPLE, state, data_key, NUM_STEPS)
    return metrics.loss, metrics.trace


def findings(torch: Any, repeats: int) -> Findings:
    """Seconds per network of each way.

    Args:
        torch: the module `experiments.benchmarks.pytorch`, or None for no such row.
        repeats: rounds.
    """
    model = setup(CONFIG).model

    def fit(learning_rate: Array, key: Key) -> tuple[Array, Array]:
        return learn(model, learning_rate, key)

    keys = jax.random.split(jax.random.key(0), NUM_NETWORKS)
    rates = np.full(NUM_NETWORKS, CONFIG.learning_rate, np.float32)
    alone, wide = jax.jit(fit), jax.jit(jax.vmap(fit))
    one_device = sharding.lanes_mesh(jax.devices()[:1])
    count = len(jax.devices())

    def swept(mesh: Any) -> Side:
        def work(_: None) -> Any:
            return sweep.sweep(fit, rates, keys, mesh=mesh)

        return Side(stopwatch(lambda: None, work), NUM_NETWORKS)

    def one_by_one(_: None) -> Any:
        return [alone(rates[0], key) for key in keys[:SOLO_NETWORKS]]

    ours = f"sweep, {count} devices"
    sides = {
        ours: swept(sharding.lanes_mesh()),
        "sweep, 1 device": swept(one_device),
        "one by one": Side(stopwatch(lambda: None, one_by_one), SOLO_NETWORKS),
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
