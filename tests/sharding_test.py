"""One network, its batch over several devices: the same training."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import rnn_jax
from rnn_jax import objectives, sharding, training
from rnn_jax.tasks.adding import adding
from rnn_jax.training import optim
from rnn_jax.types import Batch

B, T, STEPS = 6, 12, 4


def program(mesh=None):
    task = adding(T, B)
    objective = objectives.task_objective(rnn_jax.last_only(rnn_jax.lstm(5), 1), task)
    optimizer = optim.recorded(optax.adam(1e-2), 1.0)

    def sample(key):
        batch = task.sample(key)
        if mesh is None:
            return batch
        return Batch(
            sharding.split_examples(batch.inputs, mesh, axis=1),
            sharding.split_examples(batch.targets, mesh),
        )

    return jax.jit(
        lambda state: training.scan_steps(
            objective, optimizer, sample, state, jax.random.key(1), STEPS
        )
    )


def start():
    model = rnn_jax.last_only(rnn_jax.lstm(5), 1)
    optimizer = optim.recorded(optax.adam(1e-2), 1.0)
    return training.init_state(model, optimizer, jax.random.key(0), 2, B)


def test_training_on_two_devices_is_training_on_one(x64):
    state = jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, start()
    )
    alone, told_alone = program()(state)
    mesh = sharding.examples_mesh(jax.devices()[:2])
    placed = sharding.replicate(state, mesh)
    placed = placed.replace(carry=sharding.split_examples(state.carry, mesh))
    split = program(mesh)
    together, told = split(placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        (together, told),
        (alone, told_alone),
    )
    # Each device holds its examples; weights are whole everywhere, so gradients were added up.
    assert {shard.data.shape[0] for shard in together.carry.h.addressable_shards} == {B // 2}
    assert together.params.cell.W.sharding.is_fully_replicated
    assert "all-reduce" in split.lower(placed).compile().as_text()


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_batch_is_split_over_an_axis_of_any_mesh(kind, jitted):
    devices = jax.devices()[:4]
    line = jax.make_mesh((4,), ("data",), (kind,), devices=devices)
    square = jax.make_mesh((2, 2), ("data", "model"), (kind,) * 2, devices=devices)
    xs = np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float32)
    for mesh, name, count in ((line, None, 4), (square, "data", 2), (square, "model", 2)):

        def split(xs, mesh=mesh, name=name):
            return sharding.split_examples(xs, mesh, axis=1, axis_name=name)

        with jax.set_mesh(mesh):
            placed = (jax.jit(split) if jitted else split)(xs)
        np.testing.assert_array_equal(placed, xs)
        assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 8 // count, 2)}
        spec = jax.typeof(placed).sharding.spec
        assert spec[1] == ((name or "data") if kind == AxisType.Explicit else None)


def test_a_mesh_axis_that_is_not_clear_is_refused():
    square = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    with pytest.raises(ValueError, match="the axes data, model: give axis_name"):
        sharding.split_examples(jnp.zeros((4, 3)), square)
    with pytest.raises(ValueError, match="axis_name is 'batch', but the mesh has data, model"):
        sharding.split_examples(jnp.zeros((4, 3)), square, axis_name="batch")


def test_a_batch_that_cannot_be_split_is_refused():
    mesh = sharding.examples_mesh(jax.devices()[:2])
    with pytest.raises(ValueError, match="a batch of 5 cannot be split over 2 devices"):
        sharding.split_examples(jnp.zeros((5, 3)), mesh)


def test_a_larger_number_of_threads_of_the_users_own_stays(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    for given, wanted in (("64", "64"), ("1", "6"), ("", "6"), ("many", "6")):
        monkeypatch.setenv("NPROC", given)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        sharding.use_cpu_devices(3)
        assert os.environ["NPROC"] == wanted
