"""The adding problem: the sum of two marked numbers out of a long sequence of them."""

import jax
import jax.numpy as jnp

from rnn_jax.losses import squared_error
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, Key

WRONG_ABOVE = 0.04
"""Squared error from which on an answer counts as wrong."""


def adding(length: int, batch_size: int) -> Task:
    """Two inputs a step: a uniform number in [0, 1), and a marker that is 1 at two steps, else 0.

    The target, asked for at the last step, is the sum of the two marked numbers; one is in the
    first half, one in the second. Without memory the best answer is 1, with a mean squared error
    of 1/6.

    Args:
        length: T, at least 2.
        batch_size: B.

    Returns:
        A `Task`: inputs `[T, B, 2]`, targets `[B, 1]`.

    Source: Hochreiter & Schmidhuber, "Long short-term memory" (1997), section 5.4, in the form of
    Le, Jaitly & Hinton (2015).
    """
    if length < 2:
        raise ValueError(f"length is {length}; two marked numbers need at least 2 steps")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    half = length // 2

    def sample(key: Key) -> Batch:
        numbers_key, first_key, second_key = jax.random.split(key, 3)
        numbers = jax.random.uniform(numbers_key, (length, batch_size))
        first = jax.random.randint(first_key, (batch_size,), 0, half)
        second = jax.random.randint(second_key, (batch_size,), half, length)
        steps = jnp.broadcast_to(jnp.arange(length)[:, None], numbers.shape)
        marked = (steps == first[None]) | (steps == second[None])
        markers = marked.astype(numbers.dtype)
        return Batch(
            inputs=jnp.stack([numbers, markers], axis=-1),
            targets=jnp.sum(numbers * markers, axis=0)[:, None],
        )

    def wrong(outputs: Array, targets: Array) -> Array:
        return (squared_error(outputs, targets) > WRONG_ABOVE).astype(outputs.dtype)

    return Task(
        name="adding",
        sample=sample,
        input_size=2,
        output_size=1,
        loss=squared_error,
        wrong=wrong,
        last_only=True,
        chance_loss=1 / 6,
    )
