"""Noise that is added to the gradient, drawn anew at every iteration and for every network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rnn_jax.types import Array, Key


class NoiseState(NamedTuple):
    """Optax's `AddNoiseState` with its key as plain numbers, which files and sweeps can hold."""

    iteration: Array
    key_data: Array


def gradient_noise(eta: float, gamma: float = 0.55) -> optax.GradientTransformation:
    """Adds normal noise of variance eta / t^gamma at iteration t = 1, 2, ...

    Args:
        eta: variance of the first noise, at least 0.
        gamma: how fast it dies out, at least 0.

    Returns:
        `optax.add_noise` whose state is `NoiseState`. All networks draw the same numbers unless
        `with_noise_key` gives each a key of its own.

    Source: Neelakantan et al., "Adding gradient noise improves learning for very deep networks",
    arXiv:1511.06807 (2015), section 3.
    """
    inner = optax.add_noise(eta, gamma, key=0)

    def init(params: Any) -> NoiseState:
        return _plain(inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, NoiseState]:
        typed = optax.AddNoiseState(state.iteration, jax.random.wrap_key_data(state.key_data))
        updates, typed = inner.update(updates, typed, params)
        return updates, _plain(typed)

    return optax.GradientTransformation(init, update)


def with_noise_key(opt_state: Any, key: Key) -> Any:
    """An optimizer's state whose noise, if it adds any, is drawn from this key."""
    if not optax.tree_utils.tree_get_all_with_path(opt_state, "key_data"):
        return opt_state
    return optax.tree_utils.tree_set(opt_state, key_data=jax.random.key_data(key))


def _plain(state: Any) -> NoiseState:
    return NoiseState(jnp.asarray(state.count), jax.random.key_data(state.rng_key))
