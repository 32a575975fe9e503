"""`RNN`, a layer of `flax.nnx` that takes the place of Flax's own; `watch` for NNX models."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax import drop_in
from rnn_jax.bridge.known import Known, known_nnx, nnx_weights
from rnn_jax.types import Array
from rnn_jax.watch import Select
from rnn_jax.watch import watch as watch_function

Argnum = int | nnx.DiffState


class RNN(nnx.RNN):
    """`flax.nnx.RNN` with the adjoints-first backward pass of `rnn_jax.unroll`.

    Arguments, variables and results are those of `flax.nnx.RNN`, also at padded steps.
    `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell` and `GRUCell` with their usual gates run through
    our cells; any other cell, and variables that differ from step to step (`state_axes`), through
    Flax's own scan. `unroll=` has no effect on the former.

    Like every `jax.custom_vjp` it has no forward mode (`jax.jvp`, `jax.jacfwd`); for that take
    Flax's.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import rnn_jax.nnx
    >>> rnn = rnn_jax.nnx.RNN(nnx.GRUCell(2, 8, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((4, 20, 2))).shape
    (4, 20, 8)
    """

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Applies the cell to the inputs; arguments and result are those of `flax.nnx.RNN`."""
        options = drop_in.options_of(
            self,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )
        known = _known_cell(self)
        if known is not None and jnp.ndim(inputs) > 1:
            inputs = jnp.asarray(inputs)
            if initial_carry is None:
                rngs = self.rngs if rngs is None else rngs
                rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
                shape = drop_in.shape_of_step(inputs, options.time_major)
                initial_carry = self.cell.initialize_carry(shape, rngs)
            weights = nnx_weights(self.cell)
            if drop_in.fits(known, weights, initial_carry, inputs, options.time_major):
                return drop_in.run(known, weights, initial_carry, inputs, seq_lengths, options)
        return super().__call__(
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            rngs=rngs,
            **options._asdict(),
        )


def _known_cell(layer: RNN) -> Known | None:
    """The cell of ours to run a layer with; None where Flax's own scan has more to do than that."""
    axes = (axis for axis in layer.state_axes.values() if axis is not None)
    if any(axis is not nnx.Carry for axis in axes):
        return None
    if layer.broadcast_rngs is not None and nnx.state(layer.cell, nnx.RngState):
        return None
    return known_nnx(layer.cell)


def watch(
    loss_fn: Callable[..., Any],
    argnums: Argnum | Sequence[Argnum] = 0,
    has_aux: bool = False,
    select: Select | None = None,
    adjoints: bool = False,
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """`nnx.value_and_grad` that also returns |dL/ds_t| of the recurrences in the loss.

    Args:
        loss_fn: `(model, *args, **kwargs) -> loss`, or `(loss, aux)`, as `nnx.value_and_grad`
            takes it.
        argnums: which positional arguments to differentiate by: of a module its `nnx.Param`, or
            what an `nnx.DiffState(argnum, filter)` selects.
        has_aux, select, adjoints: as in `rnn_jax.watch`.

    Returns:
        A function of the same arguments that returns `(loss, grads, norms)`, with `has_aux`
        `((loss, aux), grads, norms)`. Loss and grads are those of `nnx.value_and_grad`; what the
        loss changes in its modules (counts of random streams, statistics) is changed in the
        arguments. `norms` is that of `rnn_jax.watch`.

    Raises:
        ValueError: as in `rnn_jax.watch`; an argnum without an argument.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import rnn_jax.nnx
    >>> model, xs = nnx.RNN(nnx.GRUCell(2, 8, rngs=nnx.Rngs(0))), jnp.ones((4, 20, 2))
    >>> def loss_fn(model, xs):
    ...     return jnp.mean(model(xs) ** 2)
    >>> loss, grads, norms = nnx.jit(rnn_jax.nnx.watch(loss_fn))(model, xs)
    >>> [norm.shape for norm in norms.values()]
    [(20, 4)]
    """
    several = not isinstance(argnums, int | nnx.DiffState)
    chosen: Sequence[Any] = argnums if several else (argnums,)  # type: ignore[assignment]

    @functools.wraps(loss_fn, updated=())
    def watched(*args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
        filters = dict(map(_position_and_filter, chosen))
        if any(not 0 <= i < len(args) for i in filters):
            raise ValueError(
                f"argnums names the positional arguments {sorted(filters)}, but {len(args)} were "
                "given; pass what to differentiate by without its name"
            )
        modules = [i for i in filters if isinstance(args[i], nnx.Pytree)]
        arrays = {i: args[i] for i in filters if i not in modules}
        held = tuple(None if i in arrays else arg for i, arg in enumerate(args))
        split: Any = nnx.split(
            (held, kwargs), *(_within_argument(i, filters[i]) for i in modules), ...
        )
        graph, *states, rest = split

        def loss_and_changes(of: dict[int, Any], rest: Any) -> tuple[Any, tuple[Any, Any]]:
            # Variables may only change in the trace in which they were made.
            fresh = jax.tree.map(lambda leaf: leaf, rest)
            merged: Any = nnx.merge(graph, fresh, *(of[i] for i in modules))
            before = _values(merged)
            inner = [of[i] if i in arrays else arg for i, arg in enumerate(merged[0])]
            result = loss_fn(*inner, **merged[1])
            loss, aux = result if has_aux else (result, None)
            after = _values(merged)
            changed = {path: v for path, v in after.items() if v is not before.get(path)}
            state = nnx.to_flat_state(nnx.state(merged))
            return loss, (nnx.from_flat_state([(p, v) for p, v in state if p in changed]), aux)

        pure = watch_function(loss_and_changes, has_aux=True, select=select, adjoints=adjoints)
        of = arrays | dict(zip(modules, states, strict=True))
        (loss, (changed, aux)), grads, norms = pure(of, rest)
        nnx.update((held, kwargs), changed)
        by_argument = tuple(grads[i][0][i] if i in modules else grads[i] for i in filters)
        value = (loss, aux) if has_aux else loss
        return value, by_argument if several else by_argument[0], norms

    return watched


def _position_and_filter(argnum: Argnum) -> tuple[int, Any]:
    if isinstance(argnum, nnx.DiffState):
        return argnum.argnum, argnum.filter
    return argnum, nnx.Param


def _within_argument(position: int, filter: Any) -> Callable[[Any, Any], bool]:
    """The filter of an argument as one of `(args, kwargs)`."""
    predicate = nnx.filterlib.to_predicate(filter)
    return lambda path, value: tuple(path[:2]) == (0, position) and predicate(path[2:], value)


def _values(merged: Any) -> dict[Any, Any]:
    """Path -> the array itself."""
    flat = nnx.to_flat_state(nnx.state(merged))
    return {p: v.get_raw_value() if isinstance(v, nnx.Variable) else v for p, v in flat}
