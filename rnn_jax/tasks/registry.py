"""Tasks by name: the one place where a new task is entered."""

from collections.abc import Callable

from rnn_jax.tasks import sine
from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.copy_memory import copy_memory
from rnn_jax.tasks.delayed_xor import delayed_xor
from rnn_jax.tasks.task import Task
from rnn_jax.tasks.temporal_order import temporal_order

TASKS: dict[str, Callable[[int, int], Task]] = {
    "adding": adding,
    "copy_memory": copy_memory,
    "delayed_xor": lambda delay, batch_size: delayed_xor(delay, 6 * delay, batch_size),
    "sine": lambda length, batch_size: sine.task(batch_size, length + 1),
    "temporal_order": temporal_order,
    "temporal_order_3": lambda length, size: temporal_order(length, size, symbols=3),
}
"""name -> `(length, batch size) -> Task`; copy_memory and delayed_xor take it as the delay."""
