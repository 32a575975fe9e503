"""A batch spread over a mesh in every way there is, and where its results lie."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import problem

B, T, H = 4, 5, 3
BATCH, STEPS = PartitionSpec("data"), PartitionSpec(None, "data")
WHOLE = PartitionSpec()

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Such small programs take longer to compile than to run."""


class Results(NamedTuple):
    """What a program returns, by where it lies on a mesh.

    Attributes:
        whole: the same on every device: losses, gradients of parameters, means over the batch.
        batch: leaves `[B, ...]`, each device having its own examples.
        steps: leaves `[T, B, ...]`, likewise.
    """

    whole: Any = ()
    batch: Any = ()
    steps: Any = ()


def step_losses(states):
    """`[T, B]`; no two leaves of the states count alike."""
    leaves = enumerate(jax.tree.leaves(states), 1)
    return sum(jnp.sum(jnp.sin(n * leaf), axis=range(2, leaf.ndim)) for n, leaf in leaves)


def whole_sum(values):
    """The sum over the whole batch, inside `shard_map` too."""
    return jax.lax.psum(jnp.sum(values), tuple(jax.typeof(values).manual_axis_type.varying))


def merged(results):
    return Results(*zip(*results, strict=True))


def given(cells):
    """Params and states of the cells, xs and lengths: random, on one device."""
    problems = [problem(cell, (B,), T) for cell in cells]
    return (
        tuple(p.params for p in problems),
        tuple(p.state for p in problems),
        problems[0].xs,
        jnp.array([3, 5, 1, 4]),
    )


PLACES = (WHOLE, BATCH, STEPS, BATCH)
"""Of params, state, xs and lengths."""


def compiled(program, *arguments):
    return jax.jit(program).lower(*arguments).compile(FAST)(*arguments)


def on_mesh(kind, size, program, arguments):
    """A program, its context and its arguments, their batch spread over so many devices."""
    devices, axis = jax.devices()[:size], AxisType.Auto if kind == "auto" else AxisType.Explicit
    mesh = jax.make_mesh((size,), ("data",), (axis,), devices=devices)
    placed = [
        jax.device_put(tree, NamedSharding(mesh, place))
        for tree, place in zip(arguments, PLACES, strict=True)
    ]
    if kind == "manual":
        program = jax.shard_map(
            program, mesh=mesh, in_specs=PLACES, out_specs=Results(WHOLE, BATCH, STEPS)
        )
    context = jax.set_mesh(mesh) if kind == "explicit" else contextlib.nullcontext()
    return program, context, placed


def check_places(results, size):
    """Every device holds its own examples, and the whole of what is one for all of them."""
    for leaf in jax.tree.leaves(results.whole):
        assert leaf.sharding.is_fully_replicated
    for axis, tree in enumerate((results.batch, results.steps)):
        for leaf in jax.tree.leaves(tree):
            assert {shard.data.shape[axis] for shard in leaf.addressable_shards} == {B // size}
