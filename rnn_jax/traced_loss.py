"""A user's loss as a program of what it is differentiated by."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.scans import Program, program


class TracedLoss(NamedTuple):
    """A loss at given arguments.

    Attributes:
        program: `*leaves -> loss, *aux`; everything else is a constant of it.
        leaves: what the loss is differentiated by, as it was given.
        arguments: their tree: that of the argument, of a list of them where `argnums` is several.
        restore_grads: gradients by the leaves -> as `jax.grad` returns them.
        restore_aux: the program's other results -> aux as the loss returns it.
    """

    program: Program
    leaves: list[Any]
    arguments: Any
    restore_grads: Callable[[list[Any]], Any]
    restore_aux: Callable[[list[Any]], Any]


def trace_loss(
    loss_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> TracedLoss:
    """Traces `loss_fn(*args, **kwargs)`; other arguments than `argnums` stay what they are.

    Raises:
        ValueError: an argument that is not there or not floating, a loss that is not a real scalar.
    """
    numbers = _argument_numbers(argnums, len(args))
    leaves, tree = jax.tree.flatten([args[n] for n in numbers])
    _check_floating(numbers, [args[n] for n in numbers])
    returned: dict[str, Any] = {}

    def of_leaves(leaves: list[Any]) -> list[Any]:
        changed = list(args)
        for n, arg in zip(numbers, jax.tree.unflatten(tree, leaves), strict=True):
            changed[n] = arg
        result = loss_fn(*changed, **kwargs)
        aux = None
        if has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise ValueError(
                    f"has_aux=True wants a loss that returns (loss, aux), but it returned "
                    f"{_described(result)}"
                )
            result, aux = result
        _check_scalar(result, has_aux)
        aux_leaves, returned["tree"] = jax.tree.flatten(aux)
        # What is not an array, a name or a Python number, goes around the program.
        returned["leaves"] = [None if isinstance(x, jax.Array) else x for x in aux_leaves]
        returned["arrays"] = [n for n, x in enumerate(aux_leaves) if isinstance(x, jax.Array)]
        return [result, *(aux_leaves[n] for n in returned["arrays"])]

    closed = jax.make_jaxpr(of_leaves)(leaves)

    def restore_grads(grads: list[Any]) -> Any:
        trees = jax.tree.unflatten(tree, grads)
        return trees[0] if isinstance(argnums, int) else tuple(trees)

    def restore_aux(arrays: list[Any]) -> Any:
        whole = list(returned["leaves"])
        for n, array in zip(returned["arrays"], arrays, strict=True):
            whole[n] = array
        return jax.tree.unflatten(returned["tree"], whole)

    arguments = jax.tree.structure(args[numbers[0]]) if isinstance(argnums, int) else tree
    return TracedLoss(program(closed), leaves, arguments, restore_grads, restore_aux)


def _argument_numbers(argnums: int | Sequence[int], count: int) -> list[int]:
    numbers = []
    for n in [argnums] if isinstance(argnums, int) else argnums:
        if not -count <= n < count:
            raise ValueError(
                f"argnums is {argnums}, but the loss was called with {count} positional "
                "arguments; give what it is differentiated by as one of them"
            )
        numbers.append(n % count)
    return numbers


def _check_floating(numbers: Sequence[int], arguments: Sequence[Any]) -> None:
    for n, argument in zip(numbers, arguments, strict=True):
        for path, leaf in jax.tree.leaves_with_path(argument):
            kind = getattr(leaf, "dtype", None)
            if kind is None and isinstance(leaf, (bool, int, float, complex)):
                kind = jnp.result_type(leaf)
            if kind is None or not jnp.issubdtype(kind, jnp.inexact):
                place = f"argument {n}{jax.tree_util.keystr(path)}"
                raise ValueError(
                    f"{place} is {_described(leaf)}, which has no gradient; differentiate by "
                    "floating arrays alone: see argnums, and keep other values in other arguments"
                )


def _check_scalar(loss: Any, has_aux: bool) -> None:
    if isinstance(loss, tuple) and not has_aux:
        raise ValueError(
            f"the loss returned {_described(loss)}, but one scalar is wanted; for (loss, aux) give "
            "has_aux=True"
        )
    try:
        aval = jax.typeof(loss)
    except TypeError:
        aval = None
    if aval is None or aval.shape != () or not jnp.issubdtype(aval.dtype, jnp.floating):
        raise ValueError(
            f"the loss is {_described(loss)}, but a floating scalar is wanted: take the mean or "
            "the sum over the examples"
        )


def _described(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a {type(value).__name__}"
