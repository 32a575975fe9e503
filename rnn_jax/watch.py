"""dL/ds_t of every recurrence in any JAX function."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from rnn_jax.norms import state_norm
from rnn_jax.scans import (
    Leaf,
    Recurrence,
    Select,
    evaluate,
    find_recurrences,
    make_plan,
    nothing_found,
    number_slots,
    selected,
)
from rnn_jax.tap import varying_axes
from rnn_jax.traced_loss import trace_loss
from rnn_jax.types import Array


def watch(
    loss_fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    select: Select | None = None,
    adjoints: bool = False,
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """A loss's value and gradients, as of `jax.value_and_grad`, and |dL/ds_t| of its recurrences.

    Args:
        loss_fn: any JAX function `(params, *args, **kwargs) -> loss`, a scalar, or `(loss, aux)`.
            Nothing in it need be made for this: every `lax.scan` in it is found, also those of
            Flax's and Equinox's layers, of `lax.fori_loop` and of `rnn_jax.unroll`.
        argnums: which positional arguments to differentiate by.
        has_aux: whether it returns `(loss, aux)`.
        select: which recurrences are shown: names, with `*` and `?` as in a shell, or a function
            of a name. All by default.
        adjoints: whether to return the arrays dL/ds_t themselves in place of their norms.

    Returns:
        A function of the same arguments that returns `(loss, grads, norms)`, with `has_aux`
        `((loss, aux), grads, norms)`. `norms` maps the name of each recurrence to |dL/ds_t|,
        `[T, B]` for states `[B, H]`: the norm over the last axis and over all leaves of the state.
        With `adjoints`, to a tuple of the leaves' dL/ds_t, `[T, B, H]`: an LSTM's c and h. Norms of
        bfloat16 and float16 are computed in float32.

        - Names are paths of modules, as "Classifier/RNN_0", where the framework or a
          `jax.named_scope` gives them; else the function and line of your own file. A name that
          comes again gets "#2".
        - Index t is the position in the given sequence, also of a scan with `reverse=True` and of
          inputs that are reversed right before their scan (`x[::-1]`, Flax's `RNN(reverse=True)`
          and `Bidirectional`, with `seq_lengths` too).
        - A scan within a scan has an axis more in front, for the outer one's steps. One within a
          shard_map has one for the devices over which its state differs, of size 1 if none.
        - Units are those of the loss: if it is a mean over B examples, 1/B is in dL/ds_t.
        - dL/ds_t is taken where the step computes s_t, so it holds every path into the future,
          the output of step t and other leaves computed from this one included. `rnn_jax.unroll`
          gives the adjoints of its own backward pass, in which each leaf has its own paths alone
          (an LSTM's c without the way through h_t of the same step); a stack has a name for each
          layer, with what reaches it through the layers above.
        - A leaf of a carry is shown if it is recurrent state: floating, and computed from its own
          old value, directly or through other leaves. A value that is only held, moved,
          overwritten, added to or limited by a maximum is not: a counter, an accumulated loss,
          the last output kept. Leaves of other batch axes than the rest have a name of their own.

    Raises:
        ValueError: no recurrence in the loss, with what was looked at; a loss that is not a real
            scalar; arguments that cannot be differentiated by; names that select nothing.

    Loss and gradients are those of `jax.value_and_grad`, to the last bit. It works under `jit`,
    `vmap`, `pmap`, `shard_map`, on explicit meshes, and within scans; as a function of the user's
    it belongs under `jit`, without which it is traced and compiled anew at every call. A function
    with a derivative of its own (`jax.custom_vjp`) keeps that for its gradients; dL/ds_t within it
    is that of the function itself, for which it runs once more. A `while_loop` has no gradient in
    reverse mode: one that carries floating state computed from the arguments is named in a warning.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> import rnn_jax
    >>> class Classifier(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, xs):
    ...         return nn.Dense(3)(nn.RNN(nn.GRUCell(8))(xs)[:, -1])
    >>> model, xs = Classifier(), jnp.ones((4, 20, 2))
    >>> params = model.init(jax.random.key(0), xs)
    >>> def loss_fn(params, xs):
    ...     return jnp.mean(model.apply(params, xs) ** 2)
    >>> loss, grads, norms = jax.jit(rnn_jax.watch(loss_fn))(params, xs)
    >>> {name: norm.shape for name, norm in norms.items()}
    {'Classifier/RNN_0': (20, 4)}
    """

    @functools.wraps(loss_fn, updated=())
    def watched(*args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
        traced = trace_loss(loss_fn, argnums, has_aux, args, kwargs)
        found = find_recurrences(traced.program.jaxpr)
        if not found.recurrences:
            raise ValueError(nothing_found(found))
        if found.unwatchable:
            warnings.warn(
                f"rnn_jax.watch shows no dL/ds_t of {', '.join(found.unwatchable)}", stacklevel=2
            )
        numbered = number_slots(selected(found.recurrences, select))
        plan = make_plan(traced.program.jaxpr, numbered)
        zeros = {
            slot: _zeros_for(recurrence, leaf)
            for recurrence, slots in numbered
            for leaf, slot in zip(recurrence.leaves, slots, strict=True)
        }

        def loss_and_aux(leaves: list[Any], zeros: dict[int, Array]) -> tuple[Any, list[Any]]:
            loss, *aux = evaluate(traced.program, plan, zeros, leaves)
            return loss, aux

        (loss, aux), (grads, cotangents) = jax.value_and_grad(
            loss_and_aux, argnums=(0, 1), has_aux=True
        )(traced.leaves, zeros)
        shown: dict[str, Any] = {}
        for recurrence, slots in numbered:
            if adjoints:
                shown[recurrence.name] = tuple(cotangents[slot] for slot in slots)
            else:
                own = [cotangents[slot] for slot in dict.fromkeys(slots)]
                shown[recurrence.name] = _norm(own, recurrence.leaves[0].aval.ndim)
        value = (loss, traced.restore_aux(aux)) if has_aux else loss
        return value, traced.restore_grads(grads), shown

    return watched


def _zeros_for(recurrence: Recurrence, leaf: Leaf) -> Array:
    """Zeros `[*outer, T, *leaf]`, spread over devices as the leaf is."""
    sizes = (*(outer.size for outer in recurrence.outer), recurrence.num_steps)
    zeros = jnp.zeros((*sizes, *leaf.aval.shape), leaf.aval.dtype)
    own = {axis for outer in recurrence.outer for axis in outer.mesh_axes}
    spec = [outer.mesh_axes or None for outer in recurrence.outer]
    spec = [*spec, None, *leaf.aval.sharding.spec]
    mesh = leaf.aval.sharding.mesh
    if any(axis is not None for axis in spec) and mesh.explicit_axes:
        zeros = jax.sharding.reshard(zeros, NamedSharding(mesh, PartitionSpec(*spec)))
    varying = varying_axes(leaf.aval) - own
    return lax.pcast(zeros, tuple(varying), to="varying") if varying else zeros


def _norm(adjoints: Sequence[Array], unit_axes: int) -> Array:
    """The norm over the last axis of all leaves `[T, *batch, H]`, in float32 at least."""
    whole = [jnp.abs(a) if jnp.iscomplexobj(a) else a for a in adjoints]
    precise = [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in whole]
    if unit_axes == 0:  # A state of one number is its own only unit.
        precise = [a[..., None] for a in precise]
    if any(a.size == 0 for a in precise):
        return jnp.zeros(precise[0].shape[:-1], jnp.result_type(*precise))
    return state_norm(precise, precise[0].ndim - 1)
