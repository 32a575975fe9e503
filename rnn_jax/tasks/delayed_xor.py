"""Delayed XOR: at every step, whether two bits heard long ago differed."""

import math

import jax
import jax.numpy as jnp
import optax

from rnn_jax.tasks.task import Task, check_count
from rnn_jax.types import Array, Batch, Key


def delayed_xor(delay: int, length: int, batch_size: int) -> Task:
    """A stream of fair bits; the answer at step t is s_{t-delay} XOR s_{t-2 delay}.

    Args:
        delay: d; the older of the two bits is 2d steps back.
        length: T, more than 2d.
        batch_size: B.

    Returns:
        A `Task` with an answer at every step from 2d on, counted from 0. Inputs and targets
        `[T, B, 1]`, 0 or 1, targets 0 before step 2d; outputs are logits, the loss their sigmoid
        cross-entropy. `wrong` is the share of wrong bits, chance 1/2 with a loss of ln 2.

    Raises:
        ValueError: an argument that is no positive whole number, or a length of at most 2d.

    Source: Engelken, "Gradient flossing: improving gradient descent through dynamic control of
    Jacobians", NeurIPS (2023).
    """
    check_count("delay", delay, 1)
    check_count("batch_size", batch_size, 1)
    if not isinstance(length, int) or length <= 2 * delay:
        raise ValueError(
            f"length is {length!r}, but the first answer of delay {delay} is at step {2 * delay}; "
            f"give at least {2 * delay + 1}"
        )

    def sample(key: Key) -> Batch:
        bits = jax.random.bernoulli(key, 0.5, (length, batch_size, 1))
        answers = bits[delay:-delay] ^ bits[: -2 * delay]
        early = jnp.zeros((2 * delay, batch_size, 1), bool)
        targets = jnp.concatenate([early, answers])
        return Batch(bits.astype(jnp.float32), targets.astype(jnp.float32))

    def loss(outputs: Array, targets: Array) -> Array:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs have shape {outputs.shape} and targets {targets.shape}; they must be "
                "equal"
            )
        return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, targets), axis=-1)

    def wrong(outputs: Array, targets: Array) -> Array:
        missed = (outputs[2 * delay :] > 0) != (targets[2 * delay :] > 0.5)
        return jnp.mean(missed.astype(outputs.dtype), axis=(0, 2))

    return Task(
        name=f"delayed_xor delay {delay}",
        sample=sample,
        input_size=1,
        output_size=1,
        loss=loss,
        wrong=wrong,
        last_only=False,
        chance_loss=math.log(2),
        chance_wrong=0.5,
        first_loss_step=2 * delay,
    )
