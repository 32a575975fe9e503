"""Arguments of `unroll` that do not fit: each error names what was given and what is wanted."""

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
    "no steps": ({"xs": jnp.zeros((0, B, D))}, r"\(0, 3, 2\): no time step"),
    "perturbations' steps": (
        {"perturbations": jnp.zeros((T - 1, B, H))},
        r"perturbations.*\(6, 3, 5\).*\(7, 3, 5\)",
    ),
    "perturbations' size": (
        {"perturbations": jnp.zeros((T, B, 1))},
        r"perturbations.*\(7, 3, 1\).*\(7, 3, 5\)",
    ),
    "lengths' shape": ({"lengths": jnp.array([1, 2])}, r"\(2,\).*\(7, 3, 2\).*\(3,\)"),
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
