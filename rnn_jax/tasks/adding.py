"""The adding problem: the sum of the two numbers of a long sequence that bear a mark."""

import jax
import jax.numpy as jnp

from rnn_jax.losses import squared_error
from rnn_jax.tasks.task import Task, blank_padding, check_count, check_lengths, draw_lengths
from rnn_jax.types import Array, Batch, Key

WRONG_ABOVE = 0.04
"""Squared error from which on an answer counts as wrong."""

LEAST = {"halves": 2, "early": 10}
"""Where the marks may be, and the fewest steps that leave room for both."""


def adding(
    length: int, batch_size: int, *, shortest: int | None = None, marks: str = "halves"
) -> Task:
    """At the last step the network answers with the sum of two marked numbers.

    Args:
        length: T.
        batch_size: B.
        shortest: if given, each example's length is uniform in shortest..length, `Batch.lengths`
            says it, and its inputs are zero from there on.
        marks: "halves": one mark in each half of the sequence; "early": one in its first tenth
            and one between there and its middle, so that half of it is to be bridged.

    Returns:
        A `Task` answered at the last step. Inputs `[T, B, 2]`: a number uniform in [0, 1), and
        its mark, 1 or 0. Targets `[B, 1]`.

    Raises:
        ValueError: a sequence too short for two marks, an empty batch, or unknown marks.

    The answer 1 has a mean squared error of 1/6, the variance of the sum of two uniform numbers,
    and is off by more than 0.2 in 64 % of the cases.

    Source: Hochreiter & Schmidhuber, Neural Computation 9 (1997), experiment 4; the sum itself as
    in Le, Jaitly & Hinton (2015); marks in halves as in Arjovsky, Shah & Bengio (2016), early ones
    as in Pascanu, Mikolov & Bengio (2013), whose target is half the sum.

    >>> import jax
    >>> from rnn_jax.tasks.adding import adding
    >>> batch = adding(length=100, batch_size=8).sample(jax.random.key(0))
    >>> batch.inputs.shape, batch.targets.shape
    ((100, 8, 2), (8, 1))
    """
    if marks not in LEAST:
        raise ValueError(f"marks is {marks!r}; take one of {', '.join(LEAST)}")
    check_lengths(length, shortest, LEAST[marks])
    check_count("batch_size", batch_size, 1)

    def sample(key: Key) -> Batch:
        length_key, number_key, first_key, second_key = jax.random.split(key, 4)
        lengths = draw_lengths(length_key, length, shortest, batch_size)
        if marks == "halves":
            split, end = lengths // 2, lengths
        else:
            split, end = lengths // 10, lengths // 2
        first = jax.random.randint(first_key, (batch_size,), 0, split)
        second = jax.random.randint(second_key, (batch_size,), split, end)
        numbers = jax.random.uniform(number_key, (length, batch_size), jnp.float32)
        steps = jnp.arange(length)[:, None]
        marked = ((steps == first[None]) | (steps == second[None])).astype(jnp.float32)
        inputs = blank_padding(jnp.stack([numbers, marked], axis=-1), lengths)
        targets = jnp.sum(numbers * marked, axis=0)[:, None]
        return Batch(inputs, targets, None if shortest is None else lengths)

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
        # The sum's density is a triangle on 0..2: what lies off its middle are two small triangles.
        chance_wrong=(1 - WRONG_ABOVE**0.5) ** 2,
    )
