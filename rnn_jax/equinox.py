"""`RNN`, a layer of Equinox around any of its cells; `watch` for `filter_value_and_grad`."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from rnn_jax.bridge.equinox import hidden_of, known_equinox
from rnn_jax.types import Array, Key, State
from rnn_jax.watch import Select
from rnn_jax.watch import watch as watch_function

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(
        "rnn_jax.equinox needs Equinox, which is not installed: pip install 'rnn_jax[equinox]'"
    ) from error


class RNN(eqx.Module):
    """A recurrent cell over a sequence; `jax.vmap` it over a batch, as every layer of Equinox.

    Attributes:
        cell: `(input, hidden) -> hidden`, of one example. Of `equinox.nn.GRUCell` and `LSTMCell`
            the products by x are one for the whole sequence; any other is scanned as it is.
        reverse: whether the sequence is read from its end; index t of the result is still where
            the cell stands when it has read x_t.

    >>> import equinox as eqx
    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax.equinox
    >>> rnn = rnn_jax.equinox.RNN(eqx.nn.LSTMCell(2, 8, key=jax.random.key(0)))
    >>> jax.vmap(rnn)(jnp.ones((4, 20, 2))).shape
    (4, 20, 8)
    """

    cell: Callable[..., Any]
    reverse: bool = eqx.field(default=False, static=True)

    def __call__(self, xs: Array, hidden: Any = None, *, key: Key | None = None) -> Array:
        """What the cell puts out at each step: `[T, D] -> [T, H]`, of an LSTM h.

        Args:
            xs: `[T, D]`.
            hidden: where it starts; zeros of the cell's `hidden_size` unless given.
            key: ignored; `equinox.nn.Sequential` gives one to every layer.
        """
        del key
        states = self.states(xs, hidden)
        return states[0] if isinstance(states, tuple) else states

    def states(self, xs: Array, hidden: Any = None) -> State:
        """All hidden states as the cell returns them, with T in front: of an LSTM (h, c)."""
        hidden, xs = hidden_of(self.cell, hidden), jnp.asarray(xs)
        known = known_equinox(self.cell)
        affine = None if known is None else known.cell.affine
        if known is None or affine is None:

            def step(hidden: Any, x: Array) -> tuple[Any, Any]:
                new = self.cell(x, hidden)
                return new, new

            return lax.scan(step, hidden, xs, reverse=self.reverse)[1]

        params = known.params(self.cell)

        # Not `unroll`: of a custom derivative within `jax.vmap` the gradient of shared weights is
        # made example by example, `[B, H, 4 H]`, before it is summed.
        def known_step(state: State, projected: Any) -> tuple[State, State]:
            new = affine.activate(params, state, projected, affine.recur(params, state))
            return new, new

        projected = affine.project(params, xs)
        states = lax.scan(known_step, known.state(hidden), projected, reverse=self.reverse)[1]
        return known.carry(states)


def watch(
    loss_fn: Callable[..., Any],
    has_aux: bool = False,
    select: Select | None = None,
    adjoints: bool = False,
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """`equinox.filter_value_and_grad` that also returns |dL/ds_t| of the recurrences in the loss.

    Args:
        loss_fn: `(model, *args, **kwargs) -> loss`, or `(loss, aux)`.
        has_aux, select, adjoints: as in `rnn_jax.watch`.

    Returns:
        A function of the same arguments that returns `(loss, grads, norms)`, with `has_aux`
        `((loss, aux), grads, norms)`. Loss and grads, by the floating arrays of the model, are
        those of `filter_value_and_grad`; `norms` is that of `rnn_jax.watch`. For `eqx.filter_jit`.

    Raises:
        ValueError: as in `rnn_jax.watch`.

    >>> import equinox as eqx
    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax.equinox
    >>> model = rnn_jax.equinox.RNN(eqx.nn.GRUCell(2, 8, key=jax.random.key(0)))
    >>> def loss_fn(model, xs):
    ...     return jnp.mean(jax.vmap(model)(xs) ** 2)
    >>> watched = eqx.filter_jit(rnn_jax.equinox.watch(loss_fn))
    >>> loss, grads, norms = watched(model, jnp.ones((4, 20, 2)))
    >>> [norm.shape for norm in norms.values()]
    [(20, 4)]
    """

    @functools.wraps(loss_fn, updated=())
    def watched(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
        weights, rest = eqx.partition(model, eqx.is_inexact_array)

        def of_weights(weights: Any) -> Any:
            return loss_fn(eqx.combine(weights, rest), *args, **kwargs)

        return watch_function(of_weights, has_aux=has_aux, select=select, adjoints=adjoints)(
            weights
        )

    return watched
