"""dL/ds_t against BPTT by hand and autodiff of a plain scan; what must not change it."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
from marks import slow_but_for
from networks import CELLS, EVERY_CELL, B, D, H, T, problem, step_losses

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.gradflow import LastStep

pytestmark = pytest.mark.usefixtures("x64")

LENGTHS = np.array([4, T, 1])
PADDING = np.arange(T)[:, None] >= LENGTHS

state_gradients = jax.jit(
    gradflow.state_gradients, static_argnums=(0, 4), static_argnames="segment_length"
)


@pytest.fixture(params=EVERY_CELL)
def cell(request):
    return CELLS[request.param]


def last_loss(state):
    """The loss of the last step in `step_losses`, as a function of s_T."""
    zeros = jax.tree.map(lambda s: jnp.zeros((T - 1, *s.shape), s.dtype), state)
    return step_losses(jax.tree.map(lambda z, s: jnp.concatenate([z, s[None]]), zeros, state))[-1]


def only_last(states):
    return step_losses(states).at[:-1].set(0)


def by_hand(activation, seed=0):
    """Elman data, e_t and lambda_t in NumPy; L_t of each example sums to the mean there."""
    rng = np.random.default_rng(seed)
    weights = reference.random_weights(rng, D, H, 3)
    s_0, x, y = (rng.normal(size=shape) for shape in ((B, H), (T, B, D), (T, B, 3)))
    data = (weights, reference.PHI[activation], s_0, x, y)
    gradients = reference.backward(*data, reference.forward(*data))

    def losses(states):
        outputs = states @ weights.V
        outputs = outputs + jnp.broadcast_to(weights.c, outputs.shape)
        return jnp.sum((outputs - y) ** 2, axis=-1) / y.size

    arguments = (rnn_jax.ElmanParams(*weights[:3]), s_0, x)
    return jax.tree.map(jnp.asarray, arguments), losses, gradients


@pytest.mark.parametrize("activation", slow_but_for(reference.PHI.keys() - {"relu"}, reference.PHI))
def test_elman_equals_hand_written_bptt(activation):
    arguments, losses, gradients = by_hand(activation)
    logs = state_gradients(rnn_jax.elman(H, activation), *arguments, losses)
    np.testing.assert_allclose(
        logs, np.log(np.linalg.norm(gradients.adjoints, axis=-1)), rtol=1e-12, atol=1e-12
    )


def test_last_adjoint_is_the_immediate_gradient():
    arguments, losses, gradients = by_hand("tanh")
    logs = state_gradients(CELLS["elman"], *arguments, losses)
    immediate = np.log(np.linalg.norm(gradients.immediate, axis=-1))
    np.testing.assert_allclose(logs[-1], immediate[-1], rtol=1e-14)
    # Before the last step the future has its part, or the line above would say nothing.
    assert np.all(np.abs(logs[:-1] - immediate[:-1]) > 1e-3)


def test_every_cell_equals_autodiff_of_a_plain_scan(cell):
    given = problem(cell)
    wanted = networks.log_norm(networks.adjoint_vectors(cell, *given), 2)
    np.testing.assert_allclose(
        state_gradients(cell, *given, step_losses), wanted, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", ["lstm", "user"])
def test_leaves_apart_and_together(name):
    cell = CELLS[name]
    given = problem(cell)
    leaves = jax.jit(gradflow.leaf_gradients, static_argnums=(0, 4))(cell, *given, step_losses)
    vectors = networks.adjoint_vectors(cell, *given)
    jax.tree.map(
        lambda got, leaf: np.testing.assert_allclose(got, networks.log_norm(leaf, 2), rtol=1e-11),
        leaves,
        vectors,
    )
    squares = sum(np.exp(2 * np.asarray(leaf)) for leaf in jax.tree.leaves(leaves))
    whole = state_gradients(cell, *given, step_losses)
    np.testing.assert_allclose(0.5 * np.log(squares), whole, rtol=1e-12, atol=1e-12)


# A loss at the last step


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("lstm", None), ("elman", LENGTHS), ("user", LENGTHS)],
    ids=["lstm", "elman-padded", "user-padded"],
)
def test_last_step_equals_all_steps_with_one_loss(name, lengths):
    cell = CELLS[name]
    given = problem(cell)
    final = np.full(B, T) if lengths is None else np.asarray(lengths)

    def only_last(states):
        """The loss at each example's own last step, and none on padding."""
        losses = jax.vmap(last_loss)(states)
        return jnp.where(jnp.arange(T)[:, None] == final[None] - 1, losses, 0)

    full = state_gradients(cell, *given, only_last, lengths=lengths)
    last = state_gradients(cell, *given, LastStep(last_loss), lengths=lengths)
    np.testing.assert_allclose(last, full, rtol=1e-13, atol=1e-13)
    assert np.all(np.isfinite(full) == (True if lengths is None else ~PADDING))


