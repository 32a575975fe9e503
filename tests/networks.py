"""Cells and random problems that the tests of gradient flow share, and autodiff's answers to them.

The answers come from a plain scan that JAX differentiates by itself: no rule of the library's.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from marks import slow_but_for

import rnn_jax

T, B, D, H = 6, 3, 2, 4


def fast_weights() -> rnn_jax.Cell:
    """A user's own cell: a vector and a matrix of units in a dict, and no structure named."""

    def step(params, state, x):
        h, A = state["h"], state["A"]
        drive = x @ params["input"] + jnp.einsum("...ij,...j->...i", A, h)
        new = jnp.tanh(h * jnp.broadcast_to(params["decay"], h.shape) + drive)
        return {"h": new, "A": 0.8 * A + 0.5 * jnp.einsum("...i,...j->...ij", new, h)}

    def init(key, input_size):
        return {"input": jax.random.normal(key, (input_size, 3)), "decay": jnp.full(3, 0.9)}

    def initial_state(params, batch_shape=()):
        dtype = params["input"].dtype
        return {
            "h": jnp.zeros((*batch_shape, 3), dtype),
            "A": jnp.zeros((*batch_shape, 3, 3), dtype),
        }

    return rnn_jax.Cell(init, initial_state, step, emit=lambda state: state["h"])


CELLS = {
    "elman": rnn_jax.elman(H),
    "relu": rnn_jax.elman(H, "relu"),
    "leaky": rnn_jax.leaky(H),
    "lstm": rnn_jax.lstm(H),
    "gru": rnn_jax.gru(H),
    "user": fast_weights(),
}
EVERY_CELL = slow_but_for({"elman", "lstm", "user"}, CELLS)
"""Measurements treat the others as they treat these three."""


class Problem(NamedTuple):
    """What every measurement is given, after the cell."""

    params: Any
    state: Any
    xs: Any


def problem(cell, batch_shape=(B,), num_steps=T, seed=0, dtype=float) -> Problem:
    """Random weights, s_0 and xs, float64 where that is switched on."""
    rng = np.random.default_rng(seed)

    def normal(std, shape):
        return jnp.asarray(np.asarray(std * rng.normal(size=shape)), dtype)

    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda leaf: normal(0.6, leaf.shape), shapes)
    if isinstance(params, rnn_jax.LeakyParams):
        params = params._replace(leak=jnp.asarray(0.3, dtype))
    state = jax.eval_shape(lambda p: cell.initial_state(p, batch_shape), params)
    state = jax.tree.map(lambda leaf: normal(0.5, leaf.shape), state)
    return Problem(params, state, normal(1.0, (num_steps, *batch_shape, D)))


def step_losses(states):
    """`[T, ...]`: no two units count alike, nor two time steps; L_t depends on s_t alone."""
    rng = np.random.default_rng(100)

    def one(leaf, units):
        batch_axes = leaf.ndim - 1 - units
        weights = rng.uniform(0.5, 2, size=leaf.shape[1 + batch_axes :])
        own = jnp.sin(leaf * jnp.broadcast_to(weights, leaf.shape).astype(leaf.dtype))
        own = jnp.sum(own, axis=tuple(range(leaf.ndim - units, leaf.ndim)))
        times = (1 + 0.5 * jnp.cos(3.0 * jnp.arange(leaf.shape[0]))).astype(leaf.dtype)
        return own * jnp.broadcast_to(times.reshape(-1, *[1] * batch_axes), own.shape)

    if isinstance(states, dict):
        return one(states["h"], 1) + one(states["A"], 2)
    return sum(one(leaf, 1) for leaf in jax.tree.leaves(states))


def flat_units(tree, batch_axes):
    """All units of all leaves side by side, `[*batch, N]`, as NumPy."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:batch_axes], -1) for leaf in leaves], axis=-1)


def log_norm(tree, batch_axes):
    """ln of the L2 norm over all units, -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.norm(flat_units(tree, batch_axes), axis=-1))


@functools.partial(jax.jit, static_argnums=(0, 4))
def adjoint_vectors(cell, params, state, xs, losses=step_losses, lengths=None):
    """lambda_t of each example's own loss, leaves `[T, B, ...]`."""

    def total(perturbations):
        states = rnn_jax.plain_unroll(
            cell, params, state, xs, perturbations=perturbations, lengths=lengths
        )
        return jnp.sum(losses(states))

    return jax.grad(total)(rnn_jax.zero_perturbations(state, xs.shape[0]))


@functools.partial(jax.jit, static_argnums=(0, 4))
def credit_vectors(cell, params, state, xs, losses=step_losses, lengths=None):
    """dL_t/ds_k of each example as vectors, leaves `[T, T, B, ...]`, row t and column k."""

    def of_step(t):
        return adjoint_vectors(
            cell, params, state, xs, lambda states: jnp.take(losses(states), t, axis=0), lengths
        )

    return jax.lax.map(of_step, jnp.arange(xs.shape[0]))


@functools.partial(jax.jit, static_argnums=(0, 4))
def summands(cell, params, state, xs, losses=step_losses):
    """Step k's summand of dL/dtheta, leaves `[T, ...]`: the gradient by parameters of its own."""

    def loss(per_step):
        def body(state, inputs):
            state = cell.step(inputs[0], state, inputs[1])
            return state, state

        states = lax.scan(body, state, (per_step, xs))[1]
        return jnp.mean(jnp.sum(losses(states), axis=0))

    copies = jax.tree.map(lambda p: jnp.broadcast_to(p[None], (xs.shape[0], *p.shape)), params)
    return jax.grad(loss)(copies)


@functools.partial(jax.jit, static_argnums=0)
def step_jacobians(cell, params, state, xs):
    """J_t = ds_t/ds_{t-1} of one example, `[T, N, N]`, units in the order of the leaves."""
    flat, unravel = jax.flatten_util.ravel_pytree(state)

    def step(flat, x):
        return jax.flatten_util.ravel_pytree(cell.step(params, unravel(flat), x))[0]

    def body(flat, x):
        return step(flat, x), jax.jacfwd(step)(flat, x)

    return lax.scan(body, flat, xs)[1]
