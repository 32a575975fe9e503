"""The tutorial's loop in PyTorch. torch is an extra: only `experiments.benchmark` imports this."""

import time
from collections.abc import Callable
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


LAYERS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def layer_gradients(cell: str, params: rnn_jax.ModelParams, batch: Batch) -> rnn_jax.ModelParams:
    """PyTorch's gradient of the mean squared error at our weights, in our layout.

    Its second bias counts in a GRU's candidate only, where it is our d; elsewhere it is 0.
    """
    ours, readout = params
    hidden_size = ours.W.shape[0]
    layer = LAYERS[cell](ours.U.shape[0], hidden_size)
    head = torch.nn.Linear(hidden_size, readout.c.shape[0])
    second = np.zeros_like(ours.b)
    if hasattr(ours, "d"):
        second[-hidden_size:] = ours.d
    weights = (ours.U.T, ours.W.T, ours.b, second, readout.V.T, readout.c)
    with torch.no_grad():
        for weight, value in zip([*layer.parameters(), *head.parameters()], weights, strict=True):
            weight.copy_(torch.from_numpy(np.array(value)))
    xs, targets = (torch.from_numpy(np.array(a)) for a in (batch.inputs, batch.targets))
    torch.nn.functional.mse_loss(head(layer(xs)[0]), targets).backward()
    U, W, b, second, V, c = (
        jnp.asarray(weight.grad) for weight in [*layer.parameters(), *head.parameters()]
    )
    found = {"U": U.T, "W": W.T, "b": b}
    if hasattr(ours, "d"):
        found["d"] = second[-hidden_size:]
    return rnn_jax.ModelParams(type(ours)(**found), rnn_jax.ReadoutParams(V.T, c))


def layer_run(
    cell: str,
    hidden_size: int,
    xs: np.ndarray,
    targets: np.ndarray,
    learning_rate: float,
    steps: int,
    threads: int,
) -> Callable[[], float]:
    """A function that takes so many training steps on one batch, and returns the seconds.

    Args:
        cell: "elman", "lstm" or "gru".
        hidden_size: H.
        xs, targets: `[T, B, D]` and `[T, B, 1]`.
        learning_rate: of Adam.
        steps: in a run.
        threads: of PyTorch's.
    """
    layer = LAYERS[cell](xs.shape[-1], hidden_size)
    readout = torch.nn.Linear(hidden_size, targets.shape[-1])
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=learning_rate)
    inputs, wanted = torch.from_numpy(xs.copy()), torch.from_numpy(targets.copy())

    def run() -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            outputs = readout(layer(inputs)[0])
            torch.nn.functional.mse_loss(outputs, wanted).backward()
            optimizer.step()
        return time.perf_counter() - start

    return run
