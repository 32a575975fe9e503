"""Networks with something wrong in each of our cells, with the remedies that they should get.

What a remedy promises is checked against an independent measurement: `jax.grad` of a plain scan in
which every state has a perturbation of its own, in NumPy from there on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import rnn_jax
from rnn_jax import bridge, initializers

B, H, T = 3, 8, 40


class Ill(NamedTuple):
    """A network and what `diagnose` should find.

    Attributes:
        cell: its cell.
        remedies: their names, in order.
        change: `params -> params`, what is wrong with it beside its initial weights.
        input_std: standard deviation of its inputs.
    """

    cell: Any
    remedies: tuple[str, ...]
    change: Any = lambda params: params
    input_std: float = 0.1


def gaussian(gain):
    return initializers.gaussian(gain)


def lstm_bias(params, bias):
    return params._replace(b=params.b.at[H : 2 * H].set(bias))


def with_flax_lstm_bias(params):
    return params | {"hf": params["hf"] | {"bias": params["hf"]["bias"] - 1.0}}


BOUNDS = ("clip the gradient", "shorter window")
OURS = {
    "elman": lambda: Ill(
        rnn_jax.elman(H, recurrent_init=gaussian(0.6)), ("scale W", "orthogonal W", "gated cell")
    ),
    "elman-exploding": lambda: Ill(
        rnn_jax.elman(H, "identity", recurrent_init=gaussian(2.0)),
        ("scale W", "orthogonal W", *BOUNDS),
    ),
    "elman-saturated": lambda: Ill(
        rnn_jax.elman(H),
        ("smaller pre-activations", "gated cell"),
        lambda p: p._replace(U=20 * p.U),
        1.0,
    ),
    "relu-off": lambda: Ill(
        rnn_jax.elman(H, "relu"),
        ("larger bias", "gated cell"),
        lambda p: p._replace(b=p.b - 1.0),
    ),
    "leaky": lambda: Ill(
        rnn_jax.leaky(H, leak=0.6, recurrent_init=gaussian(0.4)), ("smaller leak", "orthogonal W")
    ),
    "leaky-exploding": lambda: Ill(
        rnn_jax.leaky(H, "identity", leak=0.6, recurrent_init=gaussian(3.0)),
        ("scale W", "orthogonal W", *BOUNDS),
    ),
    "layer_norm": lambda: Ill(
        rnn_jax.layer_norm_elman(H),
        ("scale W", "gated cell"),
        lambda p: p._replace(U=5 * p.U),
        1.0,
    ),
    "layer_norm-exploding": lambda: Ill(
        rnn_jax.layer_norm_elman(32, recurrent_init=gaussian(1.0)),
        ("scale gain", *BOUNDS),
        lambda p: p._replace(gain=3 * p.gain),
    ),
    "lstm": lambda: Ill(
        rnn_jax.lstm(H, recurrent_init=gaussian(0.3)),
        ("forget-gate bias",),
        lambda p: lstm_bias(p, -0.5),
    ),
    "lstm-wild": lambda: Ill(
        rnn_jax.lstm(H, recurrent_init=gaussian(8.0)),
        ("forget-gate bias", *BOUNDS),
        lambda p: lstm_bias(p, -5.0),
    ),
    "lstm-exploding": lambda: Ill(
        rnn_jax.lstm(H, recurrent_init=gaussian(12.0)), ("scale W", *BOUNDS)
    ),
    "slstm": lambda: Ill(
        rnn_jax.slstm(H, recurrent_init=gaussian(0.3)),
        ("forget-gate bias",),
        lambda p: lstm_bias(p, -0.5),
    ),
    "gru": lambda: Ill(rnn_jax.gru(H, recurrent_init=gaussian(0.5)), ("update-gate bias",)),
    "gru-exploding": lambda: Ill(
        rnn_jax.gru(H, recurrent_init=gaussian(8.0)), ("scale W", *BOUNDS)
    ),
    "stack": lambda: Ill(
        rnn_jax.stack([rnn_jax.lstm(H, recurrent_init=gaussian(0.3)), rnn_jax.gru(H)]),
        ("gate bias",),
        lambda p: (lstm_bias(p[0], -0.5), p[1]),
    ),
    "stack-elman": lambda: Ill(
        rnn_jax.stack([rnn_jax.elman(H, recurrent_init=gaussian(0.5))] * 2),
        ("scale W", "orthogonal W", "gated cell"),
    ),
    "dropout": lambda: Ill(
        rnn_jax.variational_dropout(rnn_jax.lstm(H, recurrent_init=gaussian(0.3))),
        ("forget-gate bias",),
        lambda p: p._replace(cell=lstm_bias(p.cell, -0.5)),
    ),
    "learned": lambda: Ill(
        rnn_jax.learned_initial_state(rnn_jax.gru(H, recurrent_init=gaussian(0.5))),
        ("update-gate bias",),
    ),
    "bfloat16": lambda: Ill(
        rnn_jax.bfloat16_products(rnn_jax.elman(H, recurrent_init=gaussian(0.6))),
        ("scale W", "orthogonal W", "gated cell"),
    ),
}


def rngs(make):
    return bridge.from_nnx(lambda rngs: make(1, H, rngs=rngs))


FLAX = {
    "linen.SimpleCell": lambda: Ill(
        bridge.from_linen(linen.SimpleCell(H, recurrent_kernel_init=gaussian(0.5))),
        ("scale W", "orthogonal W", "gated cell"),
    ),
    "linen.LSTMCell": lambda: Ill(
        bridge.from_linen(linen.LSTMCell(H)), ("forget-gate bias",), with_flax_lstm_bias
    ),
    "linen.OptimizedLSTMCell": lambda: Ill(
        bridge.from_linen(linen.OptimizedLSTMCell(H)), ("forget-gate bias",), with_flax_lstm_bias
    ),
    "linen.GRUCell": lambda: Ill(bridge.from_linen(linen.GRUCell(H)), ("update-gate bias",)),
    "linen.MGUCell": lambda: Ill(
        bridge.from_linen(linen.MGUCell(H, forget_bias_init=initializers.zeros)),
        ("forget-gate bias",),
    ),
    "nnx.SimpleCell": lambda: Ill(
        rngs(lambda *a, rngs: nnx.SimpleCell(*a, recurrent_kernel_init=gaussian(0.5), rngs=rngs)),
        ("scale W", "orthogonal W", "gated cell"),
    ),
    "nnx.LSTMCell": lambda: Ill(rngs(nnx.LSTMCell), ("forget-gate bias",), with_flax_lstm_bias),
    "nnx.OptimizedLSTMCell": lambda: Ill(rngs(nnx.OptimizedLSTMCell), ("forget-gate bias",)),
    "nnx.GRUCell": lambda: Ill(rngs(nnx.GRUCell), ("update-gate bias",)),
}


def inputs(std):
    return jnp.asarray(std * np.random.default_rng(5).normal(size=(T, B, 1)), jnp.float32)


def read(cell):
    return lambda state: cell.emit(state).sum(-1)


def independent_logs(cell, params, state, xs):
    """ln|dL/ds_t| `[T, B]` of the sum of what the last state emits."""

    def loss(perturbations):
        states = rnn_jax.plain_unroll(cell, params, state, xs, perturbations=perturbations)
        return jnp.sum(read(cell)(jax.tree.map(lambda s: s[-1], states)))

    zeros = rnn_jax.zero_perturbations(state, len(xs))
    found = jax.tree.leaves(jax.jit(jax.grad(loss))(zeros))
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(T, B, -1) for leaf in found], -1)
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.norm(flat, axis=-1))


def independent_rate(logs):
    """Nats per step back: a line through the median example, its first tenth left out."""
    lags = np.arange(len(logs))
    middle = np.median(logs[::-1] - logs[-1], axis=1)
    return np.polyfit(lags[len(lags) // 10 :], middle[len(lags) // 10 :], 1)[0]


def independent_horizon(logs):
    """Steps until a thousandth is left, extrapolated along the line; inf where it grows."""
    fallen = (logs[::-1] - logs[-1] <= np.log(1e-3)).argmax(axis=0).astype(float)
    fallen[(logs - logs[-1]).min(axis=0) > np.log(1e-3)] = np.inf
    middle, rate = np.median(fallen), independent_rate(logs)
    return middle if np.isfinite(middle) or rate >= 0 else np.log(1e-3) / rate
