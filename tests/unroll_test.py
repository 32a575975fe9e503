"""`unroll` against BPTT written by hand, finite differences, and a scan that JAX differentiates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.flatten_util import ravel_pytree
from problems import (
    CELLS,
    LENGTHS,
    PADDING,
    B,
    D,
    H,
    Problem,
    T,
    assert_close,
    head,
    loss,
    problem,
    states_and_gradients,
)

import rnn_jax
from rnn_jax import bptt, plain_unroll, unroll

O = 2


# Once for each cell, so that all tests of a cell run next to each other and compile it once.
@pytest.fixture(params=CELLS, scope="module")
def cell(request):
    return CELLS[request.param]


# Against hand-written BPTT


def elman_problem(activation, seed=0):
    """Random weights and data, run and differentiated by hand and by `unroll`."""
    rng = np.random.default_rng(seed)
    weights = reference.random_weights(rng, D, H, O)
    s_0, x, y = (rng.normal(size=shape) for shape in ((B, H), (T, B, D), (T, B, O)))
    data = (weights, reference.PHI[activation], s_0, x, y)
    run = reference.forward(*data)

    def squared(weights, s_0, x, perturbations):
        cell = rnn_jax.elman(H, activation)
        params = rnn_jax.ElmanParams(weights.U, weights.W, weights.b)
        states = unroll(cell, params, s_0, x, perturbations=perturbations)
        outputs = states @ weights.V
        outputs = outputs + jnp.broadcast_to(weights.c, outputs.shape)
        return jnp.mean((outputs - y) ** 2), states

    arguments = jax.tree.map(jnp.asarray, (weights, s_0, x, np.zeros((T, B, H))))
    (value, states), gradients = jax.jit(jax.value_and_grad(squared, (0, 1, 2, 3), has_aux=True))(
        *arguments
    )
    return data, run, value, states, gradients


@pytest.mark.parametrize("activation", reference.PHI)
def test_elman_equals_hand_written_bptt(x64, activation):
    data, run, value, states, gradients = elman_problem(activation)
    by_hand = reference.backward(*data, run)
    np.testing.assert_allclose(states, run.states, rtol=1e-12)
    np.testing.assert_allclose(value, run.loss, rtol=1e-12)
    assert_close(gradients, (by_hand.weights, by_hand.s_0, by_hand.x, by_hand.adjoints))


@pytest.mark.parametrize("activation", reference.PHI)
def test_textbook_sum_is_the_gradient(x64, activation):
    data, run, _, _, gradients = elman_problem(activation, seed=1)
    terms = reference.textbook_terms(*data, run)
    later = np.triu_indices(T, 1)
    assert np.all(terms[later] == 0)
    earlier = np.tril_indices(T)
    assert np.all(np.linalg.norm(terms[earlier], axis=(1, 2)) > 0)
    assert_close(gradients[0].W, terms.sum(axis=(0, 1)))


def test_last_adjoint_is_the_immediate_gradient(x64):
    data, run, _, _, gradients = elman_problem("tanh")
    by_hand = reference.backward(*data, run)
    assert_close(gradients[3][-1], by_hand.immediate[-1])
    # Before the last step the future has its part, or the line above would say nothing.
    assert np.all(np.abs(gradients[3][:-1] - by_hand.immediate[:-1]).max(axis=(1, 2)) > 1e-5)


def test_last_adjoint_is_the_immediate_gradient_exactly(x64, cell):
    given = problem(cell)
    states, gradients = states_and_gradients(cell, given)
    immediate = jax.jit(jax.grad(head))(states)
    last = jax.tree.map(lambda leaf: np.asarray(leaf)[-1], (gradients.perturbations, immediate))
    assert_close(*last, rtol=1e-15, atol=0)


# Against finite differences


def test_gradients_equal_central_differences(x64, cell):
    """Every single derivative: parameters, s_0, xs and perturbations away from zero."""
    given = problem(cell)
    flat, unravel = ravel_pytree(given)
    step = 1e-5

    @jax.jit
    def differences(flat):
        def value(point):
            return loss(cell, unravel(point))

        shifts = step * jnp.eye(flat.size)
        up, down = (
            jax.vmap(value)(jnp.broadcast_to(flat, shifts.shape) + sign * shifts)
            for sign in (1, -1)
        )
        return (up - down) / (2 * step)

    _, gradients = states_and_gradients(cell, given)
    # Rounding of a loss of order 10 gives 1e-10, the third derivative as much.
    np.testing.assert_allclose(ravel_pytree(gradients)[0], differences(flat), atol=2e-8)


# Three routes to the same numbers


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_structured_generic_and_plain_routes_agree(x64, cell, lengths):
    given = problem(cell, seed=2)
    plain = states_and_gradients(cell, given, plain_unroll, lengths)
    assert_close(states_and_gradients(cell, given, unroll, lengths), plain)
    if cell.affine is not None and lengths is not None:
        generic = cell._replace(affine=None)
        assert_close(states_and_gradients(generic, given, unroll, lengths), plain)


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_projecting_inputs_inside_the_scan_changes_nothing(x64, monkeypatch, name):
    """What is done with sequences too long for x_t U of all t at once."""
    cell, given = CELLS[name], problem(CELLS[name], seed=2)
    hoisted = states_and_gradients(cell, given, unroll, LENGTHS)
    calls = []

    def project(params, x):
        calls.append(x.ndim)
        return cell.affine.project(params, x)

    monkeypatch.setattr(bptt, "HOISTED_ELEMENTS", T * B * H - 1)
    spy = cell._replace(affine=cell.affine._replace(project=project))
    assert_close(states_and_gradients(spy, given, unroll, LENGTHS), hoisted)
    assert 2 in calls


def test_routes_agree_without_perturbations(x64):
    cell, given = CELLS["elman"], problem(CELLS["elman"])._replace(perturbations=None)
    assert_close(states_and_gradients(cell, given), states_and_gradients(cell, given, plain_unroll))


@pytest.mark.parametrize("name", ["elman", "lstm", "user"])
def test_batch_axes_agree(x64, name):
    """[T, D], [T, B, D] and [T, 2, B, D] are the same examples; parameter gradients add up."""
    cell = CELLS[name]
    given = problem(cell, (2, B))
    states, gradients = jax.device_get(states_and_gradients(cell, given))
    immediate = jax.device_get(jax.jit(jax.grad(head))(states))

    @jax.jit
    def states_and_part(given, immediate):
        def weighted(given):
            params, state, xs, perturbations = given
            states = unroll(cell, params, state, xs, perturbations=perturbations)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, immediate, states))), states

        gradients, states = jax.grad(weighted, has_aux=True)(given)
        return states, gradients

    given = jax.device_get(given)
    batches, examples = [(0,), (1,)], [(a, b) for a in range(2) for b in range(B)]
    for indices in (batches, examples):
        total = jax.tree.map(np.zeros_like, given.params)
        for index in indices:
            at, of_time = take(index), take((slice(None), *index))
            part = Problem(
                given.params, at(given.state), of_time(given.xs), of_time(given.perturbations)
            )
            part_states, part_gradients = states_and_part(part, of_time(immediate))
            assert_close(part_states, of_time(states))
            assert_close(part_gradients.state, at(gradients.state))
            assert_close(part_gradients.xs, of_time(gradients.xs))
            assert_close(part_gradients.perturbations, of_time(gradients.perturbations))
            total = jax.tree.map(np.add, total, jax.device_get(part_gradients.params))
        assert_close(total, gradients.params)


def take(index):
    return functools.partial(jax.tree.map, lambda leaf: leaf[index])


# Padding


def test_state_stays_as_it_was_on_padding(x64, cell):
    given = problem(cell)
    padded, _ = states_and_gradients(cell, given, unroll, LENGTHS)
    full, _ = states_and_gradients(cell, given)
    for frozen, moving in zip(jax.tree.leaves(padded), jax.tree.leaves(full), strict=True):
        for example, length in enumerate(LENGTHS):
            np.testing.assert_allclose(
                frozen[:length, example], moving[:length, example], rtol=1e-13
            )
            last = np.broadcast_to(frozen[length - 1, example], frozen[length:, example].shape)
            np.testing.assert_array_equal(frozen[length:, example], last)


def test_padding_gets_exactly_no_gradient(x64, cell):
    _, gradients = states_and_gradients(cell, problem(cell), unroll, LENGTHS)
    for leaf in (gradients.xs, *jax.tree.leaves(gradients.perturbations)):
        assert np.all(np.asarray(leaf)[PADDING] == 0)
        assert np.all(np.abs(np.asarray(leaf)[~PADDING]).max(axis=-1) > 0)


@pytest.mark.parametrize("name", ["elman", "lstm", "user"])
def test_padded_example_equals_the_shorter_sequence(x64, name):
    """A head on the last state: the padding's garbage changes neither loss nor gradient."""
    cell, length = CELLS[name], 4
    given = problem(cell, ())
    rest = 1e6 * jnp.asarray(np.random.default_rng(5).normal(size=(T - length, D)))
    padded = given._replace(xs=jnp.concatenate([given.xs[:length], rest]))
    short = Problem(
        given.params,
        given.state,
        given.xs[:length],
        jax.tree.map(lambda p: p[:length], given.perturbations),
    )

    def last_state_loss(given, lengths):
        params, state, xs, perturbations = given
        states = unroll(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
        return head(jax.tree.map(lambda s: s[-1], states))

    evaluate = jax.jit(jax.value_and_grad(last_state_loss))
    value, gradients = evaluate(padded, jnp.array(length))
    wanted_value, wanted = evaluate(short, None)
    cut = gradients._replace(
        xs=gradients.xs[:length],
        perturbations=jax.tree.map(lambda p: p[:length], gradients.perturbations),
    )
    assert_close((value, cut), (wanted_value, wanted), rtol=1e-13)
