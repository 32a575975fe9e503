"""Networks whose gradient is known in closed form, with the verdict that the definition gives.

The verdicts are written by hand from ln|dL/ds_{last - l}| as a function of the lag l, which each
kind says in its first line. Only the lags from the last loss back to the first step count.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import rnn_jax
from rnn_jax.gradflow import LastStep

B, H = 4, 4
IDENTITY, RELU, TANH = (rnn_jax.elman(H, phi) for phi in ("identity", "relu", "tanh"))


class Labelled(NamedTuple):
    """One network and what is known of it.

    Attributes:
        verdict: by the definition in `Diagnosis`.
        cell, params, state, xs, lengths: the network.
        read: `state -> [...]`, the loss of one step.
        where: "last" (as a `LastStep`), "every" or the one time step (from 1) that has a loss.
        slope: nats per step back where they are the same at each, else NaN.
        horizon: steps to a fall to 1/1000, extrapolated where the sequence is too short; NaN
            where it is not said.
    """

    verdict: str
    cell: rnn_jax.Cell
    params: Any
    state: Any
    xs: Any
    read: Any
    where: Any = "last"
    slope: float = np.nan
    horizon: float = np.nan
    lengths: Any = None


def step_losses(network, scale=1.0):
    """The losses of a labelled network, times `scale`."""
    read, where = network.read, network.where
    if where == "last":
        return LastStep(lambda state: scale * read(state))
    if where == "every":
        return lambda states: scale * read(states)
    seen = np.arange(len(network.xs))[:, None] == where - 1
    seen = jnp.asarray(np.broadcast_to(seen, (len(seen), B)))
    return lambda states: jnp.where(seen, scale * read(states), 0)


def fall(slope, lags, first=0.0):
    """The lag at which first + slope * lag is down by ln 1000, as `Diagnosis.horizon` has it."""
    needed = (first + np.log(1000)) / -slope if slope < 0 else np.inf
    if np.ceil(needed) <= lags:
        return np.ceil(needed)
    return np.log(1000) / -slope if slope < 0 else np.inf


def weights(W, bias=0.0):
    W = jnp.asarray(W, jnp.float32)
    return rnn_jax.ElmanParams(jnp.ones((1, H)), W, jnp.full(H, bias))


def quiet(steps):
    """No input."""
    return jnp.zeros((steps, B, 1))


def elman(verdict, cell, W, steps, v, *, bias=0.0, state=0.0, **known):
    """An Elman cell without input whose loss is v . s."""
    v = jnp.asarray(v, jnp.float32)
    start = jnp.full((B, H), state)
    return Labelled(verdict, cell, weights(W, bias), start, quiet(steps), lambda s: s @ v, **known)


def random_orthogonal(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(H, H)))[0]


def orthogonal(cell, table):
    """g * orthogonal where phi' = 1: lag * ln g."""
    found = []
    for seed, (steps, g, where, verdict) in enumerate(table):
        v = np.random.default_rng(100 + seed).normal(size=H)
        lags = (where if isinstance(where, int) else steps) - 1
        slope = np.log(g)
        W = g * random_orthogonal(seed)
        known = {"where": where, "slope": slope, "horizon": fall(slope, lags)}
        found.append(elman(verdict, cell, W, steps, v, **known))
    return found


def identity_orthogonal():
    """lag * ln g, with losses at the last step, at every step and at one in the middle."""
    table = [
        (20, 0.5, "every", "vanishing"),
        (20, 0.9, "every", "healthy"),
        (20, 1.0, "every", "healthy"),
        (20, 1.3, "every", "healthy"),
        (20, 1.5, "every", "exploding"),
        (20, 2.0, 12, "exploding"),
        (20, 1.5, 12, "healthy"),
        (20, 1e-8, 6, "vanishing"),
        (200, 0.9, "last", "vanishing"),
        (200, 0.97, "last", "healthy"),
        (200, 0.96, "last", "vanishing"),
        (200, 1.03, "last", "healthy"),
        (200, 1.04, "last", "exploding"),
        (2000, 0.5, "last", "vanishing"),
        (2000, 0.99, "last", "vanishing"),
        (2000, 0.996, "last", "vanishing"),
        (2000, 0.997, "last", "healthy"),
        (2000, 1.003, "last", "healthy"),
        (2000, 1.004, "last", "exploding"),
        (2000, 1.5, "last", "exploding"),
        (2000, 0.99, 1000, "vanishing"),
        (2000, 0.99, 600, "healthy"),
        (2000, 1.01, 1000, "exploding"),
        (2000, 1.01, 600, "healthy"),
    ]
    return orthogonal(IDENTITY, table)


