"""Zoneout, h-detach and dilation: wrappers of a cell that change how its state goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import LENGTHS, B, D, H, Problem, T, assert_close, problem, states_and_gradients

import rnn_jax
from rnn_jax import plain_unroll, unroll
from rnn_jax.cells.cell import Affine
from rnn_jax.cells.dilated import dilated
from rnn_jax.cells.h_detach import h_detach, with_detached
from rnn_jax.cells.zoneout import num_units, with_zoneout, zoneout

LSTM, GRU, ELMAN = rnn_jax.lstm(H), rnn_jax.gru(H), rnn_jax.elman(H)


def longer(cell, given, xs):
    """A problem of the plain cell with the longer inputs of a wrapped one."""
    return Problem(given.params, given.state, xs, given.perturbations)


# Zoneout


@pytest.mark.parametrize("cell", [LSTM, ELMAN, rnn_jax.lem(H)], ids=["lstm", "elman", "lem"])
def test_zoneout_mixes_each_unit_with_its_old_state(x64, cell):
    """Against a loop over the cell's own step; gradients by a plain scan."""
    given, wrapped = problem(cell), zoneout(cell)
    shares = np.random.default_rng(7).uniform(size=(T, B, num_units(cell)))
    xs = jnp.concatenate([given.xs, jnp.asarray(shares)], axis=-1)
    made = jax.eval_shape(lambda key: wrapped.init(key, xs.shape[-1]), jax.random.key(0))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, given.params)
    ours = longer(cell, given, xs)
    states, gradients = states_and_gradients(wrapped, ours, unroll, LENGTHS)
    assert_close((states, gradients), states_and_gradients(wrapped, ours, plain_unroll, LENGTHS))
    # A mask is no parameter: nothing flows into it.
    assert not np.any(gradients.xs[..., D:])
    assert np.any(gradients.xs[..., :D])
    state, step = given.state, jax.jit(cell.step)
    for t in range(LENGTHS.min()):
        new = step(given.params, state, given.xs[t])
        flat = [np.asarray(leaf) for leaf in jax.tree.leaves(new)]
        old = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        pushed = [np.asarray(leaf)[t] for leaf in jax.tree.leaves(given.perturbations)]
        mixed = [
            d * s + (1 - d) * n + p
            for d, s, n, p in zip(
                np.split(shares[t], len(flat), axis=-1), old, flat, pushed, strict=True
            )
        ]
        for a, b in zip(jax.tree.leaves(states), mixed, strict=True):
            np.testing.assert_allclose(a[t], b, rtol=1e-12)
        state = jax.tree.unflatten(jax.tree.structure(new), [jnp.asarray(m) for m in mixed])


def test_zoneout_is_drawn_for_each_unit_step_and_example():
    xs = jnp.ones((200, 30, D))
    drawn = np.asarray(with_zoneout(jax.random.key(0), GRU, xs, 0.3)[..., D:])
    assert drawn.shape == (200, 30, H)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    # Standard error of the mean of 30,000 draws: 0.0026.
    assert abs(drawn.mean() - 0.3) < 0.01
    for axis in range(3):
        assert np.std(drawn.mean(axis=tuple({0, 1, 2} - {axis}))) < 0.1
        assert np.any(np.diff(drawn, axis=axis))
    other = with_zoneout(jax.random.key(1), GRU, xs, 0.3)[..., D:]
    assert np.mean(other != drawn) > 0.3
    np.testing.assert_allclose(with_zoneout(None, GRU, xs, 0.3)[..., D:], 0.3)


def test_without_zoneout_the_cell_is_the_plain_one(x64):
    given = problem(GRU)
    xs = with_zoneout(None, GRU, given.xs, 0.0)
    states = unroll(zoneout(GRU), given.params, given.state, xs)
    assert_close(states, unroll(GRU, given.params, given.state, given.xs))


# h-detach


