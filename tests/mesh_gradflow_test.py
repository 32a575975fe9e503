"""Every measurement of gradflow with its batch spread over a mesh: the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from marks import slow, slow_but_for
from meshes import (
    PLACES,
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
from rnn_jax import gradflow
from rnn_jax.training import regularizers

pytestmark = pytest.mark.usefixtures("x64")

QUICK_CELLS = (rnn_jax.elman(H), fast_weights())
CELLS = (rnn_jax.lstm(H), rnn_jax.leaky(H), rnn_jax.stack([rnn_jax.elman(H), rnn_jax.gru(H)]))


def last_loss(state):
    return sum(jnp.sum(jnp.sin(leaf), axis=range(1, leaf.ndim)) for leaf in jax.tree.leaves(state))


LAST = gradflow.LastStep(last_loss)


def finite_sum(values):
    return jnp.sum(jnp.where(jnp.isfinite(values), values, 0))


def value_and_grad(cell, params, state, xs, lengths):
    loss, grads, adjoints = gradflow.value_and_grad(cell, step_losses)(
        params, state, xs, lengths=lengths
    )
    fresh = cell.initial_state(params, xs.shape[1:-1])
    last = gradflow.value_and_grad(cell, LAST)(params, fresh, xs)
    return Results(whole=(loss, grads, last[:2]), steps=(adjoints, last[2]))


def state_gradients(*case):
    cell, params, state, xs, lengths = case
    immediate = gradflow.Immediate(rnn_jax.plain_unroll(cell, params, state, xs))
    found = [
        gradflow.state_gradients(*case[:-1], step_losses, lengths=lengths),
        gradflow.state_gradients(*case[:-1], LAST, lengths=lengths),
        gradflow.state_gradients(*case[:-1], LAST, segment_length=2),
        gradflow.state_gradients(*case[:-1], immediate),
        gradflow.leaf_gradients(*case[:-1], step_losses),
    ]
    return Results(steps=found)


def credit_matrix(cell, params, state, xs, lengths):
    def total(params):
        return finite_sum(gradflow.credit_matrix(cell, params, state, xs, step_losses))

    found = gradflow.credit_matrix(cell, params, state, xs, step_losses, lengths=lengths)
    return Results(whole=(found, jax.grad(total)(params)))


def parameter_terms(cell, params, state, xs, lengths):
    return Results(
        whole=gradflow.parameter_terms(cell, params, state, xs, step_losses, lengths=lengths)
    )


def truncation_bias(cell, params, state, xs, lengths):
    return Results(
        whole=[
            gradflow.truncation_bias(cell, params, state, xs, losses, lengths=lengths)
            for losses in (step_losses, LAST)
        ]
    )


def jacobian_product(cell, params, state, xs, lengths):
    del lengths
    return Results(whole=gradflow.jacobian_product(cell, params, state, xs))


def lyapunov_spectrum(cell, params, state, xs, lengths):
    del lengths

    def spectrum(params):
        return gradflow.lyapunov_spectrum(cell, params, state, xs, burn_in=1)

    return Results(whole=(spectrum(params), jax.grad(lambda p: spectrum(p)[0])(params)))


def flossing(cell, params, state, xs, lengths):
    """Exponents of each example by itself, under `vmap`."""
    del lengths
    return Results(whole=regularizers.flossing_loss(cell, params, state, xs, 2))


def parameter_sensitivity(cell, params, state, xs, lengths):
    del lengths
    return Results(whole=gradflow.parameter_sensitivity(cell, params, state, xs))


LOUD = float(jnp.sort(given(QUICK_CELLS[:1])[2][0, :, 0])[-2])
"""Only one example's first input is larger."""


def out_of_range(cell, params, state, xs, lengths):
    """Where the careful computation takes the place of the fast one, on one device alone."""
    del lengths
    scale = jnp.where(xs[0, :, 0] > LOUD, 1e170, 1.0)
    far = gradflow.Immediate(
        jax.tree.map(
            lambda s: s * jnp.expand_dims(scale[None], range(2, s.ndim)),
            rnn_jax.plain_unroll(cell, params, state, xs),
        )
    )
    return Results(
        whole=gradflow.parameter_terms(cell, params, state, xs, far),
        steps=gradflow.state_gradients(cell, params, state, xs, far),
    )


PROGRAMS = {
    program.__name__: program
    for program in (
        value_and_grad,
        state_gradients,
        credit_matrix,
        parameter_terms,
        truncation_bias,
        jacobian_product,
        lyapunov_spectrum,
        flossing,
        parameter_sensitivity,
        out_of_range,
    )
}


SUMS = {
    "value_and_grad",
    "credit_matrix",
    "parameter_terms",
    "parameter_sensitivity",
    "out_of_range",
}
"""Those that add up over the batch in ways of their own; the others take a mean or nothing."""