def identity_diagonal():
    """W = diag(w): 1/2 ln sum_i (v_i w_i^l)^2."""
    W, steps = np.diag([0.5, 0.95, 1.0, 1.05]), 200
    slopes = np.log(np.diag(W))
    return [
        elman("vanishing", IDENTITY, W, steps, [1, 0, 0, 0], slope=slopes[0], horizon=10),
        elman("vanishing", IDENTITY, W, steps, [0, 1, 0, 0], slope=slopes[1], horizon=135),
        elman("healthy", IDENTITY, W, steps, [0, 0, 1, 0], slope=0.0, horizon=np.inf),
        elman("exploding", IDENTITY, W, steps, [0, 0, 0, 1], slope=slopes[3], horizon=np.inf),
        elman("healthy", IDENTITY, W, steps, [1, 1, 1, 0]),
        elman("vanishing", IDENTITY, W, steps, [1, 0, 1e-4, 0], horizon=10),
        # 1.05^199 is 16,435, of which 1/100 is within a factor of 1000.
        elman("exploding", IDENTITY, W, steps, [1e-1, 0, 0, 1], horizon=np.inf),
        elman("healthy", IDENTITY, W, steps, [0, 0, 1, 1e-2], horizon=np.inf),
    ]


def relu_diagonal():
    """W = diag(w), w >= 0, with every unit on: the same as without the ReLU."""
    found = []
    for w, verdict in (
        (0.3, "vanishing"),
        (0.9, "vanishing"),
        (0.97, "healthy"),
        (1.0, "healthy"),
        (1.03, "healthy"),
        (1.04, "exploding"),
    ):
        slope = np.log(w)
        known = {"slope": slope, "horizon": fall(slope, 199), "where": "every"}
        found.append(elman(verdict, RELU, w * np.eye(H), 200, np.ones(H), bias=1.0, **known))
    return found


def tanh_at_zero():
    """s = 0 stays 0, where phi' = 1; W = g * orthogonal or symmetric, read along an eigenvector."""
    table = [
        (200, 0.8, "last", "vanishing"),
        (200, 0.98, "last", "healthy"),
        (200, 1.02, "last", "healthy"),
        (200, 1.1, "last", "exploding"),
    ]
    found = orthogonal(TANH, table)
    for radius, verdict in (
        (0.95, "vanishing"),
        (0.98, "healthy"),
        (-1.02, "healthy"),
        (1.05, "exploding"),
    ):
        Q = random_orthogonal(50)
        W = Q @ np.diag([radius, radius / 2, 0.1, -radius / 4]) @ Q.T
        slope = np.log(abs(radius))
        known = {"slope": slope, "horizon": fall(slope, 199)}
        found.append(elman(verdict, TANH, W, 200, Q[:, 0], **known))
    return found


def tanh_fixed_point():
    """s = tanh(w s + b) stays: ln w (1 - s^2)."""
    found = []
    for w, b, verdict in (
        (0.5, 1.0, "vanishing"),
        (1.2, 0.5, "vanishing"),
        (2.0, -0.2, "vanishing"),
        (1.0, 0.001, "healthy"),
    ):
        s = np.sign(b)
        for _ in range(3000):
            s = np.tanh(w * s + b)
        slope = np.log(w * (1 - s * s))
        known = {"slope": slope, "horizon": fall(slope, 199)}
        found.append(elman(verdict, TANH, w * np.eye(H), 200, np.ones(H), bias=b, state=s, **known))
    return found


def dead():
    """Exactly zero at some lag: a unit that is off, a readout of nothing, a nilpotent W."""
    known = {"horizon": 0.0}
    one = np.diag([0.0, 0.0, 1.0, 1.0])
    shift = np.eye(H, k=1)
    return [
        elman("dead", RELU, np.eye(H), 200, np.ones(H), bias=-1.0, where="every", **known),
        elman("dead", RELU, 2 * np.eye(H), 200, np.ones(H), bias=-1.0, where=150, **known),
        elman("dead", IDENTITY, one, 200, [1, 2, 0, 0], **known),
        elman("healthy", IDENTITY, one, 200, [1, 2, 1, 0], horizon=np.inf),
        elman("dead", IDENTITY, np.eye(H), 200, np.zeros(H), **known),
        elman("dead", IDENTITY, np.eye(H), 200, np.zeros(H), where="every", **known),
        elman("dead", IDENTITY, 3 * shift, 200, np.ones(H), **known),
        elman("dead", TANH, shift.T, 200, np.ones(H), **known),
    ]


def padded():
    """g * orthogonal with lengths: each example's own lags count."""
    found = []
    for lengths, g, verdict in (
        ([200, 190, 150, 60], 0.8, "vanishing"),
        ([200, 190, 150, 60], 0.99, "healthy"),
        ([200, 190, 150, 60], 1.2, "exploding"),
        ([200, 200, 60, 60], 0.9, "mixed"),
        ([60, 60, 60, 60], 1.05, "healthy"),
    ):
        v, slope = np.ones(H), np.log(g)
        known = {"slope": slope, "lengths": jnp.asarray(lengths)}
        found.append(elman(verdict, IDENTITY, g * random_orthogonal(7), 200, v, **known))
    return found


UNGATED = (
    identity_orthogonal,
    identity_diagonal,
    relu_diagonal,
    tanh_at_zero,
    tanh_fixed_point,
    dead,
    padded,
)