def test_h_detach_leaves_the_states_and_the_linear_path(x64):
    """Cut everywhere, dL/dc_{t-1} = f_t dL/dc_t of an LSTM, and W learns all the same."""
    given, wrapped = problem(LSTM), h_detach(LSTM)
    cut, whole = (
        jnp.concatenate([given.xs, jnp.full((T, B, 1), value)], axis=-1) for value in (1.0, 0.0)
    )
    plain_states, plain = states_and_gradients(LSTM, given)
    for xs in (cut, whole):
        states, gradients = states_and_gradients(wrapped, longer(LSTM, given, xs))
        assert_close(states, plain_states)
    assert_close(gradients.params, plain.params)  # Of what is not cut.

    def last_c(perturbations, xs):
        states = unroll(wrapped, given.params, given.state, xs, perturbations=perturbations)
        return jnp.sum(states.c[-1])

    zeros = rnn_jax.zero_perturbations(given.state, T)
    adjoints = jax.jit(jax.grad(last_c))(zeros, cut)
    states = unroll(LSTM, given.params, given.state, given.xs)
    p = given.params
    h = np.concatenate([given.state.h[None], states.h[:-1]])
    z = np.asarray(given.xs @ p.U + h @ p.W + jnp.broadcast_to(p.b, (T, B, 4 * H)))
    f = 1 / (1 + np.exp(-z[..., H : 2 * H]))
    wanted = np.cumprod(np.concatenate([np.ones((1, B, H)), f[:0:-1]]), axis=0)[::-1]
    np.testing.assert_allclose(adjoints.c, wanted, rtol=1e-11)
    assert not np.any(adjoints.h[:-1])
    assert np.any(jax.jit(jax.grad(last_c))(zeros, whole).h[:-1])
    gradient = states_and_gradients(wrapped, longer(LSTM, given, cut))[1].params.W
    assert np.any(gradient)
    assert np.any(np.abs(gradient - plain.params.W) > 1e-3)


def test_steps_are_cut_by_chance_and_for_all_examples_alike():
    xs = jnp.ones((2000, 3, D))
    column = np.asarray(with_detached(jax.random.key(0), xs, 0.25)[..., D])
    assert np.all(column == column[:, :1])
    # Standard error of the mean of 2,000 draws: 0.01.
    assert abs(column.mean() - 0.25) < 0.04
    assert set(np.unique(column)) == {0.0, 1.0}
    assert not np.any(with_detached(None, xs, 0.25)[..., D])


def test_h_detach_wants_to_know_the_recurrent_product():
    with pytest.raises(ValueError, match="h_detach wants a cell with `affine` parts"):
        h_detach(rnn_jax.lem(H))


# Dilation


def test_a_dilated_cell_is_interleaved_copies_of_itself(x64):
    """Each copy, run by itself over every third input, has the same states and gradients."""
    cell = GRU
    rng = np.random.default_rng(0)
    wrapped = dilated(cell, 3)
    given = problem(cell)
    xs = jnp.asarray(rng.normal(size=(9, B, D)))
    start = wrapped.initial_state(given.params, (B,))
    assert len(start) == 3

    def emitted(params, xs):
        return wrapped.emit(unroll(wrapped, params, start, xs))

    def copies(params, xs):
        own = [unroll(cell, params, start[0], xs[n::3]) for n in range(3)]
        return jnp.stack([own[t % 3][t // 3] for t in range(9)])

    weights = jnp.asarray(rng.normal(size=(9, B, H)))

    def value_and_gradients(run):
        return jax.jit(jax.value_and_grad(lambda *given: jnp.sum(weights * run(*given)), (0, 1)))(
            given.params, xs
        )

    assert_close(value_and_gradients(emitted), value_and_gradients(copies))


def test_a_dilation_of_1_is_the_cell_and_less_is_refused():
    assert dilated(GRU, 1) is GRU
    assert dilated(rnn_jax.exp_rnn(H), 2).prepare is not None
    with pytest.raises(ValueError, match="dilation is 0; give a whole number of at least 1"):
        dilated(GRU, 0)
    assert isinstance(zoneout(GRU).affine, Affine)
    assert zoneout(dilated(GRU, 2)).affine is None
