"""The linear recurrent unit: complex modes of decay and rotation, and nothing else."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import initializers
from rnn_jax.cells.cell import Affine, Cell, Derivative, affine_cell, times
from rnn_jax.cells.elman import check_size
from rnn_jax.types import Array, Key


class LRUParams(NamedTuple):
    """Parameters of a linear recurrent unit, all real, as Optax wants them.

    Attributes:
        nu_log: `[H]`, ln(-ln|lambda|).
        theta_log: `[H]`, ln of lambda's phase.
        gamma_log: `[H]`, ln of the factor of each mode's input.
        B_re, B_im: `[D, H]`, B^T.
    """

    nu_log: Array
    theta_log: Array
    gamma_log: Array
    B_re: Array
    B_im: Array


class LRUState(NamedTuple):
    """Real and imaginary part of the modes, each `[..., H]`."""

    re: Array
    im: Array


def eigenvalues(params: LRUParams) -> LRUState:
    """lambda = exp(-exp(nu_log) + i exp(theta_log)), in parts `[H]`; |lambda| < 1 always."""
    size = jnp.exp(-jnp.exp(params.nu_log))
    phase = jnp.exp(params.theta_log)
    return LRUState(size * jnp.cos(phase), size * jnp.sin(phase))


def lru(
    hidden_size: int,
    r_min: float | Array = 0.0,
    r_max: float | Array = 1.0,
    max_phase: float | Array = 6.28,
) -> Cell:
    """Linear recurrent unit, h_t = lambda h_{t-1} + exp(gamma_log) (B x_t), mode by mode.

        lambda = exp(-exp(nu_log) + i exp(theta_log))

    What comes out is real, y_t = Re(C h_t) + d: a readout of h's two parts side by side, which is
    what `emit` gives. (Its D x_t is left out.) The state is linear in all inputs: put a nonlinear
    readout or layer above it.

    Args:
        hidden_size: H, complex modes; `emit` gives 2H numbers.
        r_min, r_max: lambda is uniform on the ring between these radii at first. Long memories want
            r_min = 0.9, r_max = 0.999.
        max_phase: bound on its phase; small for slow modes.

    Returns:
        A `Cell` with `LRUParams` and the state `LRUState(re, im)`. exp(gamma_log) is
        sqrt(1 - |lambda|^2) at first, with which white inputs give every mode the same variance.

    Source: Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML
    (2023), sections 3.2 to 3.4; lemma 3.2 for the start.
    """
    check_size("hidden_size", hidden_size)

    def init(key: Key, input_size: int) -> LRUParams:
        check_size("input_size", input_size)
        keys = jax.random.split(key, 4)
        dtype = initializers.default_dtype()
        draws = jax.random.uniform(keys[0], (hidden_size,), dtype)
        squared = r_min**2 + draws * (r_max**2 - r_min**2)
        # Neither 0 nor 1, whose logarithms' logarithms are not finite.
        rate = -0.5 * jnp.log(jnp.clip(squared, 1e-12, 1 - 1e-6))
        phases = max_phase * jax.random.uniform(keys[1], (hidden_size,), dtype, 1e-6)
        std = (2 * input_size) ** -0.5
        return LRUParams(
            nu_log=jnp.log(rate).astype(dtype),
            theta_log=jnp.log(phases).astype(dtype),
            gamma_log=(0.5 * jnp.log(-jnp.expm1(-2 * rate))).astype(dtype),
            B_re=std * jax.random.normal(keys[2], (input_size, hidden_size), dtype),
            B_im=std * jax.random.normal(keys[3], (input_size, hidden_size), dtype),
        )

    def initial_state(params: LRUParams, batch_shape: tuple[int, ...] = ()) -> LRUState:
        zeros = jnp.zeros((*batch_shape, hidden_size), params.nu_log.dtype)
        return LRUState(zeros, zeros)

    def project(params: LRUParams, x: Array) -> LRUState:
        factors = jnp.exp(params.gamma_log)[None]
        return LRUState(times(x, params.B_re * factors), times(x, params.B_im * factors))

    def recur(params: LRUParams, state: LRUState) -> LRUState:
        re, im = (jnp.broadcast_to(part, state.re.shape) for part in eigenvalues(params))
        return LRUState(re * state.re - im * state.im, re * state.im + im * state.re)

    def add(state: LRUState, a: LRUState, r: LRUState) -> tuple[LRUState, None]:
        return LRUState(a.re + r.re, a.im + r.im), None

    def pull(
        state: LRUState, new: LRUState, kept: None, adjoint: LRUState
    ) -> tuple[LRUState, LRUState, LRUState]:
        return jax.tree.map(jnp.zeros_like, adjoint), adjoint, adjoint

    affine = Affine(
        project=project,
        recur=recur,
        activate=lambda params, *step: add(*step)[0],
        derivative=Derivative(add, pull),
    )
    return affine_cell(
        init, initial_state, affine, emit=lambda s: jnp.concatenate([s.re, s.im], axis=-1)
    )
