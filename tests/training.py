"""Objectives, states and batches that the tests of training share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference

import rnn_jax
from rnn_jax import losses, objectives, training
from rnn_jax.training import optim
from rnn_jax.types import Batch

TANH = reference.PHI["tanh"]
T, D, H = 5, 2, 4

step = jax.jit(training.train_step, static_argnums=(0, 1, 4))


def library_params(weights):
    """The reference's weights as `ModelParams` of an Elman cell."""
    weights = jax.tree.map(jnp.asarray, weights)
    return rnn_jax.ModelParams(
        rnn_jax.ElmanParams(weights.U, weights.W, weights.b),
        rnn_jax.ReadoutParams(weights.V, weights.c),
    )


def reference_weights(params):
    return reference.Weights(*(np.asarray(leaf) for leaf in jax.tree.leaves(params)))


def train_state(params, optimizer, carry):
    """A state of float64 numbers; that of `init_state` is float32."""
    opt_state = jax.jit(optimizer.init)(params)
    return jax.tree.map(jnp.asarray, training.TrainState(np.int32(0), params, opt_state, carry))


def elman_objective(hidden_size=H, outputs=D):
    model = rnn_jax.sequence_model(rnn_jax.elman(hidden_size), outputs)
    return objectives.next_step_objective(model, losses.squared_error)


def random_batch(rng, batch_size):
    x, y = rng.normal(size=(2, T, batch_size, D))
    return Batch(jnp.asarray(x), jnp.asarray(y))


def trace_a_step(objective, batch):
    """A training step as JAX sees it, without running it."""
    optimizer = optim.recorded(optax.sgd(1.0))

    def one_step(key):
        state = training.init_state(objective.model, optimizer, key, D, 3)
        return training.train_step(objective, optimizer, state, batch)

    return jax.eval_shape(one_step, jax.random.key(0))


def ran(objective, weights, carry, batch):
    """An Elman network's run, and its mean loss's gradients by parameters, states and inputs."""
    zeros = jnp.zeros((objective.num_steps(batch), *carry.shape))

    @jax.jit
    def both(params, perturbations, inputs):
        def loss(params, perturbations, inputs):
            now = batch._replace(inputs=inputs)
            run = objective.run(params, jnp.asarray(carry), now, perturbations)
            return objectives.mean_loss(run), run

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, perturbations, inputs)

    gradients, run = both(library_params(weights), zeros, batch.inputs)
    return jax.device_get((run, gradients))


def doubled(batch):
    """A batch of float32 data in float64."""
    return Batch(*(None if a is None else jnp.asarray(np.asarray(a)) for a in batch))
