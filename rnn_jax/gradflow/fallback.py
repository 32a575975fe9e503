"""A fast computation, and a careful one in its place where the fast one leaves the range."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from rnn_jax.placement import everywhere
from rnn_jax.types import Array


def with_fallback(fast: Callable[[], tuple[Any, Array]], careful: Callable[[], Any]) -> Any:
    """`fast()` where it says that it held, else `careful()`; derivatives are those of `careful`.

    Args:
        fast: `() -> (result, held)`, held a bool scalar.
        careful: `() -> result`, like that of `fast`, and right wherever `fast` is.

    A `cond` under `vmap` runs both branches at every call. A loop that runs at most once is only
    entered where some example of the `vmap` needs it; it has no reverse mode, so the derivative is
    taken of `careful` alone, and what overflowed in `fast` cannot turn it into NaN.
    """
    fast, fast_arguments = _closed(fast)
    careful, careful_arguments = _closed(careful)

    @jax.custom_jvp
    def evaluate(fast_arguments: list[Array], careful_arguments: list[Array]) -> Any:
        result, held = fast(*fast_arguments)
        # All devices of a mesh enter the loop or none does: they may have sums to take in it.
        held = everywhere(held)

        def again(carry: tuple[Any, Array]) -> tuple[Any, Array]:
            return careful(*careful_arguments), carry[1] | ~carry[1]

        return lax.while_loop(lambda carry: ~carry[1], again, (result, held))[0]

    @evaluate.defjvp
    def evaluate_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        return jax.jvp(careful, tuple(primals[1]), tuple(tangents[1]))

    return evaluate(fast_arguments, careful_arguments)


def _closed(function: Callable[[], Any]) -> tuple[Callable[..., Any], list[Array]]:
    """A function of what `function` closes over, and that.

    Every array becomes an argument: `jax.closure_convert` leaves what is not differentiated, which
    under `vmap` may be an array of its own for each example.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)()
    tree = jax.tree.structure(shape)

    def of_arguments(*arguments: Array) -> Any:
        return jax.tree.unflatten(tree, jax.core.eval_jaxpr(closed.jaxpr, arguments))

    return of_arguments, list(closed.consts)
