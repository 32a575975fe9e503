"""Optax chains: record the raw norm, clip, then the optimizer."""

import optax

from rnn_jax.types import Array, State

RAW_NORM = "raw_gradient_norm"


def recorded(
    optimizer: optax.GradientTransformation, clip_norm: float | Array | None = None
) -> optax.GradientTransformation:
    """Records the gradient's global norm, clips it to `clip_norm` if given, then optimizes.

    The norm is taken before clipping, so that it tells what the network produced; `raw_norm` reads
    it from the optimizer's state. Clipping: Pascanu, Mikolov & Bengio (2013), algorithm 1.

    >>> import jax.numpy as jnp, optax
    >>> from rnn_jax.training import optim
    >>> optimizer = optim.recorded(optax.sgd(1.0), clip_norm=1.0)
    >>> updates, state = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2)))
    >>> float(optim.raw_norm(state)), updates
    (5.0, Array([-0.6, -0.8], dtype=float32))
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(optax.snapshot(RAW_NORM, optax.tree.norm), clip, optimizer)


def raw_norm(opt_state: State) -> Array:
    """The gradient's global norm at the last update, before clipping; scalar."""
    return optax.tree.get(opt_state, RAW_NORM)
