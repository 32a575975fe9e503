"""Training steps with the batch spread over a mesh: the training of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from marks import slow
from meshes import B, H, Results, T, check_places, compiled, given, on_mesh
from networks import fast_weights

import rnn_jax
from rnn_jax import objectives, sharding, training
from rnn_jax.losses import squared_error
from rnn_jax.model import ModelParams, ReadoutParams
from rnn_jax.training import optim, regularizers, traces, truncated
from rnn_jax.types import Batch

pytestmark = pytest.mark.usefixtures("x64")

OPTIMIZER = optim.recorded(optax.adam(1e-2), 1.0)


def next_step(model):
    return objectives.next_step_objective(model, squared_error)


def windows(model):
    return truncated.truncated_objective(model, squared_error, 3, 2)


def closed_loop(model):
    return objectives.closed_loop_objective(model, squared_error, 2)


def trained(objective_of, cell, num_steps=2, **options):
    """A step and a scan over more of them; a cell and its params as `meshes.given` has them."""

    def program(params, state, xs, lengths):
        model = rnn_jax.sequence_model(cell, 2)
        objective = objective_of(model)
        width = jax.eval_shape(cell.emit, state[0]).shape[-1]
        readout = ReadoutParams(V=0.3 * jnp.ones((width, 2)), c=jnp.zeros(2))
        everything = ModelParams(params[0], readout)
        start = training.TrainState(
            jnp.zeros((), jnp.int32), everything, OPTIMIZER.init(everything), state[0]
        )
        padded = None if objective_of is closed_loop else lengths
        batch = Batch(xs, jnp.cos(xs), padded)
        first, metrics = training.train_step(objective, OPTIMIZER, start, batch, **options)
        end, more = training.scan_steps(
            objective, OPTIMIZER, lambda key: batch, first, jax.random.key(0), num_steps, **options
        )
        return Results(whole=(end.params, end.opt_state, metrics, more), batch=end.carry)

    return program, (cell,)


PROGRAMS = {
    "next step": trained(next_step, rnn_jax.elman(H), regularize=regularizers.pascanu(0.5)),
    "parameter trace": trained(
        next_step, rnn_jax.lstm(H), num_steps=1, trace=traces.trace_parameters
    ),
    "own cell": trained(next_step, fast_weights(), trace=traces.trace_parameters),
    "windows": trained(windows, rnn_jax.gru(H)),
    "closed loop": trained(closed_loop, rnn_jax.elman(H)),
}


@pytest.mark.parametrize(
    ("kind", "size", "name"),
    [
        ("manual", 2, "next step"),
        *(slow("manual", 4, name) for name in PROGRAMS),
        *(slow("explicit", 2, name) for name in PROGRAMS),
        slow("explicit, mesh not set", 4, "next step"),
        *(slow("auto", 4, name) for name in PROGRAMS),
    ],
)
def test_training_on_a_mesh_is_training_on_one_device(kind, size, name):
    plain, cells = PROGRAMS[name]
    arguments = given(cells)
    program, context, placed = on_mesh(kind, size, plain, arguments)
    wanted = compiled(plain, *arguments)
    with context:
        results = compiled(program, *placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11), results, wanted
    )
    if kind != "auto":
        check_places(results, size)


@pytest.mark.parametrize("kind", ["explicit", "explicit, mesh not set", "manual"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_types_of_a_training_step_fit_on_a_mesh(kind, name):
    plain, cells = PROGRAMS[name]
    program, context, placed = on_mesh(kind, 2, plain, given(cells))
    with context:
        results = jax.eval_shape(program, *placed)
    if kind != "manual":
        for leaf in jax.tree.leaves(results.batch):
            assert leaf.sharding.spec[0] == "data"


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_batches_are_split_over_an_axis_of_the_users_own_name(kind):
    """Data made in the jitted program, the carry made as zeros beside it."""
    mesh = jax.make_mesh((2,), ("rows",), (kind,), devices=jax.devices()[:2])
    model = rnn_jax.sequence_model(rnn_jax.elman(H), 2)
    start = training.fresh_state(model, OPTIMIZER, jax.random.key(0), 2, B)

    def run(split):
        def sample(key):
            xs = jax.random.normal(key, (T, B, 2))
            return Batch(split(xs, 1), split(jnp.sin(xs), 1), None)

        return jax.jit(
            lambda state: training.scan_steps(
                next_step(model), OPTIMIZER, sample, state, jax.random.key(1), 2
            )
        )

    wanted = run(lambda leaf, axis: leaf)(start)
    with jax.set_mesh(mesh):
        found = run(lambda leaf, axis: sharding.split_examples(leaf, mesh, axis))(start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, wanted)
