"""Both directions: each padded sequence is read backward from its own end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CELLS, LENGTHS, PADDING, B, D, H, T, assert_close, problem

import rnn_jax
from rnn_jax import Directions

BOTH = rnn_jax.bidirectional(CELLS["lstm"], rnn_jax.elman(3))


def both_problem():
    forward, backward = problem(CELLS["lstm"]), problem(rnn_jax.elman(3), seed=1)
    return (
        Directions(forward.params, backward.params),
        Directions(forward.state, backward.state),
        forward.xs,
        Directions(forward.perturbations, backward.perturbations),
    )


def alone(params, state, xs, perturbations, lengths):
    """Every example by itself, cut to its length and turned round by NumPy slices."""
    outputs = []
    for b, length in enumerate(lengths):
        pick = lambda tree, b=b: jax.tree.map(lambda leaf: leaf[b], tree)  # noqa: E731
        cut = lambda tree, b=b, n=length: jax.tree.map(lambda a: a[:n, b], tree)  # noqa: E731
        turn = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree)  # noqa: E731
        emitted = []
        for cell, p, s, q, order in zip(
            BOTH.cells, params, state, perturbations, (lambda tree: tree, turn), strict=True
        ):
            states = rnn_jax.plain_unroll(
                cell, p, pick(s), order(cut(xs)), perturbations=order(cut(q))
            )
            emitted.append(order(cell.emit(states)))
        outputs.append(jnp.concatenate(emitted, axis=-1))
    return outputs


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_outputs_and_gradients_are_those_of_each_example_alone(x64, lengths):
    given = both_problem()
    true_lengths = np.full(B, T) if lengths is None else lengths
    weights = np.random.default_rng(2).uniform(0.5, 2, size=(T, B, H + 3))

    def ours(params, state, xs, perturbations):
        states = rnn_jax.bidirectional_unroll(
            BOTH, params, state, xs, perturbations=perturbations, lengths=lengths
        )
        emitted = BOTH.emit(states)
        parts = [emitted[:n, b] for b, n in enumerate(true_lengths)]
        return total(parts), (parts, states)

    def total(parts):
        return sum(jnp.sum(jnp.sin(weights[: len(o), b] * o)) for b, o in enumerate(parts))

    def wanted(*arguments):
        parts = alone(*arguments, true_lengths)
        return total(parts), parts

    (_, (parts, states)), gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2, 3), has_aux=True))(
        *given
    )
    (_, wanted_parts), wanted_gradients = jax.jit(
        jax.value_and_grad(wanted, (0, 1, 2, 3), has_aux=True)
    )(*given)
    assert_close((parts, gradients), (wanted_parts, wanted_gradients))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    if lengths is not None:
        for leaf in jax.tree.leaves((gradients[2], gradients[3])):
            assert not np.asarray(leaf)[PADDING].any()
        # Padding keeps what a cell ended with: the backward one, at the first step.
        for b, length in enumerate(lengths):
            for t in range(length, T):
                np.testing.assert_array_equal(states.backward[t, b], states.backward[0, b])


def test_a_single_sequence(x64):
    params, state, xs, _ = both_problem()
    state, xs = jax.tree.map(lambda s: s[0], state), xs[:, 0]
    states = rnn_jax.bidirectional_unroll(BOTH, params, state, xs, lengths=jnp.asarray(4))
    wanted = rnn_jax.unroll(BOTH.cells.backward, params.backward, state.backward, xs[:4][::-1])
    np.testing.assert_allclose(states.backward[:4], wanted[::-1], rtol=1e-12)


def test_the_two_cells_share_nothing():
    both = rnn_jax.bidirectional(rnn_jax.elman(H), rnn_jax.elman(H))
    params = jax.jit(both.init, static_argnums=1)(jax.random.key(0), D)
    assert np.all(params.forward.U != params.backward.U)
    state = both.initial_state(params, (B,))
    assert jax.tree.map(jnp.shape, state) == Directions((B, H), (B, H))


def test_lengths_are_checked():
    params, state, xs, _ = jax.tree.map(jnp.asarray, both_problem())
    with pytest.raises(ValueError, match=r"lengths run from 1 to 9"):
        rnn_jax.bidirectional_unroll(BOTH, params, state, xs, lengths=np.array([1, 9, 2]))
