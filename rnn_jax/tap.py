"""Where a cotangent can be read: `tap` on one value, `adjoint_sites` beside a hand-written rule."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from rnn_jax.types import Array, State


@jax.custom_jvp
def tap(value: Array, zero: Array) -> Array:
    """`value`, to the last bit; the gradient by `zero` is the gradient by `value`.

    As `value + zero`, but nothing is added and `zero` need never exist: its tangent alone counts.
    """
    del zero
    return value


@tap.defjvp
def _tap_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] + tangents[1]


adjoint_sites_p = Primitive("adjoint_sites")
"""Zeros `[T, *shape]` for each of the first `num_states` operands `[*shape]`.

A function with a derivative of its own, such as `rnn_jax.unroll`, hands them to it and returns
dL/ds_t as their cotangent. In the jaxpr of a loss they mark where `rnn_jax.watch` puts its own.
The other operands are what the states depend on: the zeros get a batch axis where one of them has.
"""
adjoint_sites_p.multiple_results = True


def adjoint_sites(state: State, num_steps: int, depends_on: Any, label: str = "") -> State:
    """Zeros `[T, ...]` like the states of a recurrence that starts from `state`.

    Args:
        state: s_0, leaves `[..., H]`.
        num_steps: T.
        depends_on: everything else that the recurrence is computed from.
        label: added to the name under which the recurrence is shown.
    """
    leaves, tree = jax.tree.flatten(state)
    others = jax.tree.leaves(depends_on)
    zeros = adjoint_sites_p.bind(
        *leaves, *others, num_states=len(leaves), num_steps=num_steps, label=label
    )
    return jax.tree.unflatten(tree, zeros)


def _zeros(*operands: Array, num_states: int, num_steps: int, label: str) -> list[Array]:
    del label
    return [jnp.zeros((num_steps, *s.shape), s.dtype) for s in operands[:num_states]]


def varying_axes(aval: Any) -> frozenset[str]:
    """The mesh axes of a shard_map over which a value differs, of its type."""
    return aval.manual_axis_type.varying


def _abstract_zeros(*operands: Any, num_states: int, num_steps: int, label: str) -> list[Any]:
    del label
    varying = frozenset().union(*map(varying_axes, operands))
    result = []
    for state in operands[:num_states]:
        spec = jax.sharding.PartitionSpec(None, *state.sharding.spec)
        result.append(
            state.update(
                shape=(num_steps, *state.shape),
                sharding=state.sharding.update(spec=spec),
                manual_axis_type=type(state.manual_axis_type)(varying=varying),
                weak_type=False,
            )
        )
    return result


def _batch(operands: Any, axes: Any, **params: Any) -> tuple[list[Array], list[int]]:
    pairs = list(zip(operands, axes, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    states = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in pairs[: params["num_states"]]
    ]
    zeros = adjoint_sites_p.bind(*states, *operands[len(states) :], **params)
    return zeros, [1] * len(states)  # Time comes first, the new axis after it.


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list[Array], list[Any]]:
    del tangents
    zeros = adjoint_sites_p.bind(*primals, **params)
    return zeros, [ad.Zero(jax.typeof(z).to_tangent_aval()) for z in zeros]


adjoint_sites_p.def_impl(_zeros)
adjoint_sites_p.def_abstract_eval(_abstract_zeros)
batching.primitive_batchers[adjoint_sites_p] = _batch
ad.primitive_jvps[adjoint_sites_p] = _jvp
mlir.register_lowering(adjoint_sites_p, mlir.lower_fun(_zeros, multiple_results=True))
