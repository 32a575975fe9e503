"""`RNN`, a layer of `flax.linen` that takes the place of Flax's own and is faster."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.core.scope import in_filter

from rnn_jax import drop_in
from rnn_jax.bridge.known import Known, known_linen
from rnn_jax.types import Array, Key

# Without the wrapper that linen puts around every method: it would open a scope within the scope,
# and name and intermediates would come twice.
_flax_call: Any = linen.RNN.__call__.__wrapped__  # type: ignore[attr-defined]


class RNN(linen.RNN):
    """`flax.linen.RNN` with the adjoints-first backward pass of `rnn_jax.unroll`.

    Fields, arguments, parameters and results are those of `flax.linen.RNN`, also at padded steps;
    replace `nn.RNN` by this in a model and its checkpoints still fit. `SimpleCell`, `LSTMCell`,
    `OptimizedLSTMCell`, `GRUCell` and `MGUCell` with their usual gates run through our cells; any
    other cell, and weights that differ from step to step, through Flax's own scan. `unroll=` has no
    effect on the former.

    Like every `jax.custom_vjp` it has no forward mode (`jax.jvp`, `jax.jacfwd`); for that take
    Flax's.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> import rnn_jax.linen
    >>> class Tagger(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, xs, lengths):
    ...         return nn.Dense(3)(rnn_jax.linen.RNN(nn.GRUCell(8))(xs, seq_lengths=lengths))
    >>> xs, lengths = jnp.ones((4, 20, 2)), jnp.array([20, 7, 3, 9])
    >>> tags, params = Tagger().init_with_output(jax.random.key(0), xs, lengths)
    >>> tags.shape, sorted(params["params"])
    ((4, 20, 3), ['Dense_0', 'GRUCell_0'])
    """

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        init_key: Key | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Applies the cell to the inputs; arguments and result are those of `flax.linen.RNN`."""
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
                key = jax.random.key(0) if init_key is None else init_key
                shape = drop_in.shape_of_step(inputs, options.time_major)
                initial_carry = self.cell.initialize_carry(key, shape)
            weights = linen.meta.unbox(self.cell.variables["params"])
            if drop_in.fits(known, weights, initial_carry, inputs, options.time_major):
                return drop_in.run(known, weights, initial_carry, inputs, seq_lengths, options)
        return _flax_call(
            self,
            inputs,
            initial_carry=initial_carry,
            init_key=init_key,
            seq_lengths=seq_lengths,
            **options._asdict(),
        )


def _known_cell(layer: RNN) -> Known | None:
    """The cell of ours to run a layer with; None where Flax's own scan has more to do than that.

    It makes parameters, splits them over the steps, records what passes through the cell, and lets
    interceptors at its calls.
    """
    scope = layer.scope
    if scope is None or layer.is_initializing() or scope.is_mutable_collection("params"):
        return None
    if getattr(linen.module, "_global_interceptor_stack", None):
        return None
    filters = (layer.variable_broadcast, layer.variable_carry, *layer.variable_axes)
    recorded = scope.is_mutable_collection("intermediates") and _any_in(filters, "intermediates")
    if recorded or not in_filter(layer.variable_broadcast, "params"):
        return None
    if _any_in(layer.variable_axes, "params") or set(layer.cell.variables) != {"params"}:
        return None
    return known_linen(layer.cell)


def _any_in(filters: Iterable[Any], collection: str) -> bool:
    return any(in_filter(f, collection) for f in filters)
