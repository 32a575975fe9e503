"""Arguments of `unroll` that do not fit: each error names what was given and what is wanted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax import plain_unroll, unroll

T, B, D, H = 7, 3, 2, 5


def arguments(**changes):
    cell = rnn_jax.elman(H)
    params = cell.init(jax.random.key(0), D)
    given = {"state": jnp.zeros((B, H)), "xs": jnp.zeros((T, B, D)), **changes}
    state, xs = given.pop("state"), given.pop("xs")
    return (cell, params, state, xs), given


ERRORS = {
    "features": ({"xs": jnp.zeros((T, B, 4))}, r"x of shape \(3, 4\).*U=\(2, 5\)"),
    "state size": ({"state": jnp.zeros((B, 6))}, r"\(3, 6\).*\(7, 3, 2\).*\(3, 5\)"),
    "batch": ({"xs": jnp.zeros((T, 4, D))}, r"\(3, 5\).*\(7, 4, 2\).*\(4, 5\)"),
    "state without batch": ({"state": jnp.zeros(H)}, r"\(5,\).*\(7, 3, 2\).*\(3, 5\)"),
    "state of another kind": (
        {"state": rnn_jax.LSTMState(jnp.zeros((B, H)), jnp.zeros((B, H)))},
        r"LSTMState\(c=\(3, 5\), h=\(3, 5\)\).*want \(3, 5\)",
    ),
    "rank 1": ({"xs": jnp.zeros(T)}, r"\(7,\).*\[T, B, D\] or \[T, D\].*xs\[:, None\]"),
    "batch first": (
        {"xs": jnp.zeros((B, T, D))},
        r"\(3, 5\).*\(3, 7, 2\).*xs is \[T, B, D\], time first.*jnp\.swapaxes\(xs, 0, 1\)$",
    ),
    "state of another batch": (
        {"state": jnp.zeros((4, H))},
        r"7 steps of a batch of 3.*cell\.initial_state\(params, \(3,\)\)",
    ),
    "state of one sequence": ({"state": jnp.zeros(H)}, r"7 steps of a batch of 3"),
    "features missing": (
        {"xs": jnp.zeros((T, B))},
        r"\[T, D\] for one sequence.*xs\[\.\.\., None\]",
    ),
    "tokens": ({"xs": jnp.zeros((T, B), int)}, r"\(7, 3\).*int32.*embed tokens first"),
    "tokens batch first": ({"xs": jnp.zeros((B, T), int)}, r"\(3, 7\).*int32.*embed tokens first"),
    "tokens of one sequence": ({"xs": jnp.zeros(T, int)}, r"\(7,\).*int32.*embed tokens first"),
    "whole numbers": (
        {"xs": jnp.zeros((T, B, D), int)},
        r"int32.*embed.*xs\.astype\(jnp\.float32\)",
    ),
    "truth values": ({"xs": jnp.zeros((T, B, D), bool)}, r"bool.*embed"),
    "ragged list": (
        {"xs": [[[1.0, 2.0]], [[1.0]]]},
        r"a list of which no array \[T, B, D\].*pass lengths",
    ),
    "nothing": ({"xs": []}, r"\(0,\).*\[T, B, D\]"),
    "whole numbers in the state": (
        {"state": jnp.zeros((B, H), int)},
        r"^state is of type int32, which has no gradient",
    ),
    "a key in the state": (
        {"state": {"h": jnp.zeros((B, H)), "key": jax.random.key(0)}},
        r"^state\.key is of type key<fry>, which has no gradient",
    ),
    "no tangent in the state": (
        {"state": np.zeros((B, H), jax.dtypes.float0)},
        r"^state is of type float0, which has no gradient",
    ),
    "no steps": ({"xs": jnp.zeros((0, B, D))}, r"\(0, 3, 2\): no time step"),
    "perturbations' steps": (
        {"perturbations": jnp.zeros((T - 1, B, H))},
        r"perturbations.*\(6, 3, 5\).*\(7, 3, 5\)",
    ),
    "perturbations' size": (
        {"perturbations": jnp.zeros((T, B, 1))},
        r"perturbations.*\(7, 3, 1\).*\(7, 3, 5\)",
    ),
    "lengths' shape": (
        {"lengths": jnp.array([1, 2])},
        r"\(2,\).*\(7, 3, 2\).*\(3,\).*time first",
    ),
    "lengths' type": ({"lengths": jnp.array([1.0, 2.0, 3.0])}, r"\(3,\) and type float32.*whole"),
    "length 0": ({"lengths": jnp.array([1, 0, 3])}, r"from 0 to 3.*in 1\.\.7"),
    "length beyond T": ({"lengths": np.array([1, 8, 3])}, r"from 1 to 8.*in 1\.\.7"),
}


@pytest.mark.parametrize("run", [unroll, plain_unroll])
@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_error_names_what_was_given_and_wanted(run, changes, message):
    positional, named = arguments(**changes)
    with pytest.raises(ValueError, match=message):
        run(*positional, **named)


@pytest.mark.parametrize("run", [unroll, plain_unroll])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda params, state, x: state[..., :2] + x, r"float32\[3,5\].*float32\[3,2\]"),
        (lambda params, state, x: (state + x).astype("float16"), r"float32.*float16"),
    ],
    ids=["shape", "type"],
)
def test_a_step_must_return_a_state_like_the_one_it_is_given(run, step, message):
    cell = rnn_jax.Cell(lambda *_: (), lambda _, shape=(): jnp.zeros((*shape, H)), step)
    with pytest.raises(ValueError, match=message):
        run(cell, (), jnp.zeros((B, H)), jnp.zeros((T, B, 1)))


def test_errors_are_the_same_under_jit():
    (cell, params, state, xs), _ = arguments(state=jnp.zeros((B, 6)))
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(7, 3, 2\).*\(3, 5\)"):
        jax.jit(unroll, static_argnums=0)(cell, params, state, xs)


def test_a_batch_first_xs_is_never_answered_with_a_state_for_it():
    """The way out that is offered mends the call; a state for the time axis would not."""
    for cell in (rnn_jax.lstm(H), rnn_jax.stack([rnn_jax.gru(H), rnn_jax.elman(4)])):
        params = jax.eval_shape(lambda key, c=cell: c.init(key, D), jax.random.key(0))
        state = jax.eval_shape(lambda p, c=cell: c.initial_state(p, (B,)), params)
        xs = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
        with pytest.raises(ValueError, match="swapaxes") as raised:
            jax.eval_shape(lambda *given, c=cell: unroll(c, *given), params, state, xs)
        assert "initial_state" not in str(raised.value)


# What does not look as it should, and works


@pytest.mark.parametrize("run", [unroll, plain_unroll])
def test_lists_and_numpy_arrays_are_arrays(run):
    (cell, params, state, _), _ = arguments()
    xs = np.random.default_rng(0).normal(size=(T, B, D)).astype(np.float32)
    lengths = [3, 7, 1]
    wanted = run(cell, params, state, jnp.asarray(xs), lengths=jnp.array(lengths))
    plain = jax.tree.map(np.asarray, params)
    for same in (xs, xs.tolist(), [jnp.asarray(x) for x in xs]):
        np.testing.assert_array_equal(
            run(cell, plain, np.asarray(state), same, lengths=lengths), wanted
        )


@pytest.mark.parametrize("run", [unroll, plain_unroll])
@pytest.mark.parametrize("cell", [rnn_jax.lstm(H), rnn_jax.gru(H)], ids=["lstm", "gru"])
def test_an_empty_batch_has_empty_states_and_no_gradient(run, cell):
    params = cell.init(jax.random.key(0), D)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        state = cell.initial_state(params, (0,))
        states = run(cell, params, state, jnp.zeros((T, 0, D)), lengths=[])
        return jnp.sum(cell.emit(states)), cell.emit(states)

    (_, emitted), gradient = loss(params)
    assert emitted.shape == (T, 0, H)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_cell_of_ones_own_may_read_tokens():
    """It embeds them itself: only a product with whole numbers is refused."""
    step = lambda params, state, x: jnp.tanh(state + params[x[..., 0]])  # noqa: E731
    cell = rnn_jax.Cell(None, lambda params, batch=(): jnp.zeros((*batch, H)), step)
    table = jax.random.normal(jax.random.key(0), (9, H))
    tokens = jax.random.randint(jax.random.key(1), (T, B, 1), 0, 9)
    state = jnp.zeros((B, H))
    gradients = [
        jax.grad(lambda table, r=run: jnp.sum(r(cell, table, state, tokens) ** 2))(table)
        for run in (unroll, plain_unroll)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5)
    with pytest.raises(ValueError, match="embed tokens first"):
        unroll(cell, table, state, tokens[..., 0])
