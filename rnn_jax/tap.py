"""Where a cotangent can be read: `tap` on one value, `adjoint_sites` beside a hand-written rule."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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


def _tap_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    # Where nobody differentiates by `zero`, nothing is left of it.
    known = [t for t in tangents if not isinstance(t, SymbolicZero)]
    return primals[0], sum(known[1:], known[0]) if known else tangents[0]


tap.defjvp(_tap_jvp, symbolic_zeros=True)


@jax.custom_jvp
def cut(value: Array, mark: Array) -> Array:
    """`value`, to the last bit; what reaches it on the way back ends at `mark` where that is 1.

    Where `mark` is 0 the gradient goes on into what `value` was computed from, too.
    """
    del mark
    return value


@cut.defjvp
def _cut_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    value, mark = primals
    through = jnp.where(mark == 0, tangents[0], jnp.zeros_like(tangents[0]))
    return value, through + tangents[1]


adjoint_sites_p = Primitive("adjoint_sites")
"""Zeros `[T, *shape]` for each of the first `num_states` operands `[*shape]`.

A function with a derivative of its own, such as `rnn_jax.unroll`, hands them to it and returns
dL/ds_t as their cotangent. In the jaxpr of a loss they mark where `rnn_jax.watch` puts its own.
The other operands are what the states depend on: the zeros get a batch axis where one of them has.
"""
adjoint_sites_p.multiple_results = True


def adjoint_sites(
    state: State, num_steps: int, depends_on: Any, label: str = "", cell: Any = None
) -> State:
    """Zeros `[T, ...]` like the states of a recurrence that starts from `state`.

    Args:
        state: s_0, leaves `[..., H]`.
        num_steps: T.
        depends_on: everything else that the recurrence is computed from.
        label: added to the name under which the recurrence is shown.
        cell: what is unrolled, for `rnn_jax.inspect`.
    """
    leaves, tree = jax.tree.flatten(state)
    others, other_tree = jax.tree.flatten(depends_on)
    zeros = adjoint_sites_p.bind(
        *leaves,
        *others,
        num_states=len(leaves),
        num_steps=num_steps,
        label=label,
        source=Source(cell, tree, other_tree),
    )
    return jax.tree.unflatten(tree, zeros)


class Source(NamedTuple):
    """What an `adjoint_sites` stands beside: the cell, and how its operands belong together."""

    cell: Any
    state: Any
    depends_on: Any


def _zeros(
    *operands: Array, num_states: int, num_steps: int, label: str, source: Source
) -> list[Array]:
    del label, source
    return [jnp.zeros((num_steps, *s.shape), s.dtype) for s in operands[:num_states]]


def _zeros_in_place(*operands: Array, **params: Any) -> list[Array]:
    """The same outside of `jit`, on an Explicit mesh where the state is."""
    num_steps, states = params["num_steps"], operands[: params["num_states"]]
    return [jnp.zeros_like(jnp.broadcast_to(s[None], (num_steps, *s.shape))) for s in states]


def varying_axes(aval: Any) -> frozenset[str]:
    """The mesh axes of a shard_map over which a value differs, of its type."""
    return aval.manual_axis_type.varying


def _abstract_zeros(
    *operands: Any, num_states: int, num_steps: int, label: str, source: Source
) -> list[Any]:
    del label, source
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


adjoint_sites_p.def_impl(_zeros_in_place)
adjoint_sites_p.def_abstract_eval(_abstract_zeros)
batching.primitive_batchers[adjoint_sites_p] = _batch
ad.primitive_jvps[adjoint_sites_p] = _jvp
mlir.register_lowering(adjoint_sites_p, mlir.lower_fun(_zeros, multiple_results=True))


sited_states_p = Primitive("sited_states")
"""The states s_1..s_T that came out of a recurrence with sites: its first operands as they are.

The others are the sites. Nothing is computed and nothing differentiated: it marks, for
`rnn_jax.inspect`, where the direct part of dL/ds_t is to be read.
"""
sited_states_p.multiple_results = True


def sited_states(states: State, sites: State) -> State:
    """`states`, marked as those whose sites these are."""
    leaves, tree = jax.tree.flatten(states)
    return jax.tree.unflatten(tree, sited_states_p.bind(*leaves, *jax.tree.leaves(sites)))


def _first_half(*operands: Any) -> list[Any]:
    return list(operands[: len(operands) // 2])


def _batch_states(operands: Any, axes: Any) -> tuple[list[Array], list[Any]]:
    return sited_states_p.bind(*operands), _first_half(*axes)


def _states_jvp(primals: Any, tangents: Any) -> tuple[list[Array], list[Any]]:
    return sited_states_p.bind(*primals), _first_half(*tangents)


sited_states_p.def_impl(_first_half)
sited_states_p.def_abstract_eval(_first_half)
batching.primitive_batchers[sited_states_p] = _batch_states
ad.primitive_jvps[sited_states_p] = _states_jvp
mlir.register_lowering(sited_states_p, mlir.lower_fun(_first_half, multiple_results=True))
