"""Names for the shapes that every module speaks of.

Time is always the first axis and batch the second: T time, B batch, D input, H hidden, O output.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
Params: TypeAlias = Any
"""Pytree of arrays that training changes."""
State: TypeAlias = Any
"""Pytree of `[..., H]`: the recurrent state s_t. With a leading `[T]` axis: all states of a run."""
Initializer: TypeAlias = Callable[..., Array]
"""`(key, shape, dtype) -> array`, as in `jax.nn.initializers`."""
StepLosses: TypeAlias = Callable[[State], Array]
"""`states -> [T, B]` (or `[T]` without a batch axis): L_t of each example."""


class Batch(NamedTuple):
    """What a task hands to a training step.

    Attributes:
        inputs: `[T, B, D]`.
        targets: `[T, B, O]`, or `[B, ...]` for tasks answered at the last step.
        lengths: `[B]` number of true steps of each example, or None where all have T.
    """

    inputs: Array
    targets: Array
    lengths: Array | None = None
