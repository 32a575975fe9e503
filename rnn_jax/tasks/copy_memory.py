"""The copy memory problem: say again, after a long delay, what came first."""

import math

import jax
import jax.numpy as jnp

from rnn_jax.losses import cross_entropy
from rnn_jax.tasks.task import Task, check_count
from rnn_jax.types import Array, Batch, Key


def copy_memory(delay: int, batch_size: int, *, symbols: int = 8, recalled: int = 10) -> Task:
    """Symbols, blanks, a delimiter; from there on the symbols are to be said again, in order.

    Args:
        delay: T of the literature: T - 1 blanks and the delimiter lie between the last symbol and
            the first that is recalled.
        batch_size: B.
        symbols: size of the alphabet, the blank and the delimiter apart.
        recalled: how many symbols there are to recall.

    Returns:
        A `Task` with an answer at every step. Inputs `[T + 2 recalled, B, symbols + 2]`, one-hot,
        the blank and the delimiter last. Targets `[T + 2 recalled, B]`: the blank, class `symbols`,
        until the recall. `wrong` is 1 where any recalled symbol is.

    Raises:
        ValueError: an argument that is no positive whole number; fewer than two symbols.

    Without memory the best is to say the blank, and then each symbol with equal probability: a
    cross-entropy of recalled ln(symbols) / (T + 2 recalled), 10 ln 8 / (T + 20) as published.

    Source: Hochreiter & Schmidhuber (1997); this form Arjovsky, Shah & Bengio, "Unitary evolution
    recurrent neural networks", ICML (2016).
    """
    check_count("delay", delay, 1)
    check_count("batch_size", batch_size, 1)
    check_count("symbols", symbols, 2)
    check_count("recalled", recalled, 1)
    blank, delimiter, length = symbols, symbols + 1, delay + 2 * recalled

    def sample(key: Key) -> Batch:
        said = jax.random.randint(key, (recalled, batch_size), 0, symbols)
        blanks = jnp.full((delay + recalled, batch_size), blank)
        heard = jnp.concatenate([said, blanks]).at[recalled + delay - 1].set(delimiter)
        return Batch(
            inputs=jax.nn.one_hot(heard, symbols + 2, dtype=jnp.float32),
            targets=jnp.concatenate([blanks, said]),
        )

    def wrong(outputs: Array, targets: Array) -> Array:
        answers = jnp.argmax(outputs[-recalled:], axis=-1)
        return jnp.any(answers != targets[-recalled:], axis=0).astype(outputs.dtype)

    return Task(
        name=f"copy_memory delay {delay}",
        sample=sample,
        input_size=symbols + 2,
        output_size=symbols + 1,
        loss=cross_entropy,
        wrong=wrong,
        last_only=False,
        chance_loss=recalled * math.log(symbols) / length,
        chance_wrong=1 - symbols**-recalled,
    )
