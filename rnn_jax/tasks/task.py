"""What a task is: data drawn on the device, a loss, and when it counts as solved."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.types import Array, Batch, Key


class Task(NamedTuple):
    """A task as pure functions and closed-form numbers.

    Attributes:
        name: the factory's name and what its arguments change, for tables and figures.
        sample: `key -> Batch`, run on the device.
        input_size: D.
        output_size: O.
        loss: `(outputs, targets) -> [T, B]`, or `[B]` where `last_only`.
        wrong: `(outputs, targets) -> [B]`: 1 where the literature calls a sequence wrong, else 0
            (delayed XOR: the share of its bits that are wrong).
        last_only: whether one answer is wanted, after the last step; then outputs are `[B, O]`.
        chance_loss: mean loss of the best answer that remembers nothing.
        chance_wrong: mean of `wrong` for that answer.
        first_loss_step: the steps before it, counted from 0, have no loss.
        solved_wrong: the task is solved where the mean of `wrong` is at most this; 1 % is the
            criterion of Pascanu, Mikolov & Bengio (2013).
        asked: `targets -> [T, B]`, True where a step from the first loss on has one; None where
            all of them have.
    """

    name: str
    sample: Callable[[Key], Batch]
    input_size: int
    output_size: int
    loss: Callable[[Array, Array], Array]
    wrong: Callable[[Array, Array], Array]
    last_only: bool
    chance_loss: float
    chance_wrong: float
    first_loss_step: int = 0
    solved_wrong: float = 0.01
    asked: Callable[[Array], Array] | None = None


def is_solved(task: Task, wrong: Array) -> Array:
    """Whether at most `task.solved_wrong` of the sequences are wrong: `[..., B] -> [...]`."""
    return jnp.mean(wrong, axis=-1) <= task.solved_wrong


def check_count(name: str, value: int, least: int) -> None:
    """`ValueError` unless an argument is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")


def check_lengths(length: int, shortest: int | None, least: int) -> None:
    """`ValueError` unless `least` <= shortest <= length."""
    check_count("length", length, least)
    if shortest is None:
        return
    check_count("shortest", shortest, least)
    if shortest > length:
        raise ValueError(
            f"shortest is {shortest}, but length is {length}; give a shortest in {least}..{length}"
        )


def draw_lengths(key: Key, length: int, shortest: int | None, batch_size: int) -> Array:
    """`[B]` lengths, uniform in shortest..length; all `length` where shortest is None."""
    low = length if shortest is None else shortest
    return jax.random.randint(key, (batch_size,), low, length + 1)


def blank_padding(inputs: Array, lengths: Array) -> Array:
    """Inputs `[T, B, D]` with zeros from each example's length on."""
    valid = jnp.arange(inputs.shape[0])[:, None] < lengths[None]
    return jnp.where(jnp.broadcast_to(valid[..., None], inputs.shape), inputs, 0)
