"""`unroll` with its batch spread over a mesh: the numbers of one device."""

import jax
import numpy as np
import pytest
from meshes import (
    H,
    Results,
    check_places,
    compiled,
    given,
    merged,
    on_mesh,
    step_losses,
    whole_sum,
)
from networks import fast_weights

import rnn_jax

pytestmark = pytest.mark.usefixtures("x64")


def gradients_of(unroll, cell, params, state, xs, lengths=None):
    """Every gradient of an unroll, and all states."""

    def loss(params, state, xs, perturbations):
        states = unroll(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
        return whole_sum(step_losses(states)), states

    zeros = rnn_jax.zero_perturbations(state, xs.shape[0])
    (value, states), found = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(
        params, state, xs, zeros
    )
    return Results((value, found[0]), found[1], (found[2], found[3], states))


DEEP = rnn_jax.stack([rnn_jax.lstm(H), rnn_jax.segmented(fast_weights(), 2)])
BOTH = rnn_jax.bidirectional(rnn_jax.layer_norm_elman(H), rnn_jax.elman(H))


def unrolled(params, state, xs, lengths):
    """Layers with and without structure, segments, two directions, a state made inside."""
    fresh = DEEP.initial_state(params[0], xs.shape[1:-1])
    return merged(
        [
            gradients_of(rnn_jax.unroll, DEEP, params[0], state[0], xs, lengths),
            gradients_of(rnn_jax.bidirectional_unroll, BOTH, params[1], state[1], xs, lengths),
            Results(steps=rnn_jax.unroll(DEEP, params[0], fresh, xs)),
            Results(steps=rnn_jax.plain_unroll(DEEP, params[0], fresh, xs, lengths=lengths)),
        ]
    )


PROGRAMS = {"unroll": (unrolled, (DEEP, BOTH))}


@pytest.fixture(scope="module")
def alone():
    """Each program's arguments and results on one device, computed when first asked for."""
    known = {}

    def look_up(name):
        if name not in known:
            program, cells = PROGRAMS[name]
            arguments = given(cells)
            known[name] = arguments, compiled(program, *arguments)
        return known[name]

    return look_up


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("explicit", 4),
        ("manual", 4),
        pytest.param("explicit", 2, marks=SLOW),
        pytest.param("explicit, mesh not set", 2, marks=SLOW),
        pytest.param("explicit, mesh not set", 4, marks=SLOW),
        pytest.param("manual", 2, marks=SLOW),
        pytest.param("auto", 2, marks=SLOW),
        pytest.param("auto", 4, marks=SLOW),
    ],
)
def test_a_batch_spread_over_a_mesh_gives_the_numbers_of_one_device(kind, size, name, alone):
    arguments, wanted = alone(name)
    program, context, placed = on_mesh(kind, size, PROGRAMS[name][0], arguments)
    with context:
        results = compiled(program, *placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), results, wanted
    )
    if kind != "auto":
        # There XLA chooses where results lie.
        check_places(results, size)


@pytest.mark.parametrize("name", PROGRAMS)
def test_explicit_types_fit_without_a_mesh_set(name):
    """Types are all that can differ from the program that runs above."""
    program, cells = PROGRAMS[name]
    program, _, placed = on_mesh("explicit, mesh not set", 2, program, given(cells))
    results = jax.eval_shape(program, *placed)
    for leaf in jax.tree.leaves(results.steps):
        assert leaf.sharding.spec[1] == "data"