@pytest.mark.parametrize(
    ("name", "segment_length"),
    [("elman", 1), ("elman", 4), ("elman", T), ("lstm", 3)],
)
def test_segments_change_nothing(name, segment_length):
    cell = CELLS[name]
    given = problem(cell)
    whole = state_gradients(cell, *given, LastStep(last_loss))
    parts = state_gradients(cell, *given, LastStep(last_loss), segment_length=segment_length)
    np.testing.assert_allclose(parts, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("batch_shape", "lengths", "segment_length"),
    [((B,), LENGTHS, 4), ((), None, 5)],
)
def test_segments_of_padded_and_single_sequences(batch_shape, lengths, segment_length):
    cell = CELLS["user"]
    given = problem(cell, batch_shape)
    whole = state_gradients(cell, *given, LastStep(last_loss), lengths=lengths)
    parts = state_gradients(
        cell, *given, LastStep(last_loss), lengths=lengths, segment_length=segment_length
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-14, atol=1e-14)


# Padding


def masked_losses(states):
    """Without what lies on padding."""
    return jnp.where(jnp.asarray(~PADDING), step_losses(states), 0)


@pytest.mark.parametrize(
    ("name", "losses"),
    [("elman", masked_losses), ("elman", step_losses), ("lstm", masked_losses)],
    ids=["elman-masked", "elman-as-they-are", "lstm-masked"],
)
def test_padded_examples_equal_shorter_sequences(name, losses):
    cell = CELLS[name]
    params, state, xs = problem(cell)
    rubbish = np.where(PADDING[..., None], 1e3, xs)
    logs = state_gradients(cell, params, state, rubbish, losses, lengths=LENGTHS)
    for example, length in enumerate(LENGTHS):
        one = jax.tree.map(lambda s, b=example: s[b], state)
        vectors = networks.adjoint_vectors(cell, params, one, xs[:length, example])
        np.testing.assert_allclose(
            logs[:length, example], networks.log_norm(vectors, 1), rtol=1e-11, atol=1e-12
        )
    assert np.all(logs[PADDING] == -np.inf)


# What must not change it


@pytest.mark.parametrize(
    "examples", [[1, 2], [0, 1, 2, 0, 1, 2], 1], ids=["part", "twice", "unbatched"]
)
def test_an_example_does_not_see_its_batch(examples):
    cell = CELLS["user"]
    params, state, xs = problem(cell)
    logs = state_gradients(cell, params, state, xs, step_losses)
    chosen = jax.tree.map(lambda s: np.asarray(s)[examples], state)
    part = state_gradients(cell, params, chosen, np.asarray(xs)[:, examples], step_losses)
    np.testing.assert_allclose(part, logs[:, examples], rtol=1e-12)


