"""A cell and a task as a researcher would bring them, for the tests of the command line."""

import jax
import jax.numpy as jnp

import rnn_jax
from rnn_jax.tasks.adding import adding


def antisymmetric(hidden_size, eps=0.1, gamma=0.01, depth=1):
    """s_t = s_{t-1} + eps tanh((A - A^T - gamma I) s_{t-1} + U x_t), of Chang et al. (2019)."""

    def init(key, input_size):
        keys = jax.random.split(key)
        weights = jax.random.normal(keys[0], (hidden_size, hidden_size)) / hidden_size**0.5
        return {
            "A": weights,
            "U": jax.random.normal(keys[1], (input_size, hidden_size)),
            "eps": jnp.asarray(eps, jnp.float32),
            "gamma": jnp.asarray(gamma, jnp.float32),
        }

    def step(params, state, x):
        A = params["A"] - params["A"].T - params["gamma"] * jnp.eye(hidden_size)
        for _ in range(depth):
            state = state + params["eps"] * jnp.tanh(state @ A + x @ params["U"])
        return state

    return rnn_jax.Cell(
        init, lambda params, batch_shape=(): jnp.zeros((*batch_shape, hidden_size)), step
    )


def sum_of_two(length, batch_size):
    return adding(length, batch_size)._replace(name="sum of two")


def no_cell(hidden_size):
    return hidden_size


def without_size(units):
    return rnn_jax.elman(units)
