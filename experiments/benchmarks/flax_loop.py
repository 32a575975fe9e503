"""The usual Flax loop: `nn.RNN(nn.SimpleCell)`, one jitted step per iteration of a Python loop."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnn_jax
from experiments.benchmarks import numpy_wave
from rnn_jax.types import Array, Batch


class Network(NamedTuple):
    """A recurrent layer and a dense one, both modules of `flax.linen`."""

    layer: nn.RNN
    readout: nn.Dense


class Training(NamedTuple):
    """What the loop changes: weights, Adam's state, and the state carried on, `[B, H]`."""

    params: Any
    opt_state: optax.OptState
    carry: Array


def network(hidden_size: int) -> Network:
    """The tutorial's network; every weight of the cell starts at N(0, 0.001)."""
    small = nn.initializers.normal(1e-3)
    cell = nn.SimpleCell(
        hidden_size, kernel_init=small, recurrent_kernel_init=small, bias_init=small
    )
    return Network(nn.RNN(cell, return_carry=True), nn.Dense(1))


def loss_fn(net: Network, params: Any, carry: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Mean squared error and the last state; x and y `[B, T, 1]`, carry `[B, H]`."""
    carry, states = net.layer.apply(params["layer"], x, initial_carry=carry)
    outputs: Any = net.readout.apply(params["readout"], states)
    return jnp.mean(jnp.square(outputs - y)), carry


def start(net: Network, optimizer: optax.GradientTransformation, seed: int) -> Training:
    """Fresh weights and the zero state for one sequence."""
    layer_key, readout_key = jax.random.split(jax.random.key(seed))
    hidden_size = net.layer.cell.features
    params = {
        "layer": net.layer.init(layer_key, jnp.zeros((1, 1, 1))),
        "readout": net.readout.init(readout_key, jnp.zeros((1, hidden_size))),
    }
    return Training(params, optimizer.init(params), jnp.zeros((1, hidden_size)))


def make_step(net: Network, optimizer: optax.GradientTransformation) -> Any:
    """The jitted training step, `(training, x, y) -> (training, loss)`."""

    @jax.jit
    def step(training: Training, x: Array, y: Array) -> tuple[Training, Array]:
        (loss, carry), gradients = jax.value_and_grad(
            lambda params: loss_fn(net, params, training.carry, x, y), has_aux=True
        )(training.params)
        updates, opt_state = optimizer.update(gradients, training.opt_state, training.params)
        return Training(optax.apply_updates(training.params, updates), opt_state, carry), loss

    return step


def train(step: Any, training: Training, iterations: int, log_every: int, seed: int) -> float:
    """The loop; the loss is read every `log_every` iterations and at the end, and returned."""
    rng = np.random.default_rng(seed)
    loss = jnp.inf
    for iteration in range(1, iterations + 1):
        training, loss = step(training, *numpy_wave.draw(rng))
        if iteration % log_every == 0:
            float(loss)
    jax.block_until_ready(training)
    return float(loss)


def gradients(params: rnn_jax.ModelParams, carry: Array, batch: Batch) -> rnn_jax.ModelParams:
    """Flax's gradient for our weights, in our layout; batch `[T, B, 1]`, carry `[B, H]`."""
    cell, readout = params
    copied = {
        "layer": {
            "params": {"cell": {"i": {"kernel": cell.U, "bias": cell.b}, "h": {"kernel": cell.W}}}
        },
        "readout": {"params": {"kernel": readout.V, "bias": readout.c}},
    }
    x, y = (jnp.swapaxes(a, 0, 1) for a in (batch.inputs, batch.targets))
    net = network(cell.W.shape[0])
    result = jax.jit(jax.grad(lambda p: loss_fn(net, p, carry, x, y)[0]))(copied)
    inner, outer = result["layer"]["params"]["cell"], result["readout"]["params"]
    return rnn_jax.ModelParams(
        rnn_jax.ElmanParams(inner["i"]["kernel"], inner["h"]["kernel"], inner["i"]["bias"]),
        rnn_jax.ReadoutParams(outer["kernel"], outer["bias"]),
    )
