"""Sweeps: a lane is the network that it would be alone, whatever runs beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from rnn_jax import initializers, losses, objectives, sharding, sweep, training
from rnn_jax.tasks import sine
from rnn_jax.training import optim

STEPS = 50
SMALL = initializers.normal(0.5)


def learn_sine(learning_rate, key):
    """The loss and the trace of a small network over its training."""
    cell = rnn_jax.elman(4, kernel_init=SMALL, recurrent_init=SMALL)
    model = rnn_jax.sequence_model(cell, 1)
    optimizer = optim.recorded(optax.sgd(learning_rate))
    objective = objectives.next_step_objective(model, losses.squared_error)
    state = training.fresh_state(model, optimizer, key, 1, 1)
    sample = sine.sampler(1, num_points=12)
    state, metrics = training.scan_steps(objective, optimizer, sample, state, key, STEPS)
    return {"loss": metrics.loss, "trace": metrics.trace, "params": state.params}


RATES = np.geomspace(0.003, 0.1, 11).astype(np.float32)
KEYS = jax.random.split(jax.random.key(3), len(RATES))


def run(**options):
    return sweep.sweep(learn_sine, RATES, KEYS, **{"width": 4, **options})


@pytest.fixture(scope="module")
def results():
    return run()


def assert_same_bits(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_lane_is_the_solo_run(results):
    alone = jax.jit(learn_sine)
    for lane in (0, 5, 10):
        solo = alone(jnp.asarray(RATES[lane]), KEYS[lane])
        jax.tree.map(
            lambda lanes, one, i=lane: np.testing.assert_allclose(lanes[i], one, rtol=1e-5),
            results,
            jax.device_get(solo),
        )
    assert len(np.unique(results["loss"][:, -1])) == len(RATES)


def test_results_do_not_depend_on_devices_or_batches(results):
    one_device = sharding.lanes_mesh(jax.devices()[:1])
    two_devices = sharding.lanes_mesh(jax.devices()[:2])
    assert len(jax.devices()) == 4
    assert_same_bits(run(mesh=one_device), results)
    assert_same_bits(run(mesh=one_device, lanes=4), results)
    assert_same_bits(run(mesh=two_devices, lanes=8), results)


def test_an_exploding_lane_leaves_its_neighbours_alone(results):
    wild = RATES.copy()
    wild[5] = 1e30
    beside = sweep.sweep(learn_sine, wild, KEYS, width=4)
    assert not np.isfinite(beside["loss"][5, -1])
    others = np.delete(np.arange(len(RATES)), 5)
    assert_same_bits(
        jax.tree.map(lambda leaf: leaf[others], beside),
        jax.tree.map(lambda leaf: leaf[others], results),
    )


def test_batches_come_in_the_order_asked_for(results):
    wanted = np.array([7, 2, 9, 0, 10])
    parts = list(
        sweep.batches(
            learn_sine,
            RATES,
            KEYS,
            width=2,
            lanes=2,
            mesh=sharding.lanes_mesh(jax.devices()[:1]),
            indices=wanted,
        )
    )
    assert [list(part.indices) for part in parts] == [[7, 2], [9, 0], [10]]
    losses_found = np.concatenate([part.results["loss"] for part in parts])
    np.testing.assert_array_equal(losses_found, results["loss"][wanted])


def test_fit_is_traced_once_for_all_batches():
    count = []

    def fit(number, key):
        count.append(1)
        return number + jax.random.uniform(key)

    sweep.sweep(fit, RATES, KEYS, width=1, lanes=4)
    # Once for the shapes of its results and once for the program.
    assert len(count) <= 2


@pytest.mark.parametrize(
    ("hparams", "keys", "options", "said"),
    [
        (RATES[:3], KEYS, {}, r"\(3,\) and there are 11 keys"),
        (RATES[:0], KEYS[:0], {}, "at least one"),
        (np.float32(1), KEYS[:1], {}, "same number of rows"),
        (RATES, KEYS, {"lanes": 6}, "lanes is 6, but 4 devices with blocks of 4.*multiple of 16"),
        (RATES, KEYS, {"width": 0}, "width is 0"),
    ],
)
def test_what_cannot_be_swept(hparams, keys, options, said):
    with pytest.raises(ValueError, match=said):
        sweep.sweep(learn_sine, hparams, keys, **{"width": 4, **options})


def test_a_block_of_twice_the_width_needs_about_twice_the_memory():
    def fit(number, key):
        weights = number * jax.random.normal(key, (300, 300))
        return jnp.linalg.norm(weights @ weights @ weights)

    small, large = (sweep.block_bytes(fit, RATES, KEYS, width) for width in (4, 8))
    assert small >= 4 * 300 * 300 * 4
    assert 1.6 < large / small < 2.4
