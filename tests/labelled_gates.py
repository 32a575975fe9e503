"""The rest of the labelled networks: gates of a known opening, leaks, inputs as Jacobians."""

import jax.numpy as jnp
import numpy as np
from labelled_networks import UNGATED, B, H, Labelled, fall, quiet, weights

import rnn_jax

LEAKY, LSTM, GRU = rnn_jax.leaky(H), rnn_jax.lstm(3), rnn_jax.gru(3)
OWN = rnn_jax.Cell(
    init=lambda key, input_size: jnp.ones(()),
    initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, 1)),
    step=lambda scale, state, x: scale * x * state,
)
"""s_t = x_t s_{t-1}: the inputs are the Jacobians."""


def logit(p):
    return float(np.log(p) - np.log1p(-p))


def lstm():
    """No recurrent weights: ln f at each step for c; a loss of h first loses the factor o = 1/2."""
    found = []
    for f, leaf, where, verdict in (
        (0.5, "c", "last", "vanishing"),
        (0.95, "c", "every", "vanishing"),
        (0.96, "h", "last", "vanishing"),
        (0.97, "c", "last", "healthy"),
        (0.97, "h", "every", "healthy"),
        (0.999, "h", "last", "healthy"),
        (0.95, "c", 100, "healthy"),
        (0.9, "h", 100, "vanishing"),
    ):
        bias = jnp.repeat(jnp.array([0.0, logit(f), 0.0, 0.0]), 3)
        params = rnn_jax.LSTMParams(jnp.zeros((1, 12)), jnp.zeros((3, 12)), bias)
        state = LSTM.initial_state(params, (B,))
        slope, lags = np.log(f), (where if isinstance(where, int) else 200) - 1
        first = np.log(0.5) if leaf == "h" else 0.0
        known = {"where": where, "slope": slope, "horizon": fall(slope, lags, first)}
        read = (lambda s: s.c.sum(-1)) if leaf == "c" else (lambda s: s.h.sum(-1))
        found.append(Labelled(verdict, LSTM, params, state, quiet(200), read, **known))
    return found


def gru():
    """No recurrent weights: ln z at each step."""
    found = []
    for z, where, verdict in (
        (0.2, 20, "vanishing"),
        (0.9, "every", "vanishing"),
        (0.97, "every", "healthy"),
        (0.999, "every", "healthy"),
        (0.96, 150, "healthy"),
    ):
        bias = jnp.repeat(jnp.array([0.0, logit(z), 0.3]), 3)
        params = rnn_jax.GRUParams(jnp.zeros((1, 9)), jnp.zeros((3, 9)), bias, jnp.ones(3))
        slope, lags = np.log(z), (where if isinstance(where, int) else 200) - 1
        known = {"where": where, "slope": slope, "horizon": fall(slope, lags)}
        state = jnp.zeros((B, 3))
        found.append(
            Labelled(verdict, GRU, params, state, quiet(200), lambda s: s.sum(-1), **known)
        )
    return found


def leaky():
    """W = w * identity at the fixed point 0 of tanh: ln(1 - leak + leak w)."""
    found = []
    for leak, w, verdict in (
        (0.5, 0.0, "vanishing"),
        (0.1, 0.0, "vanishing"),
        (0.01, 0.0, "healthy"),
        (0.001, 0.0, "healthy"),
        (0.1, 0.5, "vanishing"),
        (0.1, 0.9, "healthy"),
        (0.1, 1.0, "healthy"),
        (0.1, 1.5, "exploding"),
    ):
        params = rnn_jax.LeakyParams(*weights(w * np.eye(H)), jnp.asarray(leak))
        slope = np.log1p(leak * (w - 1))
        known = {"slope": slope, "horizon": fall(slope, 199)}
        start, read = jnp.zeros((B, H)), lambda s: s.sum(-1)
        found.append(Labelled(verdict, LEAKY, params, start, quiet(200), read, **known))
    return found


def own(verdict, factors, **known):
    """|x_t| = factors, `[T]` for all examples or `[T, B]`, in any sign."""
    factors = np.asarray(factors, np.float64)
    if factors.ndim == 1:
        factors = np.repeat(factors[:, None], B, axis=1)
    signs = np.random.default_rng(0).choice([-1, 1], size=factors.shape)
    xs = jnp.asarray((signs * factors)[..., None], jnp.float32)
    start = jnp.zeros((B, 1))
    return Labelled(verdict, OWN, jnp.ones(()), start, xs, lambda s: s.sum(-1), **known)


def own_gates():
    """s_t = x_t s_{t-1}: the sum of ln|x_j| over the last l steps."""
    rng = np.random.default_rng(1)
    up, down = np.full(100, 1.2), np.full(100, 0.8)
    halves = np.repeat([[2.0, 2.0, 0.5, 0.5]], 200, axis=0)
    # Of lag 199 the sum has 199 terms: the first step's factor leads to s_0.
    noise = rng.normal(size=200)
    noise[1:] -= noise[1:].mean()
    return [
        own("mixed", halves),
        own("mixed", np.repeat([[2.0, 1.0, 1.0, 1.0]], 200, axis=0)),
        own("mixed", np.repeat([[0.5, 0.5, 0.5, 1.0]], 200, axis=0)),
        # Back from the end it grows to e^18 and falls by e^22; then the same the other way round.
        own("mixed", np.concatenate([down, up])),
        own("mixed", np.concatenate([np.full(100, 1 / 1.2), up])),
        own("exploding", np.concatenate([np.full(100, 0.99), up]), horizon=np.inf),
        own("vanishing", np.concatenate([np.full(100, 1.01), down]), horizon=31),
        own("healthy", np.exp(0.1 * noise)),
        own("vanishing", np.exp(0.1 * noise - 0.05)),
        own("exploding", np.exp(0.1 * noise + 0.05)),
        own("vanishing", halves[:, 2] * np.ones(200), slope=-np.log(2), horizon=10),
    ]


KINDS = {kind.__name__.replace("_", " "): kind for kind in (*UNGATED, lstm, gru, leaky, own_gates)}
"""Name -> function that makes the networks of a kind."""
