"""Omega and flossing, against NumPy by hand and finite differences; sparse initial weights."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
import reference
from networks import CELLS, EVERY_CELL, adjoint_vectors, flat_units, problem
from training import D, H, elman_objective, library_params, ran, random_batch, train_state

import rnn_jax
from rnn_jax import gradflow, optim, regularizers, train
from rnn_jax.tasks.delayed_xor import delayed_xor
from rnn_jax.types import Batch

EPS = 1e-6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def constants(cell):
    """Parameters, s_0..s_{T-1}, xs, and lambda_t of each example."""
    params, state, xs = problem(cell)
    states = jax.jit(rnn_jax.plain_unroll, static_argnums=0)(cell, params, state, xs)
    previous = jax.tree.map(lambda s_0, s: jnp.concatenate([s_0[None], s[:-1]]), state, states)
    return params, previous, xs, adjoint_vectors(cell, params, state, xs), states


def stretch(cell, params, previous, xs, adjoints):
    """(|J_t^T lambda_t| / |lambda_t| - 1)^2 with J_t a matrix."""
    total = np.zeros(xs.shape[:2])
    for t, b in np.ndindex(*total.shape):
        s, x, vector = (
            jax.tree.map(lambda leaf, at=(t, b): leaf[at], tree)
            for tree in (previous, xs, adjoints)
        )
        jacobian = np.asarray(networks.step_jacobians(cell, params, s, x[None])[0])
        flat = flat_units(vector, 0)
        total[t, b] = (np.linalg.norm(jacobian.T @ flat) / np.linalg.norm(flat) - 1) ** 2
    return total


# Omega


@pytest.mark.parametrize("name", EVERY_CELL)
def test_omega_is_how_much_each_step_stretches_the_adjoint(x64, name):
    cell = CELLS[name]
    params, previous, xs, adjoints, _ = constants(cell)
    terms = jax.jit(regularizers.omega, static_argnums=0)(cell, params, previous, xs, adjoints)
    wanted = stretch(cell, params, previous, xs, adjoints)
    np.testing.assert_allclose(terms, wanted, rtol=1e-9, atol=1e-13)


@functools.partial(jax.jit, static_argnums=0)
def omega_gradient(cell, params, *rest):
    return jax.grad(lambda p: jnp.sum(regularizers.omega(cell, p, *rest)))(params)


def test_gradient_of_omega_for_an_elman_cell_is_that_by_hand(x64):
    """d|p|/dW with p = (lambda phi'(z)) W^T: the outer product of p/|p| and lambda phi'(z)."""
    cell = CELLS["elman"]
    params, previous, xs, adjoints, states = constants(cell)
    gradient = omega_gradient(cell, params, previous, xs, adjoints)
    wanted = np.zeros_like(params.W)
    for t, b in np.ndindex(*xs.shape[:2]):
        vector = np.asarray(adjoints[t, b])
        delta = vector * (1 - np.asarray(states[t, b]) ** 2)
        pulled = params.W @ delta
        size, before = np.linalg.norm(pulled), np.linalg.norm(vector)
        wanted += 2 * (size / before - 1) / before * np.outer(pulled / size, delta)
    np.testing.assert_allclose(gradient.W, wanted, rtol=1e-10)
    assert not np.any(gradient.U)
    assert not np.any(gradient.b)


@functools.partial(jax.jit, static_argnums=0)
def held(cell, params, moved, previous, xs, adjoints):
    """Sum of Omega with the weights `moved` where they multiply lambda, and nowhere else.

    Pre-activations come from `params`; a cell without parts is moved as a whole.
    """
    affine = cell.affine
    if affine is not None:

        def one(s, x, vector):
            a, r = affine.project(params, x), affine.recur(params, s)
            _, pull = jax.vjp(lambda s, r: affine.activate(moved, s, a, r), s, r)
            direct, delta = pull(vector)
            through = jax.vjp(lambda s: affine.recur(moved, s), s)[1](delta)[0]
            return jax.tree.map(jnp.add, direct, through)

    else:

        def one(s, x, vector):
            return jax.vjp(lambda s: cell.step(moved, s, x), s)[1](vector)[0]

    def size(tree):
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))

    def term(s, x, vector):
        return (size(one(s, x, vector)) / size(vector) - 1) ** 2

    return jnp.sum(jax.vmap(jax.vmap(term))(previous, xs, adjoints))


@pytest.mark.parametrize("name", EVERY_CELL)
def test_gradient_of_omega_holds_states_and_adjoints_constant(x64, rng, name):
    """Finite differences of Omega where only the weights that multiply lambda move."""
    cell = CELLS[name]
    params, previous, xs, adjoints, _ = constants(cell)
    gradient = omega_gradient(cell, params, previous, xs, adjoints)
    leaves, structure = jax.tree.flatten(params)
    for i, given in enumerate(jax.tree.leaves(gradient)):
        direction = rng.normal(size=leaves[i].shape)

        def at(sign, i=i, direction=direction):
            moved = [*leaves[:i], leaves[i] + sign * EPS * direction, *leaves[i + 1 :]]
            return held(cell, params, structure.unflatten(moved), previous, xs, adjoints)

        wanted = (at(1) - at(-1)) / (2 * EPS)
        np.testing.assert_allclose(np.sum(given * direction), wanted, rtol=1e-6, atol=1e-8)


def test_omega_ignores_the_size_of_the_adjoints_and_counts_no_zeros():
    """In float32, with adjoints of 1e-30 and 1e36, whose squares are no floats."""
    cell = CELLS["elman"]
    params, state, xs = problem(cell, dtype=np.float32)
    previous = jnp.broadcast_to(state[None], (*xs.shape[:2], networks.H))
    vectors = np.random.default_rng(1).normal(size=previous.shape).astype(np.float32)
    vectors[2, 1] = 0
    of = jax.jit(regularizers.omega, static_argnums=0)
    plain, small, large = (
        of(cell, params, previous, xs, jnp.asarray(vectors * np.float32(scale)))
        for scale in (1, 2.0**-100, 2.0**120)
    )
    assert plain[2, 1] == 0
    assert np.count_nonzero(plain) == plain.size - 1
    np.testing.assert_array_equal(small, plain)
    np.testing.assert_array_equal(large, plain)
    gradient = omega_gradient(cell, params, previous, xs, jnp.asarray(vectors))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


step = jax.jit(train.train_step, static_argnums=(0, 1, 4, 5))


def test_a_training_step_adds_weight_times_the_mean_of_omegas_gradient(x64, rng):
    """To the gradient before it is recorded; padding has no Omega and does not count."""
    weights, batch = reference.random_weights(rng, D, H, D), random_batch(rng, 3)
    lengths = np.array([2, 5, 3])
    batch = batch._replace(lengths=jnp.asarray(lengths))
    objective, optimizer = elman_objective(), optim.recorded(optax.sgd(1.0))
    s_0 = jnp.asarray(rng.normal(size=(3, H)))
    start = train_state(library_params(weights), optimizer, s_0)
    updates, norms = [], []
    for regularize in (None, regularizers.pascanu(0.7)):
        end, metrics = step(objective, optimizer, start, batch, train.trace_states, regularize)
        updates.append(jax.tree.map(np.subtract, *jax.device_get((start.params, end.params))))
        norms.append(metrics.gradient_norm)
    added = jax.tree.map(lambda plain, both: both - plain, *updates)

    run, (_, adjoints, _) = ran(objective, weights, s_0, batch)
    wanted = np.zeros((H, H))
    for b, length in enumerate(lengths):
        for t in range(length):
            delta = adjoints[t, b] * (1 - run.states[t, b] ** 2)
            pulled = weights.W @ delta
            size, before = np.linalg.norm(pulled), np.linalg.norm(adjoints[t, b])
            wanted += 2 * (size / before - 1) / before * np.outer(pulled / size, delta)
    wanted *= 0.7 / lengths.sum()
    np.testing.assert_allclose(added.cell.W, wanted, rtol=1e-8)
    for other in (added.cell.U, added.cell.b, *added.readout):
        np.testing.assert_allclose(other, 0, atol=1e-14)
    raw = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(updates[1])))
    np.testing.assert_allclose(norms[1], raw, rtol=1e-11)
    assert abs(norms[0] - norms[1]) > 1e-3 * norms[0]


def test_scanned_steps_are_regularized_too():
    """A chunk of one step of SGD: what is added to the gradient is seen in the parameters."""

    def add_ones(objective, params, carry, run, adjoints):
        assert jax.tree.map(jnp.shape, adjoints) == jax.tree.map(jnp.shape, run.states)
        return jax.tree.map(jnp.ones_like, params)

    def sample(key):
        return Batch(*jax.random.normal(key, (2, 3, 1, D)))

    objective, optimizer = elman_objective(), optim.recorded(optax.sgd(0.125))
    ends = []
    for regularize in (None, add_ones):
        state = train.init_state(objective.model, optimizer, jax.random.key(1), D, 1)
        state, _ = train.train_chunk(
            objective, optimizer, sample, state, jax.random.key(0), 1, regularize=regularize
        )
        ends.append(jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a - b, 0.125, rtol=1e-5), *ends)


# Flossing


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_flossing_loss_is_the_mean_square_of_each_examples_exponents(x64, name):
    cell = CELLS[name]
    params, state, xs = problem(cell)
    given = jax.jit(regularizers.flossing_loss, static_argnums=(0, 4, 5))(
        cell, params, state, xs, 3, 2
    )
    spectrum = jax.jit(gradflow.lyapunov_spectrum, static_argnums=(0, 4, 5))
    wanted = [
        spectrum(cell, params, jax.tree.map(lambda s, b=b: s[b], state), xs[:, b], 3, 2)
        for b in range(xs.shape[1])
    ]
    np.testing.assert_allclose(given, np.mean(np.square(wanted)), rtol=1e-12)
    # Not the square of the batch's mean.
    assert abs(given - np.mean(np.square(np.mean(wanted, axis=0)))) > 1e-6


def test_gradient_of_flossing_equals_finite_differences(x64, rng):
    cell = CELLS["elman"]
    params, state, xs = problem(cell)
    loss = jax.jit(lambda params, state: regularizers.flossing_loss(cell, params, state, xs, 2, 1))
    gradients = jax.jit(jax.grad(loss, (0, 1)))(params, state)
    leaves, structure = jax.tree.flatten((params, state))
    for i, given in enumerate(jax.tree.leaves(gradients)):
        direction = rng.normal(size=leaves[i].shape)
        up, down = (
            loss(*structure.unflatten([*leaves[:i], leaves[i] + e * direction, *leaves[i + 1 :]]))
            for e in (EPS, -EPS)
        )
        assert abs(up - down) > 1e-9
        wanted = (up - down) / (2 * EPS)
        np.testing.assert_allclose(np.sum(given * direction), wanted, rtol=1e-6)


FLOSS = {"num_exponents": 4, "burn_in": 4, "time_steps": 20}


def test_flossing_brings_the_exponents_of_a_forgetful_network_to_zero():
    """Eight units of gain 0.5: the first four exponents down to -1.2 before, within 0.1 after."""
    cell = rnn_jax.elman(8, recurrent_init=rnn_jax.initializers.gaussian(0.5))
    task, optimizer = delayed_xor(10, 25, 4), optax.adam(3e-2)
    params, s_0 = cell.init(jax.random.key(0), 1), jnp.zeros((4, 8))
    start = regularizers.floss_init(optimizer, params)
    end, metrics = regularizers.floss_chunk(
        cell, optimizer, task.sample, start, s_0, jax.random.key(1), 120, **FLOSS
    )
    assert int(end.step) == 120
    first, last = metrics.exponents[0], metrics.exponents[-1]
    assert first.shape == (4,)
    assert np.all(first < -0.4)
    assert np.abs(last).max() < 0.1 * np.abs(first).max()
    assert metrics.loss[-1] < 0.02 * metrics.loss[0]
    # Measured anew, on data of its own.
    fresh = task.sample(jax.random.key(7)).inputs
    spectrum = jax.jit(gradflow.lyapunov_spectrum, static_argnums=(0, 4, 5))
    anew = spectrum(cell, end.params, s_0, fresh[:20], 4, 4)
    assert np.abs(anew).max() < 0.15 * np.abs(first).max()


@pytest.mark.slow
def test_chunks_are_their_steps_one_by_one_and_each_has_its_own_data(x64):
    """Two chunks of two: the step is carried from one to the next, and with it the data."""
    cell, task, optimizer = rnn_jax.elman(3), delayed_xor(1, 6, 2), optax.sgd(0.1)
    params, s_0, _ = problem(cell, (2,))
    params = params._replace(U=params.U[:1])
    key, sample = jax.random.key(4), jax.jit(task.sample)
    start = single = chunk = regularizers.floss_init(optimizer, params)
    one = jax.jit(regularizers.floss_step, static_argnums=(0, 1, 5, 6))
    singles, losses = [], []
    for n in range(4):
        xs = sample(jax.random.fold_in(key, n)).inputs
        single, metrics = one(cell, optimizer, single, s_0, xs, 2, 1)
        singles.append(single)
        losses.append(metrics)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *losses)
    chunks = []
    for _ in range(2):
        chunk, metrics = regularizers.floss_chunk(
            cell, optimizer, task.sample, chunk, s_0, key, 2, 2, 1
        )
        chunks.append(metrics)
    chunks = jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
        (chunk.step, chunk.params, chunks),
        (4, single.params, stacked),
    )
    update = jax.tree.map(lambda a, b: (a - b) / 0.1, start.params, singles[0].params)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(update)))
    np.testing.assert_allclose(chunks.gradient_norm[0], norm, rtol=1e-9)


def test_flossing_wants_whole_sequences_of_enough_steps():
    cell, optimizer = rnn_jax.elman(3), optax.sgd(0.1)
    start = regularizers.floss_init(optimizer, cell.init(jax.random.key(0), 1))

    def floss(lengths, **counts):
        def sample(key):
            return Batch(jnp.zeros((6, 2, 1)), jnp.zeros((2, 1)), lengths)

        return regularizers.floss_chunk(
            cell, optimizer, sample, start, jnp.zeros((2, 3)), jax.random.key(0), 1, **counts
        )

    with pytest.raises(ValueError, match="the batch has lengths"):
        floss(jnp.array([6, 3]))
    with pytest.raises(ValueError, match=r"time_steps is 7.* has 6 steps: give 1\.\.6"):
        floss(None, time_steps=7)
    with pytest.raises(ValueError, match="num_exponents is 4"):
        floss(None, num_exponents=4)
    with pytest.raises(ValueError, match="burn_in is 6"):
        floss(None, burn_in=6)
