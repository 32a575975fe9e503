"""A cell in segments is the cell; only the memory of its gradient is another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax

H, B, D = 4, 3, 2
CELLS = {
    "elman": rnn_jax.elman(H),
    "lstm": rnn_jax.lstm(H),
    "stack": rnn_jax.stack([rnn_jax.elman(H), rnn_jax.gru(H)]),
}


def gradients(cell, params, xs, lengths):
    state = cell.initial_state(params, (B,))
    zeros = rnn_jax.zero_perturbations(state, len(xs))

    def loss(params, state, xs, perturbations):
        states = rnn_jax.unroll(
            cell, params, state, xs, perturbations=perturbations, lengths=lengths
        )
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(states))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(params, state, xs, zeros)


@pytest.mark.parametrize(
    ("name", "steps", "segment"),
    [("elman", 12, 4), ("elman", 5, 9), ("lstm", 13, 5), ("stack", 13, 5)],
)
def test_gradients_and_adjoints_are_those_of_the_cell(x64, name, steps, segment):
    cell = CELLS[name]
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), shapes)
    xs = jnp.asarray(draw.normal(size=(steps, B, D)))
    lengths = jnp.array([steps, steps - 3, 1])
    found = gradients(rnn_jax.segmented(cell, segment), params, xs, lengths)
    wanted = gradients(cell, params, xs, lengths)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, wanted
    )


def test_it_takes_the_memory_of_a_segment():
    """Of an LSTM, gates and products are 4 H each a step: all but a segment's are saved."""
    steps, hidden_size = 4096, 16
    xs = jnp.zeros((steps, 1, 1))

    def needed(cell):
        params = jax.eval_shape(lambda key: cell.init(key, 1), jax.random.key(0))

        def last(params):
            states = rnn_jax.unroll(cell, params, cell.initial_state(params, (1,)), xs)
            return jnp.sum(states.h[-1])

        planned = jax.jit(jax.grad(last)).lower(params).compile().memory_analysis()
        return planned.temp_size_in_bytes

    plain = rnn_jax.lstm(hidden_size)
    saved = needed(plain) - needed(rnn_jax.segmented(plain, 64))
    assert saved > 0.9 * steps * 4 * hidden_size * 4


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "8"])
def test_a_segment_has_a_whole_number_of_steps(wrong):
    with pytest.raises(ValueError, match="segment_length is"):
        rnn_jax.segmented(rnn_jax.elman(2), wrong)
