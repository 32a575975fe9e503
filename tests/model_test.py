"""A cell with its readout, and its free run, against loops written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from training import library_params

import rnn_jax
from rnn_jax import initializers

T, B, D, H, O = 6, 3, 2, 5, 4
LENGTHS = np.array([2, T, 1])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def elman_data(rng, outputs=O):
    weights = reference.random_weights(rng, D, H, outputs)
    return weights, rng.normal(size=(B, H)), rng.normal(size=(T, B, D))


apply = jax.jit(rnn_jax.apply, static_argnums=0)
free_run = jax.jit(rnn_jax.free_run, static_argnums=(0, 4))


def test_apply_equals_the_reference(x64, rng):
    weights, s_0, x = elman_data(rng)
    run = reference.forward(weights, reference.PHI["tanh"], s_0, x, np.zeros((T, B, O)))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), O)
    outputs, states = apply(model, library_params(weights), s_0, x)
    assert outputs.shape == (T, B, O)
    np.testing.assert_allclose(outputs, run.outputs, rtol=1e-12)
    np.testing.assert_allclose(states, run.states, rtol=1e-12)


def test_apply_to_one_sequence_without_a_batch(x64, rng):
    weights, s_0, x = elman_data(rng)
    run = reference.forward(weights, reference.PHI["tanh"], s_0, x, np.zeros((T, B, O)))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), O)
    outputs, _ = apply(model, library_params(weights), s_0[1], x[:, 1])
    np.testing.assert_allclose(outputs, run.outputs[:, 1], rtol=1e-12)


def test_last_only_reads_the_last_true_state(x64, rng):
    weights, s_0, x = elman_data(rng)
    run = reference.forward(weights, reference.PHI["tanh"], s_0, x, np.zeros((T, B, O)))
    model = rnn_jax.last_only(rnn_jax.elman(H), O)
    outputs, states = apply(model, library_params(weights), s_0, x)
    assert outputs.shape == (B, O)
    assert states.shape == (T, B, H)
    np.testing.assert_allclose(outputs, run.outputs[-1], rtol=1e-12)
    padded, _ = apply(model, library_params(weights), s_0, x, lengths=LENGTHS)
    np.testing.assert_allclose(padded, run.outputs[LENGTHS - 1, np.arange(B)], rtol=1e-12)


def test_readout_sees_what_the_cell_emits(rng):
    model = rnn_jax.sequence_model(rnn_jax.lstm(H, recurrent_init=initializers.normal(0.5)), O)
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), D)
    state = model.cell.initial_state(params.cell, (B,))
    xs = jnp.asarray(rng.normal(size=(T, B, D)), jnp.float32)
    outputs, states = apply(model, params, state, xs)
    readout = jax.tree.map(np.asarray, params.readout)
    wanted = np.asarray(states.h) @ readout.V + readout.c
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)


def test_perturbations_reach_outputs_and_later_states(x64, rng):
    weights, s_0, x = elman_data(rng)
    perturbations = np.zeros((T, B, H))
    perturbations[2] = rng.normal(size=(B, H))
    model = rnn_jax.sequence_model(rnn_jax.elman(H), O)
    outputs, _ = apply(model, library_params(weights), s_0, x, perturbations=perturbations)
    zeros, phi = np.zeros((T, B, O)), reference.PHI["tanh"]
    before = reference.forward(weights, phi, s_0, x[:3], zeros[:3])
    shifted = before.states[2] + perturbations[2]
    after = reference.forward(weights, phi, shifted, x[3:], zeros[3:])
    at = shifted @ weights.V + weights.c
    wanted = np.concatenate([before.outputs[:2], at[None], after.outputs])
    np.testing.assert_allclose(outputs, wanted, rtol=1e-12)


# Free running


def hand_written_free_run(weights, s, x, num_steps, perturbations=None):
    """One step after the other, each input the output before it."""
    outputs, states = [], []
    for t in range(num_steps):
        s = np.tanh(x @ weights.U + s @ weights.W + weights.b)
        s = s if perturbations is None else s + perturbations[t]
        x = s @ weights.V + weights.c
        outputs.append(x)
        states.append(s)
    return np.array(outputs), np.array(states)


@pytest.mark.parametrize("num_steps", [1, T])
def test_free_run_feeds_predictions_back(x64, rng, num_steps):
    weights, s_0, x = elman_data(rng, outputs=D)
    perturbations = 0.1 * rng.normal(size=(num_steps, B, H))
    model, params = rnn_jax.sequence_model(rnn_jax.elman(H), D), library_params(weights)
    outputs, states = free_run(model, params, s_0, x[0], num_steps)
    wanted = hand_written_free_run(weights, s_0, x[0], num_steps)
    np.testing.assert_allclose(outputs, wanted[0], rtol=1e-12)
    np.testing.assert_allclose(states, wanted[1], rtol=1e-12)
    pushed = free_run(model, params, s_0, x[0], num_steps, perturbations=perturbations)
    wanted = hand_written_free_run(weights, s_0, x[0], num_steps, perturbations)
    np.testing.assert_allclose(pushed[0], wanted[0], rtol=1e-12)


def test_free_run_of_a_cell_of_two_leaves_equals_its_steps(x64, rng):
    model = rnn_jax.sequence_model(rnn_jax.lstm(H), D)
    shapes = jax.eval_shape(lambda key: model.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape)), shapes)
    state = rnn_jax.LSTMState(*jnp.asarray(rng.normal(size=(2, B, H))))
    first = x = jnp.asarray(rng.normal(size=(B, D)))
    outputs, _ = free_run(model, params, state, first, T)
    step, readout = jax.jit(model.cell.step), jax.device_get(params.readout)
    for t in range(T):
        state = step(params.cell, state, x)
        x = np.asarray(state.h) @ readout.V + readout.c
        np.testing.assert_allclose(outputs[t], x, rtol=1e-12)


def test_free_run_adjoints_take_the_path_through_the_outputs(x64, rng):
    """The gradient by a perturbation of s_t, against differences of the hand-written run."""
    weights, s_0, x = elman_data(rng, outputs=D)
    model, params = rnn_jax.sequence_model(rnn_jax.elman(H), D), library_params(weights)
    targets = rng.normal(size=(T, B, D))

    @jax.jit
    @jax.grad
    def adjoints(perturbations):
        run = rnn_jax.free_run(
            model, params, s_0, jnp.asarray(x[0]), T, perturbations=perturbations
        )
        return jnp.sum((run[0] - targets) ** 2)

    def loss(perturbations):
        outputs, _ = hand_written_free_run(weights, s_0, x[0], T, perturbations)
        return np.sum((outputs - targets) ** 2)

    given = adjoints(jnp.zeros((T, B, H)))
    for index in np.ndindex(T, B, H):
        step = np.zeros((T, B, H))
        step[index] = 1e-5
        difference = (loss(step) - loss(-step)) / 2e-5
        np.testing.assert_allclose(given[index], difference, rtol=1e-7, atol=1e-8)


def test_closed_loop_is_the_free_run_as_a_cell(x64, rng):
    """Its first input is the readout of the state it starts from."""
    weights, s_0, _ = elman_data(rng, outputs=D)
    model, params = rnn_jax.sequence_model(rnn_jax.elman(H), D), library_params(weights)
    cell = rnn_jax.closed_loop(model)
    states = jax.jit(rnn_jax.unroll, static_argnums=0)(cell, params, s_0, np.zeros((T, B, 0)))
    x = s_0 @ weights.V + weights.c
    np.testing.assert_allclose(states, hand_written_free_run(weights, s_0, x, T)[1], rtol=1e-12)
    assert cell.initial_state(params, (B,)).shape == (B, H)
    np.testing.assert_array_equal(cell.emit(states), states)
    fresh = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


# Initial readout


def test_readout_starts_uniform_within_one_over_sqrt_of_hidden():
    model = rnn_jax.sequence_model(rnn_jax.lstm(64, recurrent_init=initializers.identity()), 50)
    _, readout = jax.jit(model.init, static_argnums=1)(jax.random.key(0), D)
    assert readout.V.shape == (64, 50)
    assert readout.c.shape == (50,)
    for leaf in readout:
        assert 0.11 < np.abs(leaf).max() <= 1 / 8
        assert leaf.min() < 0 < leaf.max()
    assert not np.isin(readout.c, readout.V).any()


def test_given_readout_initializer_is_used():
    for factory in (rnn_jax.sequence_model, rnn_jax.last_only):
        cell = rnn_jax.elman(H, recurrent_init=initializers.identity())
        _, readout = factory(cell, O, initializers.uniform(1e-3)).init(jax.random.key(0), D)
        assert 0 < np.abs(readout.V).max() <= 1e-3
        assert 0 < np.abs(readout.c).max() <= 1e-3


# What is wrong is said


def small(outputs=D):
    model = rnn_jax.sequence_model(rnn_jax.elman(H), outputs)
    params = model.init(jax.random.key(0), D)
    return model, params, jnp.zeros((B, H))


@pytest.mark.parametrize("factory", [rnn_jax.sequence_model, rnn_jax.last_only])
@pytest.mark.parametrize("size", [0, -3])
def test_a_model_has_at_least_one_output(factory, size):
    with pytest.raises(ValueError, match=f"output_size is {size}; give at least 1"):
        factory(rnn_jax.elman(H), size)


def test_apply_names_shapes_that_do_not_fit():
    model, params, _ = small()
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(6, 3, 2\).*\(3, 5\)"):
        rnn_jax.apply(model, params, jnp.zeros((4, H)), jnp.zeros((T, B, D)))


def test_free_run_wants_as_many_outputs_as_inputs():
    model, params, state = small(outputs=O)
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 4\) and inputs \(3, 2\)"):
        rnn_jax.free_run(model, params, state, jnp.zeros((B, D)), T)


def test_free_run_names_an_input_that_does_not_fit():
    model, params, state = small()
    with pytest.raises(ValueError, match=r"x of shape \(3, 7\).*U=\(2, 5\)"):
        rnn_jax.free_run(model, params, state, jnp.zeros((B, 7)), T)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_free_run_has_at_least_one_step(num_steps):
    model, params, state = small()
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; .* at least one step"):
        rnn_jax.free_run(model, params, state, jnp.zeros((B, D)), num_steps)


@pytest.mark.parametrize(("num_steps", "given"), [(1, 2), (T, T - 1), (T, T + 1)])
def test_free_run_wants_a_perturbation_for_each_step(num_steps, given):
    model, params, state = small()
    with pytest.raises(ValueError, match=f"perturbations.*{given}.*{num_steps}"):
        rnn_jax.free_run(
            model,
            params,
            state,
            jnp.zeros((B, D)),
            num_steps,
            perturbations=jnp.zeros((given, B, H)),
        )
