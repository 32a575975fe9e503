"""The temporal order problem: in which order did a few symbols come, far apart among others?"""

import math

import jax
import jax.numpy as jnp

from rnn_jax.losses import accuracy, cross_entropy
from rnn_jax.tasks.task import Task, blank_padding, check_count, check_lengths, draw_lengths
from rnn_jax.types import Array, Batch, Key

TENTHS = {2: (1, 5), 3: (1, 3, 6)}
"""For each number of symbols the tenths of the sequence, from 0, in which they lie."""

DISTRACTORS = 4


def temporal_order(
    length: int, batch_size: int, *, symbols: int = 2, shortest: int | None = None
) -> Task:
    """Two or three symbols, each A or B, lie among distractors; at the end their order is asked.

    Args:
        length: T.
        batch_size: B.
        symbols: 2 (four classes: AA, BA, AB, BB) or 3 (eight).
        shortest: if given, each example's length is uniform in shortest..length, `Batch.lengths`
            says it, and its inputs are zero from there on.

    Returns:
        A `Task` answered at the last step. Inputs `[T, B, 6]`, one-hot: A, B, and the distractors
        c, d, e, f. Targets `[B]`, the sum of 2^i over the i-th symbols that are B.

    Raises:
        ValueError: sequences of fewer than ten steps, an empty batch, another number of symbols.

    Two symbols lie in [T/10, 2T/10) and [5T/10, 6T/10), three in the tenths from T/10, 3T/10 and
    6T/10. These are the places of the program published with Pascanu et al. and, for two, those of
    Hochreiter & Schmidhuber at T = 100 (10..20 and 50..60); the text of Pascanu et al. has the
    second symbol one tenth earlier.

    Source: Hochreiter & Schmidhuber, Neural Computation 9 (1997), experiment 6; Pascanu, Mikolov &
    Bengio, "On the difficulty of training recurrent neural networks", ICML (2013).
    """
    if symbols not in TENTHS:
        raise ValueError(f"symbols is {symbols!r}; take 2 or 3")
    check_lengths(length, shortest, 10)
    check_count("batch_size", batch_size, 1)

    def sample(key: Key) -> Batch:
        length_key, place_key, symbol_key, distractor_key = jax.random.split(key, 4)
        lengths = draw_lengths(length_key, length, shortest, batch_size)
        starts = jnp.stack([tenth * lengths // 10 for tenth in TENTHS[symbols]])
        spans = jnp.broadcast_to(lengths // 10, starts.shape)
        places = starts + jax.random.randint(place_key, starts.shape, 0, spans)
        drawn = jax.random.randint(symbol_key, starts.shape, 0, 2)
        seen = 2 + jax.random.randint(distractor_key, (length, batch_size), 0, DISTRACTORS)
        seen = seen.at[places, jnp.arange(batch_size)[None]].set(drawn)
        inputs = jax.nn.one_hot(seen, 2 + DISTRACTORS, dtype=jnp.float32)
        weights = jnp.broadcast_to(2 ** jnp.arange(symbols)[:, None], drawn.shape)
        return Batch(
            inputs=blank_padding(inputs, lengths),
            targets=jnp.sum(weights * drawn, axis=0),
            lengths=None if shortest is None else lengths,
        )

    def wrong(outputs: Array, targets: Array) -> Array:
        return 1 - accuracy(outputs, targets)

    return Task(
        name=f"temporal_order of {symbols}",
        sample=sample,
        input_size=2 + DISTRACTORS,
        output_size=2**symbols,
        loss=cross_entropy,
        wrong=wrong,
        last_only=True,
        chance_loss=symbols * math.log(2),
        chance_wrong=1 - 0.5**symbols,
    )
