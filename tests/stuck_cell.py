"""A cell, named on a command line, whose initial weights are never done."""

import sys

import jax.numpy as jnp
from jax import lax

import rnn_jax


def stuck(hidden_size):
    cell = rnn_jax.elman(hidden_size)

    def init(key, input_size):
        sys.stderr.write("traced\n")
        params = cell.init(key, input_size)
        # It stays what it is from the second step on, and XLA does not see that.
        forever = lax.while_loop(
            lambda x: jnp.isfinite(x), lambda x: jnp.cos(x), jnp.mean(params.W)
        )
        return params._replace(W=params.W + 0 * forever)

    return cell._replace(init=init)
