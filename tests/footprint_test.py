"""What a program will take, told before it is compiled: against XLA's plan and a process's peak."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import rnn_jax
from experiments import benchmark, gradient_flow, memory, sine
from experiments.cli.options import UsageError
from experiments.setup import host_memory
from experiments.setup.sine import config_of
from experiments.training import liveness, memory_check
from experiments.training.algorithm import bptt_algorithm
from experiments.training.loop import Schedule
from rnn_jax import losses, objectives, training
from rnn_jax.io import records
from rnn_jax.tasks import sine as sine_task
from rnn_jax.training import optim

MB = 1e6
CELLS = {
    "elman": rnn_jax.elman,
    "lstm": rnn_jax.lstm,
    "gru": rnn_jax.gru,
    "own": lambda size: rnn_jax.elman(size)._replace(affine=None),
}


def parts_of(cell, hidden_size, batch_size, length):
    model = rnn_jax.sequence_model(CELLS[cell](hidden_size), 1)
    objective = objectives.next_step_objective(model, losses.squared_error)
    optimizer = optim.recorded(optax.adam(1e-3), None)
    return objective, optimizer, sine_task.sampler(batch_size, length + 1, "real")


def estimate(cell, hidden_size, batch_size, length, chunk=3):
    algorithm = algorithm_of(cell, hidden_size, batch_size, length)
    return memory_check.training_bytes(algorithm, {}, Schedule(chunk, chunk))


def algorithm_of(cell, hidden_size, batch_size, length):
    objective, optimizer, sample = parts_of(cell, hidden_size, batch_size, length)
    return bptt_algorithm(
        objective, lambda hparams: optimizer, sample, input_size=1, batch_size=batch_size
    )


def planned(cell, hidden_size, batch_size, length, chunk=3):
    """What XLA says of the compiled program: its state, which is donated, and what it works in."""
    objective, optimizer, sample = parts_of(cell, hidden_size, batch_size, length)
    key = jax.random.key(0)
    state = jax.eval_shape(
        lambda: training.fresh_state(objective.model, optimizer, key, 1, batch_size)
    )
    lowered = training.train_chunk.lower(objective, optimizer, sample, state, key, chunk)
    plan = lowered.compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.output_size_in_bytes


SHAPES = [
    ("elman", 32, 16, 300),
    ("lstm", 32, 16, 100),
    pytest.param(("gru", 32, 16, 100), marks=pytest.mark.slow),
    pytest.param(("lstm", 256, 4, 20), marks=pytest.mark.slow),
    pytest.param(("elman", 4, 16, 100, 200), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_estimate_is_what_xla_plans(shape):
    assert estimate(*shape) == pytest.approx(planned(*shape), rel=0.3)


def test_values_are_counted_from_where_they_are_made_to_where_they_are_last_read():
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    w = jax.ShapeDtypeStruct((1000, 1000), np.float32)

    def peak(fn, *args):
        return liveness.peak_bytes(jax.make_jaxpr(fn)(*args).jaxpr) / 4000

    assert peak(lambda x: x + 1, x) == 1
    # One value is read once by a sum, another only by what writes over it.
    assert peak(lambda x: jnp.sum(jnp.sin(x) * 2), x) == pytest.approx(1e-3)
    assert peak(lambda x, w: jnp.sin(w @ (w @ x)), x, w) == 2
    # All stacked, and the carry; zeros that are read are not written.
    steps = jnp.zeros
    stack = lambda x: lax.scan(lambda s, z: (s + z, s * 2), x, steps((50, 1000)))  # noqa: E731
    assert peak(stack, x) == pytest.approx(51, abs=3)
    # Computed twice, kept once.
    assert peak(lambda x, w: (w @ x, w @ x), x, w) == 1


def test_a_larger_request_takes_more():
    small = estimate("lstm", 8, 4, 50)
    assert estimate("lstm", 8, 4, 500) > 5 * small
    assert estimate("lstm", 8, 40, 50) > 5 * small
    assert estimate("lstm", 80, 4, 50) > 5 * small
    assert estimate("elman", 8, 4, 50, 3000) > estimate("elman", 8, 4, 50, 300) + 2700 * 4 * 50 * 8


@pytest.mark.survival
def test_what_cannot_fit_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda *args, **kwargs: compiled.append(args)
    )
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match=r"[\d,.]+ GB of memory, and .* GB are free: lower --hid"):
        sine.run(sine.SineConfig(hidden_size=4096, free_run_steps=10**7, workdir=str(folder)))
    with pytest.raises(UsageError, match=r"GB of memory, .*--length, --batch_size"):
        memory.run(
            memory.MemoryConfig(hidden_size=4096, length=str(10**7), seeds=1, workdir=str(folder))
        )
    with pytest.raises(UsageError, match=r"GB of memory, .*: lower --hidden_size, --length"):
        gradient_flow.run(gradient_flow.FlowConfig(hidden_size=10**6, workdir=str(folder)))
    with pytest.raises(UsageError, match=r"GB of memory, .*: lower --hidden_size, --batch_size"):
        benchmark.run(benchmark.BenchmarkConfig(hidden_size="1000000", workdir=str(folder)))
    assert not folder.exists()
    assert not compiled


@pytest.mark.survival
def test_a_folder_that_asks_for_too_much_is_refused(tmp_path):
    config = {"experiment": "sine", "batch_size": 2**31 - 1, "free_run_steps": 10**6}
    records.open_run(tmp_path, config)
    flow = gradient_flow.FlowConfig(run=str(tmp_path), workdir=str(tmp_path / "flow"))
    with pytest.raises(UsageError, match="GB of memory"):
        gradient_flow.network_of(flow)


@pytest.mark.parametrize(
    "changes",
    [
        {"workdir": "/tmp/elsewhere"},
        {"overwrite": True},
        {"hidden_size": "16"},
        {"hidden_size": True},
        {"hidden_size": 10**12},
        {"hidden_size": [1]},
        {"learning_rate": "fast"},
        {"init": {"a": 1}},
        {"trace_parameters": 1},
        {"unknown": 1},
        {"experiment": "memory"},
        {"experiment": ["sine"]},
    ],
)
def test_a_strange_config_of_a_folder_is_refused_in_one_line(changes, tmp_path):
    records.open_run(tmp_path, {"experiment": "sine", **changes})
    with pytest.raises(ValueError, match=r".") as raised:
        config_of(records.load_config(tmp_path))
    assert str(raised.value).isprintable()
    assert config_of({"experiment": "sine"}) == sine.SineConfig()


def test_the_limits_of_a_machine_are_read(tmp_path):
    assert 10**6 < host_memory.available_bytes() < 10**15
    assert host_memory._group_bytes(tmp_path) is None
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 500\ninactive_file 200\n"),
    ):
        (tmp_path / name).write_text(text)
    assert host_memory._group_bytes(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory._group_bytes(tmp_path) is None
    with pytest.raises(UsageError, match=r"about 2\.0 GB of memory, and 1\.0 GB are free: lower x"):
        host_memory.check_fits(2 * 10**9, "x", 10**9)
    host_memory.check_fits(10**9, "x", 10**9)


MEASURE = """
import json, resource, sys
import jax
from experiments.training.loop import Schedule
from experiments.training.single import train_network
from tests.footprint_test import algorithm_of, estimate

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def learn(cell, hidden_size, batch_size, length, chunk=3):
    algorithm = algorithm_of(cell, hidden_size, batch_size, length)
    schedule = Schedule(chunk, chunk)
    end = train_network(algorithm, {"learning_rate": 0.0}, jax.random.key(0), schedule)
    jax.block_until_ready(end.state)

cell, *shape = json.loads(sys.argv[1])
learn(cell, shape[0], shape[1], 5)
before = peak()
learn(cell, *shape)
print(json.dumps([peak() - before, estimate(cell, *shape)]))
"""


MEASURED = [
    ("elman", 256, 64, 2000),
    ("lstm", 128, 64, 1000),
    ("gru", 64, 256, 500),
    ("own", 128, 32, 2000),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", MEASURED, ids=str)
def test_the_estimate_is_what_a_process_took_at_its_peak(shape):
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(shape)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    took, told = json.loads(ended.stdout.splitlines()[-1])
    print(f"{shape}: took {took / MB:.0f} MB, estimated {told / MB:.0f} MB")
    assert told == pytest.approx(took, rel=0.3)
