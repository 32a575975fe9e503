"""`unroll` under vmap, jvp and no jit at all, and how often JAX traces a cell's step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_as_users_do
from jax import lax
from marks import slow_but_for
from problems import CELLS, LENGTHS, B, D, H, T, assert_close, loss, problem, states_and_gradients

import rnn_jax
from rnn_jax import plain_unroll, unroll


@pytest.mark.parametrize("name", ["elman", "lstm", "user"])
def test_vmap_over_parameters_equals_each_alone(x64, name):
    cell = CELLS[name]
    given = problem(cell)
    several = [problem(cell, seed=seed).params for seed in range(3)]
    gradient = jax.grad(lambda params: loss(cell, given._replace(params=params)))
    stacked = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *p: np.stack(p), *several))
    alone = jax.jit(gradient)
    for n, params in enumerate(several):
        assert_close(jax.tree.map(lambda g, n=n: np.asarray(g)[n], stacked), alone(params))


def test_vmap_over_examples_and_lengths_equals_the_batch(x64):
    cell = CELLS["gru"]
    given = problem(cell)

    def one(state, xs, perturbations, length):
        return unroll(cell, given.params, state, xs, perturbations=perturbations, lengths=length)

    mapped = jax.jit(jax.vmap(one, in_axes=(0, 1, 1, 0), out_axes=1))(
        given.state, given.xs, given.perturbations, jnp.asarray(LENGTHS)
    )
    batched = unroll(
        cell, *given[:3], perturbations=given.perturbations, lengths=jnp.asarray(LENGTHS)
    )
    assert_close(mapped, batched)


def test_works_without_jit(x64):
    cell, given = CELLS["elman"], problem(CELLS["elman"])
    eager = jax.grad(lambda given: loss(cell, given, lengths=LENGTHS))(given)
    assert_close(eager, states_and_gradients(cell, given, unroll, LENGTHS)[1])


@pytest.mark.parametrize("name", slow_but_for({"elman", "lstm", "user"}, CELLS))
def test_plain_unroll_has_forward_mode(x64, name):
    cell = CELLS[name]
    given, direction = problem(cell), problem(cell, seed=7)
    _, gradients = states_and_gradients(cell, given)

    @jax.jit
    def derivative(given, direction):
        return jax.jvp(lambda g: loss(cell, g, plain_unroll), (given,), (direction,))[1]

    along = sum(
        np.vdot(g, d)
        for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(derivative(given, direction), along, rtol=1e-11)


def test_forward_mode_of_unroll_is_refused_as_such():
    """JAX's own words, not a complaint about shapes that fit."""
    cell = CELLS["elman"]
    params = cell.init(jax.random.key(0), D)
    xs = jnp.ones((T, D))
    with pytest.raises(TypeError, match=r"^can't apply forward-mode autodiff"):
        jax.jvp(lambda xs: unroll(cell, params, jnp.zeros(H), xs), (xs,), (xs,))


def count_traces(function, num_steps):
    """How often JAX calls the step of a cell while it traces `function(cell, xs)`."""
    calls = []

    def step(params, state, x):
        calls.append(None)
        return jnp.tanh(params * state + x)

    cell = rnn_jax.Cell(
        init=lambda key, input_size: jnp.ones(()),
        initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, 1)),
        step=step,
    )
    jax.make_jaxpr(lambda xs: function(cell, xs))(jnp.ones((num_steps, B, 1)))
    return len(calls)


def test_forward_traces_the_step_once():
    def forward(cell, xs):
        return unroll(cell, jnp.ones(()), jnp.zeros((B, 1)), xs)

    assert count_traces(forward, 2) == 1
    assert count_traces(forward, 50) == 1


def test_gradient_traces_the_step_as_often_for_any_length():
    def gradient(cell, xs):
        return jax.grad(lambda p: jnp.sum(unroll(cell, p, jnp.zeros((B, 1)), xs)))(jnp.ones(()))

    assert count_traces(gradient, 2) == count_traces(gradient, 50) <= 4


def test_a_cell_without_structure_is_scanned_and_differentiated_as_it_is(x64):
    """To the last bit what `lax.scan` gives, in forward mode too, and lambda_t beside it."""
    cell = rnn_jax.lstm(H)._replace(affine=None)
    given = problem(cell)

    def with_scan(params):
        step = lambda state, x: (cell.step(params, state, x),) * 2  # noqa: E731
        return jnp.sum(jnp.sin(lax.scan(step, given.state, given.xs)[1].h))

    def with_unroll(params, zeros=None):
        states = unroll(cell, params, given.state, given.xs, perturbations=zeros)
        return jnp.sum(jnp.sin(states.h))

    wanted = jit_as_users_do(jax.value_and_grad(with_scan))(given.params)
    got = jit_as_users_do(jax.value_and_grad(with_unroll))(given.params)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    along = jit_as_users_do(lambda p: jax.jvp(with_unroll, (p,), (wanted[1],))[1])(given.params)
    np.testing.assert_allclose(
        along, sum(np.vdot(g, g) for g in jax.tree.leaves(wanted[1])), rtol=1e-12
    )
    zeros = rnn_jax.zero_perturbations(given.state, T)
    adjoints = jit_as_users_do(jax.grad(with_unroll, 1))(given.params, zeros)
    structured = rnn_jax.lstm(H)
    again = jit_as_users_do(
        jax.grad(lambda z: jnp.sum(jnp.sin(unroll(structured, *given[:3], perturbations=z).h)))
    )(zeros)
    assert_close(adjoints, again)
