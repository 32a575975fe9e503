"""Cells, and problems for `unroll` in which every number is random, that its tests share."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from rnn_jax import unroll

T, B, D, H = 7, 3, 2, 5


def fast_and_slow() -> rnn_jax.Cell:
    """A user's own cell: two variables of different sizes in a dict, and no structure named."""

    def step(params, state, x):
        fast, slow = state["fast"], state["slow"]
        drive = x @ params["input"] + slow @ params["feedback"]
        fast = jnp.tanh(fast * jnp.broadcast_to(params["decay"], fast.shape) + drive)
        return {"fast": fast, "slow": 0.8 * slow + fast[..., :2] * fast[..., 2:]}

    def init(key, input_size):
        shapes = {"input": (input_size, 4), "feedback": (2, 4), "decay": (4,)}
        return {
            name: jax.random.normal(jax.random.fold_in(key, n), shape)
            for n, (name, shape) in enumerate(shapes.items())
        }

    def initial_state(params, batch_shape=()):
        dtype = params["input"].dtype
        return {
            "fast": jnp.zeros((*batch_shape, 4), dtype),
            "slow": jnp.zeros((*batch_shape, 2), dtype),
        }

    return rnn_jax.Cell(init, initial_state, step, emit=lambda state: state["fast"])


CELLS = {
    "elman": rnn_jax.elman(H),
    "leaky": rnn_jax.leaky(H),
    "lstm": rnn_jax.lstm(H),
    "gru": rnn_jax.gru(H),
    "user": fast_and_slow(),
}
LENGTHS = np.array([4, T, 1])
PADDING = np.arange(T)[:, None] >= LENGTHS


class Problem(NamedTuple):
    """What `unroll` is given; every number random, perturbations included."""

    params: Any
    state: Any
    xs: Any
    perturbations: Any


def random_like(rng, tree, std):
    return jax.tree.map(lambda leaf: jnp.asarray(std * rng.normal(size=leaf.shape)), tree)


def problem(cell, batch_shape=(B,), seed=0):
    rng = np.random.default_rng(seed)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = random_like(rng, params, 0.5)
    if isinstance(params, rnn_jax.LeakyParams):
        params = params._replace(leak=jnp.asarray(rng.uniform(0.2, 0.8)))
    state = jax.eval_shape(lambda p: cell.initial_state(p, batch_shape), params)
    perturbations = jax.tree.map(lambda s: np.zeros((T, *s.shape)), state)
    return Problem(
        params,
        random_like(rng, state, 0.5),
        jnp.asarray(rng.normal(size=(T, *batch_shape, D))),
        random_like(rng, perturbations, 0.1),
    )


def head(states):
    """A function of all states in which no two entries of a leaf count alike."""
    rng = np.random.default_rng(100)
    return sum(
        jnp.sum(jnp.sin(leaf * rng.uniform(0.5, 2, size=leaf.shape)))
        for leaf in jax.tree.leaves(states)
    )


def loss(cell, problem, run=unroll, lengths=None):
    params, state, xs, perturbations = problem
    return head(run(cell, params, state, xs, perturbations=perturbations, lengths=lengths))


@functools.partial(jax.jit, static_argnums=(0, 2))
def states_and_gradients(cell, problem, run=unroll, lengths=None):
    """The states, and the gradients by parameters, s_0, xs and perturbations, in one program."""
    params, state, xs, perturbations = problem
    states = run(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
    return states, jax.grad(loss, 1)(cell, problem, run, lengths)


def assert_close(given, wanted, rtol=1e-11, atol=1e-12):
    """Equal trees, up to rounding in float64."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), given, wanted)
