"""Losses per step and per example; what they are averaged over is decided as late as possible."""

import jax.numpy as jnp
import optax

from rnn_jax.placement import total
from rnn_jax.types import Array


def squared_error(outputs: Array, targets: Array) -> Array:
    """(o_t - y_t)^2, averaged over the output axis: `[..., O]` and `[..., O]` -> `[...]`.

    No factor 1/2, so that its mean is the mean squared error. `ValueError` where shapes differ.
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs have shape {outputs.shape} and targets {targets.shape}; they must be equal"
        )
    return jnp.mean(optax.squared_error(outputs, targets), axis=-1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-ln softmax(logits)[label]: `[..., O]` and whole numbers `[...]` -> `[...]`, in nats."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits have shape {logits.shape} and labels {labels.shape}; labels must have the "
            f"shape of the logits without the class axis, {logits.shape[:-1]}"
        )
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: Array, labels: Array) -> Array:
    """1 where the largest logit is the label's, else 0: `[..., O]` and `[...]` -> `[...]`."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)


def masked_mean(
    values: Array,
    mask: Array,
    axis: int | tuple[int, ...] | None = None,
    mesh_axes: tuple[str, ...] = (),
) -> Array:
    """Mean of `values` where `mask`, of the same shape, is True; 0 where it nowhere is.

    Inside `jax.shard_map` it is taken over the devices along `mesh_axes` too.
    """
    count = total(jnp.sum(mask, axis=axis), mesh_axes)
    return total(jnp.sum(jnp.where(mask, values, 0), axis=axis), mesh_axes) / jnp.maximum(count, 1)
