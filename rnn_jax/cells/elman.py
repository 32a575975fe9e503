"""The vanilla recurrent network of Elman (1990), and its leaky kin."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, affine_cell, ones_like_unit, times
from rnn_jax.types import Array, Initializer, Key


class ElmanParams(NamedTuple):
    """Weights of an Elman cell: U `[D, H]`, W `[H, H]`, b `[H]`."""

    U: Array
    W: Array
    b: Array


class LeakyParams(NamedTuple):
    """Weights of a leaky cell: U `[D, H]`, W `[H, H]`, b `[H]`, leak scalar or `[H]`."""

    U: Array
    W: Array
    b: Array
    leak: Array


class LayerNormElmanParams(NamedTuple):
    """Weights of a layer-normalized Elman cell: U `[D, H]`, W `[H, H]`, gain `[H]`, b `[H]`."""

    U: Array
    W: Array
    gain: Array
    b: Array


class Activation(NamedTuple):
    """phi, and phi' as a function of phi(z)."""

    function: Callable[[Array], Array]
    slope: Callable[[Array], Array]


ACTIVATIONS = {
    "identity": Activation(lambda z: z, jnp.ones_like),
    "relu": Activation(jax.nn.relu, lambda s: (s > 0).astype(s.dtype)),
    "sigmoid": Activation(jax.nn.sigmoid, lambda s: s * (1 - s)),
    "softplus": Activation(jax.nn.softplus, lambda s: -jnp.expm1(-s)),
    "tanh": Activation(jnp.tanh, lambda s: 1 - s * s),
}


def activation_named(name: str) -> Activation:
    """The activation of that name; `ValueError` lists the known ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not known; take one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_size(name: str, size: int) -> None:
    """`ValueError` unless a size is a positive whole number."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} is {size!r}; give a whole number of at least 1")


def add_bias(product: Array, bias: Array) -> Array:
    """`[..., H] + [H]`, also where implicit rank promotion is an error."""
    return product + jnp.broadcast_to(bias, product.shape)


def elman(
    hidden_size: int,
    activation: str = "tanh",
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
) -> Cell:
    """Elman cell, s_t = phi(x_t U + s_{t-1} W + b).

    Args:
        hidden_size: H.
        activation: phi, one of `ACTIVATIONS`.
        kernel_init: for U `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for W `[H, H]`; orthogonal with gain 1 unless given.
        bias_init: for b `[H]`.

    Returns:
        A `Cell` with `ElmanParams` and a state `[..., H]`.

    Source: Elman, "Finding structure in time", Cognitive Science 14 (1990).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.elman(hidden_size=16)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state = cell.initial_state(params, batch_shape=(8,))
    >>> rnn_jax.unroll(cell, params, state, jnp.ones((50, 8, 3))).shape
    (50, 8, 16)
    """
    check_size("hidden_size", hidden_size)
    phi = activation_named(activation)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.orthogonal()

    def init(key: Key, input_size: int) -> ElmanParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key, bias_key = jax.random.split(key, 3)
        dtype = initializers.default_dtype()
        return ElmanParams(
            U=kernel_init(kernel_key, (input_size, hidden_size), dtype),
            W=recurrent_init(recurrent_key, (hidden_size, hidden_size), dtype),
            b=bias_init(bias_key, (hidden_size,), dtype),
        )

    def initial_state(params: ElmanParams, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.W.dtype)

    affine = Affine(
        project=lambda params, x: times(x, params.U),
        # With r the bias is added where it costs nothing; with a, in a pass over all t.
        recur=lambda params, state: add_bias(times(state, params.W), params.b),
        activate=lambda params, state, a, r: phi.function(a + r),
        slope=phi.slope,
        factors=lambda x, state, alpha, gamma: {
            "U": (x, alpha),
            "W": (state, gamma),
            "b": (ones_like_unit(x), alpha),
        },
    )
    return affine_cell(init, initial_state, affine)


def leaky(
    hidden_size: int,
    activation: str = "tanh",
    leak: float | Array = 0.1,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
) -> Cell:
    """Leaky cell, s_t = (1 - leak) s_{t-1} + leak phi(x_t U + s_{t-1} W + b).

    Args:
        leak: the share of the state renewed at each step, in (0, 1]; 1 is the Elman cell. It is
            held in the parameters, so a sweep can vary it and training changes it.

    The others are those of `elman`. Returns a `Cell` with `LeakyParams` and a state `[..., H]`.

    Source: Jaeger et al., "Optimization and applications of echo state networks with
    leaky-integrator neurons", Neural Networks 20 (2007).
    """
    phi = activation_named(activation).function
    plain = elman(hidden_size, activation, kernel_init, recurrent_init, bias_init)
    assert plain.affine is not None

    def init(key: Key, input_size: int) -> LeakyParams:
        U, W, b = plain.init(key, input_size)
        return LeakyParams(U, W, b, leak=jnp.asarray(leak, b.dtype))

    affine = Affine(
        project=plain.affine.project,
        recur=plain.affine.recur,
        activate=lambda params, state, a, r: (
            state + jnp.broadcast_to(params.leak, state.shape) * (phi(a + r) - state)
        ),
    )
    return affine_cell(init, plain.initial_state, affine)


def layer_norm_elman(
    hidden_size: int,
    activation: str = "tanh",
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
    epsilon: float = 1e-6,
) -> Cell:
    """Elman cell with layer normalization, s_t = phi(gain (z - mean(z)) / std(z) + b).

        z = x_t U + s_{t-1} W

    Mean and standard deviation are over the H units of one example. The step no longer depends on
    the scale of W and U, nor does the gradient's way back explode with it.

    Args:
        epsilon: added to the variance, so that equal units do not divide by zero.

    The others are those of `elman`. Returns a `Cell` with `LayerNormElmanParams` and a state
    `[..., H]`; gain is 1 at first.

    Source: Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450 (2016), equation 4.
    """
    phi = activation_named(activation).function
    plain = elman(hidden_size, activation, kernel_init, recurrent_init, bias_init)

    def init(key: Key, input_size: int) -> LayerNormElmanParams:
        U, W, b = plain.init(key, input_size)
        return LayerNormElmanParams(U, W, gain=jnp.ones_like(b), b=b)

    def activate(params: LayerNormElmanParams, state: Array, a: Array, r: Array) -> Array:
        del state
        z = a + r
        centred = z - jnp.mean(z, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        scale = jnp.broadcast_to(params.gain, z.shape) * lax.rsqrt(variance + epsilon)
        return phi(add_bias(centred * scale, params.b))

    affine = Affine(
        project=lambda params, x: times(x, params.U),
        recur=lambda params, state: times(state, params.W),
        activate=activate,
    )
    return affine_cell(init, plain.initial_state, affine)
