"""Cells whose state moves like a stable ODE: the antisymmetric RNN, plain and gated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, affine_cell, fixed, times
from rnn_jax.cells.elman import add_bias, check_size
from rnn_jax.types import Array, Initializer, Key


class AntisymmetricParams(NamedTuple):
    """Weights of an antisymmetric cell: U `[D, H]` (`[D, 2H]` gated, z first), W `[H, H]`, b.

    The step size epsilon and the diffusion gamma are scalars without a gradient: training leaves
    them as they are (weight decay would not; mask them there).
    """

    U: Array
    W: Array
    b: Array
    epsilon: Array
    gamma: Array


class PreparedParams(NamedTuple):
    """The same, with W in the form in which it acts: A = W - W^T - gamma I `[H, H]`."""

    U: Array
    A: Array
    b: Array
    epsilon: Array


def prepare(params: AntisymmetricParams | PreparedParams) -> PreparedParams:
    """A from W; of what is prepared already, itself."""
    if isinstance(params, PreparedParams):
        return params
    A = params.W - params.W.T - fixed(params.gamma) * jnp.eye(len(params.W), dtype=params.W.dtype)
    return PreparedParams(params.U, A, params.b, params.epsilon)


def antisymmetric(
    hidden_size: int,
    epsilon: float | Array = 0.01,
    gamma: float | Array = 0.01,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
) -> Cell:
    """Antisymmetric RNN, h_t = h_{t-1} + epsilon tanh(x_t U + h_{t-1} (W - W^T - gamma I) + b).

    A step of Euler's of an ODE whose Jacobian has eigenvalues of real part between -gamma and 0:
    over time t a perturbation neither grows nor fades, whatever W is.

    Args:
        hidden_size: H.
        epsilon: step size of the ODE, above 0; a sequence of T steps lasts for epsilon T.
        gamma: diffusion, at least 0; it makes up for what Euler's step adds.
        kernel_init: for U `[D, H]`; normal, standard deviation 1/sqrt(D), unless given.
        recurrent_init: for W `[H, H]`; normal, standard deviation 1/sqrt(H), unless given.

    Returns:
        A `Cell` with `AntisymmetricParams` and a state `[..., H]`.

    Source: Chang, Chen, Haber & Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural
    networks", ICLR (2019), section 3.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.antisymmetric(16, epsilon=0.1)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> rnn_jax.unroll(cell, params, cell.initial_state(params), jnp.ones((50, 3))).shape
    (50, 16)
    """

    def activate(params: Any, state: Array, a: Array, r: Array) -> Array:
        return state + fixed(params.epsilon) * jnp.tanh(a + r)

    return _cell(hidden_size, 1, epsilon, gamma, kernel_init, recurrent_init, activate)


def gated_antisymmetric(
    hidden_size: int,
    epsilon: float | Array = 0.01,
    gamma: float | Array = 0.01,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
) -> Cell:
    """Antisymmetric RNN with an input gate, h_t = h_{t-1} + epsilon z_t tanh(x_t U_h + r_t + b_h).

        r_t = h_{t-1} (W - W^T - gamma I),  z_t = sigmoid(x_t U_z + r_t + b_z)

    The gate shares the recurrent product, without which the ODE would not be stable.

    Arguments are those of `antisymmetric`. Returns a `Cell` with `AntisymmetricParams`, U `[D, 2H]`
    and b `[2H]` with the gate first, and a state `[..., H]`.

    Source: Chang et al. (2019), section 3, with gating.
    """

    def activate(params: Any, state: Array, a: Array, r: Array) -> Array:
        of_gate, of_state = jnp.split(a, 2, axis=-1)
        moved = jax.nn.sigmoid(of_gate + r) * jnp.tanh(of_state + r)
        return state + fixed(params.epsilon) * moved

    return _cell(hidden_size, 2, epsilon, gamma, kernel_init, recurrent_init, activate)


def _cell(
    hidden_size: int,
    num_inputs: int,
    epsilon: float | Array,
    gamma: float | Array,
    kernel_init: Initializer | None,
    recurrent_init: Initializer | None,
    activate: Any,
) -> Cell:
    """Either cell; its input is projected to so many numbers a unit."""
    check_size("hidden_size", hidden_size)
    kernel_init = kernel_init or initializers.gaussian(1.0)
    recurrent_init = recurrent_init or initializers.gaussian(1.0)

    def init(key: Key, input_size: int) -> AntisymmetricParams:
        check_size("input_size", input_size)
        kernel_key, recurrent_key = jax.random.split(key)
        dtype = initializers.default_dtype()
        return AntisymmetricParams(
            U=kernel_init(kernel_key, (input_size, num_inputs * hidden_size), dtype),
            W=recurrent_init(recurrent_key, (hidden_size, hidden_size), dtype),
            b=jnp.zeros(num_inputs * hidden_size, dtype),
            epsilon=jnp.asarray(epsilon, dtype),
            gamma=jnp.asarray(gamma, dtype),
        )

    def initial_state(params: Any, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*batch_shape, hidden_size), params.b.dtype)

    affine = Affine(
        project=lambda params, x: add_bias(times(x, params.U), params.b),
        recur=lambda params, state: times(state, prepare(params).A),
        activate=activate,
    )
    return affine_cell(init, initial_state, affine)._replace(prepare=prepare)
