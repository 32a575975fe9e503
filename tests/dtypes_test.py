"""Dtypes: parameters follow JAX's default, mixtures work or are refused with every name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax import initializers, plain_unroll, unroll

T, B, D, H = 3, 2, 2, 4

CELLS = {
    "elman": rnn_jax.elman(H),
    "leaky": rnn_jax.leaky(H),
    "layer_norm": rnn_jax.layer_norm_elman(H),
    "lstm": rnn_jax.lstm(H),
    "gru": rnn_jax.gru(H),
    "stack": rnn_jax.stack([rnn_jax.lstm(H), rnn_jax.gru(H)]),
    "learned": rnn_jax.learned_initial_state(rnn_jax.lstm(H)),
    "dropout": rnn_jax.variational_dropout(rnn_jax.gru(H)),
    "segmented": rnn_jax.segmented(rnn_jax.elman(H), 2),
}


def dtypes_of(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def fresh(cell):
    """Shapes and types of fresh parameters; nothing is computed."""
    return jax.eval_shape(functools.partial(cell.init, input_size=D), jax.random.key(0))


@pytest.mark.parametrize("name", CELLS)
def test_fresh_parameters_and_states_follow_x64(name):
    cell = CELLS[name]
    for wide, wanted in ((False, "float32"), (True, "float64")):
        with jax.enable_x64(wide):
            params = fresh(cell)
            assert dtypes_of(params) == {wanted}
            assert dtypes_of(jax.eval_shape(cell.initial_state, params)) == {wanted}


def test_fresh_models_and_initializers_follow_x64(x64):
    for make in (rnn_jax.sequence_model, rnn_jax.last_only):
        assert dtypes_of(fresh(make(rnn_jax.gru(H), 3))) == {"float64"}
    for init in (
        initializers.normal(1.0),
        initializers.gaussian(1.0),
        initializers.uniform(1.0),
        initializers.uniform_torch,
        initializers.orthogonal(),
        initializers.identity(),
        initializers.zeros,
    ):
        drawn = jax.eval_shape(lambda key, i=init: i(key, (H, H)), jax.random.key(0))
        assert drawn.dtype == jnp.float64


def test_weights_in_float64_are_orthogonal_to_its_rounding(x64):
    """Drawn in float64, not in float32 and widened."""
    W = np.asarray(rnn_jax.elman(H).init(jax.random.key(0), D).W)
    np.testing.assert_allclose(W @ W.T, np.eye(H), atol=1e-14)


# Mixtures


def states_and_gradient(cell, params, state, xs, run=unroll):
    """Types of the states and of the gradients by params, state and xs; nothing is computed."""

    def loss(params, state, xs):
        states = run(cell, params, state, xs)
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(states)), states

    gradients, states = jax.eval_shape(jax.grad(loss, (0, 1, 2), has_aux=True), params, state, xs)
    return dtypes_of(states), [dtypes_of(part) for part in gradients]


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), tree)


def given(cell, params, state, xs):
    """Shapes of a problem in these types."""
    shapes = fresh(cell)
    states = jax.eval_shape(lambda p: cell.initial_state(p, (B,)), shapes)
    return (
        cast(shapes, params),
        cast(states, state),
        jax.ShapeDtypeStruct((T, B, D), jnp.dtype(xs)),
    )


@pytest.mark.parametrize("run", [unroll, plain_unroll])
@pytest.mark.parametrize(
    "types",
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
        ("float32", "float32", "bfloat16"),
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_mixtures_that_work(name, types, run):
    """States keep their type; so does every gradient."""
    states, gradients = states_and_gradient(CELLS[name], *given(CELLS[name], *types), run)
    assert states == {types[1]}
    assert gradients == [{kind} for kind in types]


@pytest.mark.parametrize(
    ("types", "said"),
    [
        (
            ("bfloat16", "bfloat16", "float32"),
            r"^params are bfloat16, xs is float32, state is bfloat16: .* cast xs, "
            r"xs\.astype\(jnp\.bfloat16\)(\n|$)",
        ),
        (
            ("float32", "bfloat16", "float32"),
            r"^params are float32, xs is float32, state is bfloat16: .*"
            r"take the state from cell\.initial_state\(params, batch_shape\)(\n|$)",
        ),
        (
            ("float32", "bfloat16", "bfloat16"),
            r"^params are float32, xs is bfloat16, state is bfloat16: .*xs\.astype.*take the state",
        ),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_mixtures_that_are_refused(name, types, said):
    with pytest.raises(ValueError, match=said):
        states_and_gradient(CELLS[name], *given(CELLS[name], *types))


def test_wider_inputs_than_parameters_under_x64(x64):
    arguments = given(CELLS["lstm"], "float32", "float32", "float64")
    with pytest.raises(ValueError, match=r"xs is float64.*xs\.astype\(jnp\.float32\)(\n|$)"):
        states_and_gradient(CELLS["lstm"], *arguments)


def test_parameters_of_two_types_and_perturbations_of_another():
    cell = CELLS["elman"]
    params, state, xs = given(cell, "bfloat16", "bfloat16", "bfloat16")
    mixed = params._replace(b=cast(params.b, "float32"))
    with pytest.raises(ValueError, match=r"^params are bfloat16 and float32, .*; cast params"):
        states_and_gradient(cell, mixed, state, xs)
    zeros = jax.ShapeDtypeStruct((T, B, H), jnp.float32)
    with pytest.raises(ValueError, match=r"perturbations are float32: .*zero_perturbations"):
        jax.eval_shape(
            lambda *most, zeros: unroll(cell, *most, perturbations=zeros),
            params,
            state,
            xs,
            zeros=zeros,
        )


def test_shapes_that_do_not_fit_are_not_blamed_on_types():
    cell = CELLS["elman"]
    params, state, _ = given(cell, "float32", "float32", "float32")
    xs = jax.ShapeDtypeStruct((T, B, D + 1), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"x of shape \(2, 3\)"):
        states_and_gradient(cell, params, state, xs)


def test_numbers_whose_type_gives_way_are_no_mixture():
    """A Python number among the parameters follows the arrays that it meets."""
    cell = rnn_jax.Cell(
        None,
        lambda params, batch=(): jnp.zeros((*batch, D), jnp.bfloat16),
        lambda leak, state, x: leak * state + x,
    )
    state, xs = jnp.zeros((B, D), jnp.bfloat16), jnp.ones((T, B, D), jnp.bfloat16)
    for run in (unroll, plain_unroll):
        assert run(cell, 0.5, state, xs).dtype == jnp.bfloat16
        assert run(cell, jnp.asarray(0.5, jnp.bfloat16), state, xs).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"^params are float32, .*cast xs, xs\.astype"):
        unroll(cell, jnp.float32(0.5), state, xs)
