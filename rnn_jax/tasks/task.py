"""What a network is to learn: data, a loss, and when it has learned it."""

from collections.abc import Callable
from typing import NamedTuple

from rnn_jax.types import Array, Batch, Key


class Task(NamedTuple):
    """A task, sampled on the device.

    Attributes:
        name: for tables and figures.
        sample: `key -> Batch`, inputs `[T, B, D]`.
        input_size: D.
        output_size: O.
        loss: `(outputs, targets) -> [T, B]`; `[B]` where only the last output counts.
        wrong: `(outputs, targets) -> [B]`, 1 where a sequence counts as wrong, or the share of it
            that is wrong.
        last_only: whether the answer is the last output alone.
        first_loss_step: steps before it have no loss.
        chance_loss: mean loss of the best answer that needs no memory, in closed form.
    """

    name: str
    sample: Callable[[Key], Batch]
    input_size: int
    output_size: int
    loss: Callable[[Array, Array], Array]
    wrong: Callable[[Array, Array], Array]
    last_only: bool
    first_loss_step: int = 0
    chance_loss: float = 0.0