def test_two_batch_axes_are_the_same_examples():
    cell = CELLS["lstm"]
    given = problem(cell, (2, B))
    logs = state_gradients(cell, *given, step_losses)
    assert logs.shape == (T, 2, B)
    flat = networks.Problem(
        given.params,
        jax.tree.map(lambda s: np.reshape(s, (2 * B, H)), given.state),
        np.reshape(given.xs, (T, 2 * B, D)),
    )
    np.testing.assert_allclose(
        np.reshape(logs, (T, 2 * B)), state_gradients(cell, *flat, step_losses), rtol=1e-12
    )


def test_a_factor_of_the_loss_shifts_every_logarithm():
    with jax.enable_x64(False):
        given = problem(CELLS["gru"])
        assert given.xs.dtype == jnp.float32

        @jax.jit
        def logs(factor):
            def losses(states):
                return factor * step_losses(states)

            return gradflow.state_gradients(CELLS["gru"], *given, losses)

        plain = logs(1.0)
        for factor in (1e-20, -2.0, 1e20):
            shift = np.full((T, B), np.log(abs(factor)))
            np.testing.assert_allclose(logs(factor) - plain, shift, rtol=1e-6)


def test_numpy_arrays_do_as_well():
    cell = CELLS["elman"]
    given = problem(cell)
    plain = jax.tree.map(np.asarray, given)
    np.testing.assert_allclose(
        gradflow.state_gradients(cell, *plain, step_losses),
        state_gradients(cell, *given, step_losses),
        rtol=1e-12,
    )


# Loss, gradient and adjoints together


def check_value_and_grad(cell, given, loss_fn, args, mean_loss, lengths=None):
    """Against JAX's own gradient of `mean_loss(states, *args)` through a plain scan."""

    def plain(params, perturbations):
        states = rnn_jax.plain_unroll(
            cell, params, given.state, given.xs, perturbations=perturbations, lengths=lengths
        )
        return mean_loss(states, *args)

    zeros = rnn_jax.zero_perturbations(given.state, T)
    value, (grads, adjoints) = jax.jit(jax.value_and_grad(plain, (0, 1)))(given.params, zeros)
    evaluate = jax.jit(gradflow.value_and_grad(cell, loss_fn))
    got = evaluate(*given, *args, lengths=lengths)
    assert jax.tree.structure(got) == jax.tree.structure((value, grads, adjoints))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13),
        got,
        (value, grads, adjoints),
    )


def mean_of_sums(states, *args):
    return jnp.mean(jnp.sum(step_losses(states, *args), axis=0))


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("elman", None), ("user", None), ("lstm", LENGTHS)],
    ids=["elman", "user", "lstm-padded"],
)
def test_value_and_grad_of_step_losses(name, lengths):
    """`[T, B]` is summed over time, padding left out, and averaged over the batch."""
    cell = CELLS[name]
    counted = step_losses if lengths is None else masked_losses

    def mean_loss(states):
        return jnp.mean(jnp.sum(counted(states), axis=0))

    check_value_and_grad(cell, problem(cell), step_losses, (), mean_loss, lengths)


def test_value_and_grad_of_a_scalar_with_extra_arguments():
    cell = CELLS["lstm"]
    targets = jnp.asarray(np.random.default_rng(1).normal(size=(T, B, H)))

    def scalar(states, targets, factors):
        return factors["h"] * jnp.sum((states.h - targets) ** 2) + jnp.prod(states.c[-1])

    check_value_and_grad(cell, problem(cell), scalar, (targets, {"h": jnp.array(0.7)}), scalar)


def test_value_and_grad_without_a_batch_and_with_extra_arguments():
    cell = CELLS["gru"]
    targets = jnp.asarray(np.random.default_rng(1).normal(size=(T, H)))

    def losses(states, targets):
        return jnp.sum((states - targets) ** 3, axis=-1)

    def mean_loss(states, targets):
        return jnp.sum((states - targets) ** 3)

    check_value_and_grad(cell, problem(cell, ()), losses, (targets,), mean_loss)
