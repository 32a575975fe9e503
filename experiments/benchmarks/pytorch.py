"""The tutorial's loop in PyTorch. torch is an extra: only `experiments.benchmark` imports this."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

import rnn_jax
from experiments.benchmarks import numpy_wave
from rnn_jax.types import Array, Batch


class Network(NamedTuple):
    """A recurrent layer, batch first, and a linear readout."""

    layer: torch.nn.RNN
    readout: torch.nn.Linear


def network(hidden_size: int, seed: int) -> Network:
    """The tutorial's network; every weight of the cell starts at N(0, 0.001)."""
    torch.manual_seed(seed)
    layer = torch.nn.RNN(1, hidden_size, batch_first=True)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=1e-3)
    return Network(layer, torch.nn.Linear(hidden_size, 1))


def parameters(net: Network) -> list[torch.nn.Parameter]:
    """All weights of both layers."""
    return [*net.layer.parameters(), *net.readout.parameters()]


def loss_fn(
    net: Network, carry: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error and the last state; x and y `[B, T, 1]`, carry `[1, B, H]`."""
    states, carry = net.layer(x, carry)
    return torch.nn.functional.mse_loss(net.readout(states), y), carry


def train(
    net: Network,
    iterations: int,
    log_every: int,
    learning_rate: float,
    threads: int,
    seed: int,
) -> float:
    """The loop; the loss is read every `log_every` iterations and at the end, and returned.

    The state is carried on from one iteration to the next and detached, so that no gradient
    crosses iterations.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(parameters(net), lr=learning_rate)
    carry = torch.zeros(1, 1, net.layer.hidden_size)
    loss = torch.tensor(torch.inf)
    for iteration in range(1, iterations + 1):
        x, y = (torch.from_numpy(points) for points in numpy_wave.draw(rng))
        loss, carry = loss_fn(net, carry, x, y)
        carry = carry.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % log_every == 0:
            loss.item()
    return loss.item()


def gradients(params: rnn_jax.ModelParams, carry: Array, batch: Batch) -> rnn_jax.ModelParams:
    """PyTorch's gradient for our weights, in our layout; batch `[T, B, 1]`, carry `[B, H]`.

    PyTorch's cell has two biases of which only the sum counts: ours is given to the first.
    """
    cell, readout = params
    net = network(cell.W.shape[0], seed=0)
    inputs, recurrent, bias, second_bias = net.layer.parameters()
    copies = (
        (inputs, cell.U.T),
        (recurrent, cell.W.T),
        (bias, cell.b),
        (second_bias, np.zeros_like(cell.b)),
        (net.readout.weight, readout.V.T),
        (net.readout.bias, readout.c),
    )
    with torch.no_grad():
        for weight, ours in copies:
            weight.copy_(torch.from_numpy(np.array(ours)))
    x, y = (
        torch.from_numpy(np.array(a).swapaxes(0, 1).copy()) for a in (batch.inputs, batch.targets)
    )
    loss, _ = loss_fn(net, torch.from_numpy(np.array(carry))[None], x, y)
    loss.backward()

    def gradient(weight: torch.Tensor) -> Array:
        return jnp.asarray(weight.grad)

    return rnn_jax.ModelParams(
        rnn_jax.ElmanParams(gradient(inputs).T, gradient(recurrent).T, gradient(bias)),
        rnn_jax.ReadoutParams(gradient(net.readout.weight).T, gradient(net.readout.bias)),
    )