def program_of(name, cells):
    def program(params, state, xs, lengths):
        each = zip(cells, params, state, strict=True)
        return merged([PROGRAMS[name](cell, p, s, xs, lengths) for cell, p, s in each])

    return program


@pytest.mark.parametrize("name", slow_but_for(SUMS, PROGRAMS))
@pytest.mark.parametrize(
    ("kind", "size", "cells"),
    [
        ("manual", 2, QUICK_CELLS[:1]),
        slow("manual", 4, QUICK_CELLS + CELLS),
        slow("explicit", 2, QUICK_CELLS + CELLS),
        slow("explicit", 4, QUICK_CELLS[1:]),
        slow("explicit, mesh not set", 4, CELLS),
        slow("auto", 2, QUICK_CELLS[1:]),
        slow("auto", 4, CELLS),
    ],
)
def test_a_batch_spread_over_a_mesh_is_measured_as_on_one_device(kind, size, cells, name):
    arguments, plain = given(cells), program_of(name, cells)
    program, context, placed = on_mesh(kind, size, plain, arguments)
    wanted = compiled(plain, *arguments)
    with context:
        results = compiled(program, *placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), results, wanted
    )
    if kind != "auto":
        check_places(results, size)


@pytest.mark.parametrize("kind", ["explicit", "explicit, mesh not set", "manual"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_types_fit_on_a_mesh(kind, name):
    """On an Explicit mesh types are all that can differ from the program of one device."""
    cells = QUICK_CELLS + CELLS[:1]
    program, context, placed = on_mesh(kind, 2, program_of(name, cells), given(cells))
    with context:
        results = jax.eval_shape(program, *placed)
    if kind != "manual":
        for leaf in jax.tree.leaves(results.steps):
            assert leaf.sharding.spec[1] == "data"


def test_an_ensemble_over_one_axis_and_its_batch_over_another():
    """Each network is averaged over its own examples alone."""
    (cell,) = cells = QUICK_CELLS[:1]
    (params,), (state,), xs, _ = given(cells)
    params = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    mesh = jax.make_mesh((2, 2), ("member", "data"), devices=jax.devices()[:4])
    member = jax.P("member")

    def on(place):
        return NamedSharding(mesh, place)

    def measure(params, state, xs):
        own = jax.tree.map(lambda p: p[0], params)
        terms = gradflow.parameter_terms(cell, own, state, xs, step_losses)
        return jax.tree.map(lambda leaf: leaf[None], terms)

    spread = jax.shard_map(
        measure, mesh=mesh, in_specs=(member, PLACES[1], PLACES[2]), out_specs=member
    )
    places = tuple(map(on, (member, *PLACES[1:3])))
    found = jax.device_get(jax.jit(spread)(*jax.device_put((params, state, xs), places)))
    for n in range(2):
        own = jax.tree.map(lambda p, n=n: p[n], params)
        wanted = gradflow.parameter_terms(cell, own, state, xs, step_losses)
        mine = jax.tree.map(lambda a, n=n: a[n], found)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), mine, wanted)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_what_looks_at_numbers_takes_spread_arrays_too(kind):
    (cell,) = cells = QUICK_CELLS[:1]
    (params,), (state,), xs, lengths = given(cells)
    params = params._replace(W=0.1 * params.W)
    mesh = jax.make_mesh((2,), ("data",), (kind,), devices=jax.devices()[:2])
    alone = (params, state, xs, lengths)
    spread = [
        jax.device_put(tree, NamedSharding(mesh, place))
        for tree, place in zip(alone, PLACES, strict=True)
    ]

    def found(params, state, xs, lengths):
        verdict = gradflow.diagnose(cell, params, state, xs, step_losses, lengths=lengths)
        nowhere = gradflow.origin_of_nonfinite(
            cell, params, state, xs, step_losses, lengths=lengths
        )
        bad = jax.tree.map(lambda p: p * jnp.nan, params)
        there = gradflow.origin_of_nonfinite(cell, bad, state, xs, LAST)
        return str(verdict), nowhere, there

    assert found(*spread) == found(*alone)


def test_clipping_report_takes_norms_spread_over_a_mesh():
    norms = jnp.arange(1.0, 9.0)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    spread = jax.device_put(norms, NamedSharding(mesh, PLACES[1]))
    assert str(gradflow.clipping_report(spread, 3.0)) == str(gradflow.clipping_report(norms, 3.0))


def test_a_scalar_loss_is_the_users_own_sum_over_devices():
    (cell,) = cells = QUICK_CELLS[:1]

    def loss(states):
        return whole_sum(step_losses(states))

    def measure(params, state, xs, lengths):
        value, grads, adjoints = gradflow.value_and_grad(cell, loss)(params[0], state[0], xs)
        return Results(whole=(value, grads), steps=adjoints)

    arguments = given(cells)
    program, _, placed = on_mesh("manual", 2, measure, arguments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        compiled(program, *placed),
        compiled(measure, *arguments),
    )
