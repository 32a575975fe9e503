"""Before anything is timed: do all sides compute the same gradient?"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from rnn_jax import objectives
from rnn_jax.tasks import sine
from rnn_jax.types import Array, Batch
from rnn_jax.unroll import zero_perturbations

TOLERANCE = 1e-4
"""Largest relative difference of a parameter's gradient, in the Frobenius norm."""

Gradient = Callable[[rnn_jax.ModelParams, Array, Batch], rnn_jax.ModelParams]
"""`(params, carry [B, H], batch [T, B, 1]) -> gradients of the mean loss`, in our layout."""


class Example(NamedTuple):
    """Where the gradients are compared: weights, the state carried in, a batch."""

    params: rnn_jax.ModelParams
    carry: Array
    batch: Batch


def example(hidden_size: int, seed: int = 0) -> Example:
    """The tutorial's shape, B = 1 and T = 49, at weights whose every path matters.

    W is orthogonal and the state carried in is not zero: at the tutorial's own weights of 0.001 a
    side that lost a recurrent path would hardly differ.
    """
    weights_key, bias_key, carry_key, batch_key = jax.random.split(jax.random.key(seed), 4)
    params = rnn_jax.sequence_model(rnn_jax.elman(hidden_size), 1).init(weights_key, 1)
    bias = 0.3 * jax.random.normal(bias_key, (hidden_size,))
    params = params._replace(cell=params.cell._replace(b=bias))
    carry = jnp.tanh(jax.random.normal(carry_key, (1, hidden_size)))
    return Example(params, carry, sine.sampler(1)(batch_key))


def ours(objective: objectives.Objective) -> Gradient:
    """The gradient as a training step of ours computes it."""

    @jax.jit
    def gradients(params: Any, carry: Array, batch: Batch) -> Any:
        zeros = zero_perturbations(carry, objective.num_steps(batch))
        return jax.grad(lambda p: objectives.mean_loss(objective.run(p, carry, batch, zeros)))(
            params
        )

    return gradients


def relative_differences(wanted: Any, given: Any) -> dict[str, float]:
    """|given - wanted| / |wanted| of each parameter, keyed by its path."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(given), strict=True)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): float(
            np.linalg.norm(np.asarray(b, np.float64) - np.asarray(a, np.float64))
            / np.linalg.norm(np.asarray(a, np.float64))
        )
        for (path, a), b in pairs
    }


def check_agreement(
    ours: Gradient, others: Mapping[str, Gradient], at: Example
) -> dict[str, dict[str, float]]:
    """Relative differences of each other side's gradients from ours, `name -> parameter -> value`.

    Raises:
        ValueError: one is above `TOLERANCE` or not a number: times would compare different work.
    """
    wanted = ours(*at)
    found = {name: relative_differences(wanted, other(*at)) for name, other in others.items()}
    for name, differences in found.items():
        parameter, largest = max(
            differences.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf)
        )
        if not largest <= TOLERANCE:
            raise ValueError(
                f"the gradient of {parameter} by {name} differs from ours by {largest:.1e}, "
                f"relative; at most {TOLERANCE:.0e} is wanted. Nothing is timed: the sides would "
                "not do the same work"
            )
    return found
