"""Where arrays lie on a device mesh, read off their types, and carries that must lie there too.

On an Explicit mesh the type of an array says which of its axes are split over which mesh axes;
inside `jax.shard_map` it says over which (Manual) mesh axes its numbers vary. `lax.scan` wants a
carry whose type no step changes, and `jax.custom_vjp` cotangents with the types of its arguments,
so a state that was made as zeros is given the type of the data before anything runs. On one device
and on an Auto mesh the types say nothing, and every function here returns what it was given.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rnn_jax.types import Array, Params

Tree = TypeVar("Tree")
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _arrays(tree: Any) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def is_split(x: Array) -> bool:
    """Whether an Explicit mesh splits one of the axes of x."""
    return isinstance(x, jax.Array) and any(jax.typeof(x).sharding.spec)


def varying(tree: Any) -> frozenset[str]:
    """The Manual mesh axes over which any leaf varies."""
    types = (jax.typeof(leaf).manual_axis_type.varying for leaf in _arrays(tree))
    return frozenset().union(*types)


def batch_axes(params: Params, *data: Any) -> tuple[str, ...]:
    """The Manual mesh axes that split the examples of one batch: data vary over them, params not.

    Sums over the batch must go over these axes too. An axis over which params vary as well has a
    network of its own on each device. With `jax.shard_map(check_vma=False)` and under `jax.pmap`
    nothing is known, and every device counts its own examples as the batch.
    """
    return tuple(sorted(varying(data) - varying(params)))


def vary(tree: Tree, axes: frozenset[str]) -> Tree:
    """The same numbers, as ones that may vary over these Manual axes; `psum` is its transpose."""

    def cast(leaf: Any) -> Any:
        missing = axes - varying(leaf)
        return lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def total(x: Array, axes: tuple[str, ...]) -> Array:
    """The sum over all devices along these Manual axes, of sums over each one's own examples."""
    return lax.psum(x, axes) if axes else x


def largest(x: Array, axes: frozenset[str] | tuple[str, ...]) -> Array:
    """The maximum over all devices along these Manual axes; it has no derivative."""
    return lax.pmax(lax.stop_gradient(x), tuple(sorted(axes))) if axes else x


def mean(x: Array, axes: tuple[str, ...], axis: int | tuple[int, ...] | None = None) -> Array:
    """`jnp.mean`, over all devices along these Manual axes too."""
    own = jnp.mean(x, axis=axis)
    return lax.pmean(own, axes) if axes else own


def batch_size(shape: tuple[int, ...], axes: tuple[str, ...]) -> int:
    """Number of examples in a batch `[*shape]` on each device, on all of them together."""
    return math.prod(shape) * math.prod(lax.axis_size(axis) for axis in axes)


def everywhere(holds: Array) -> Array:
    """Whether a bool scalar is True on all devices: one answer for those over which it varies."""
    axes = tuple(sorted(varying(holds)))
    return lax.psum((~holds).astype(jnp.int32), axes) == 0 if axes else holds


def gather_batch(x: Array, axis: int, axes: tuple[str, ...]) -> Array:
    """The examples of all devices on each of them; `axis` of x counts examples."""
    if axes:
        return lax.all_gather(x, axes, axis=axis, tiled=True)
    if not is_split(x):
        return x
    sharding = jax.typeof(x).sharding
    spec = [None if n == axis else part for n, part in enumerate(sharding.spec)]
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def beside(tree: Tree, like: Any) -> Tree:
    """Numbers made inside, on the mesh on which `like` lies and varying as it does."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in _arrays(like)]
    mesh = next((m for m in meshes if not m.empty and AxisType.Explicit in m.axis_types), None)

    def put(leaf: Any) -> Any:
        if mesh is None or not jax.typeof(leaf).sharding.mesh.empty:
            return leaf
        return jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec()))

    return vary(jax.tree.map(put, tree), varying(like))


def align(params: Params, batch_ndim: int, *parts: tuple[Any, int]) -> tuple[Any, ...]:
    """Gives everything that meets in a scan the same batch: split alike, varying alike.

    Args:
        params: are only made to vary over the Manual axes over which the data do.
        batch_ndim: number of batch axes.
        parts: `(tree, leading)`, leaves with `leading` axes before those of the batch. The first
            that is split says how the others are to be.

    Returns:
        params, and the tree of each part.
    """
    trees = [tree for tree, _ in parts]
    leaves = [(leaf, leading) for tree, leading in parts for leaf in _arrays(tree)]
    batch: list[Any] = [None] * batch_ndim
    mesh: Any = None
    for leaf, leading in leaves:
        if is_split(leaf):
            sharding = jax.typeof(leaf).sharding
            mesh = sharding.mesh if mesh is None else mesh
            own = sharding.spec[leading : leading + batch_ndim]
            batch = [old or new for old, new in zip(batch, own, strict=True)]

    def split_alike(leaf: Any, leading: int) -> Any:
        spec = [*jax.typeof(leaf).sharding.spec]
        wanted = spec[:leading] + batch + spec[leading + batch_ndim :]
        if wanted == spec:
            return leaf
        return jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec(*wanted)))

    if any(batch):
        trees = [
            jax.tree.map(functools.partial(split_alike, leading=leading), tree)
            for tree, leading in parts
        ]
    axes = varying((params, trees))
    return vary(params, axes), *vary(trees, axes)


def filled(
    value: Any, dtype: Any, like: Array, num_axes: int, leading: tuple[int, ...] = ()
) -> Array:
    """One value everywhere: `[*leading, *axes]`, placed like `like`, whose first axes these are.

    Args:
        value: a number.
        dtype: of the result.
        like: the array whose first `num_axes` axes are taken, their size and their place.
        num_axes: how many.
        leading: sizes of axes to put before them, whole on every device.
    """
    shape = (*leading, *like.shape[:num_axes])
    if not isinstance(like, jax.Array):
        return jnp.full(shape, value, dtype)
    place = None
    if is_split(like):
        sharding = jax.typeof(like).sharding
        own = sharding.spec[:num_axes]
        place = NamedSharding(sharding.mesh, PartitionSpec(*(None,) * len(leading), *own))
    return vary(jnp.full(shape, value, dtype, out_sharding=place), varying(like))


def on_its_mesh(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Runs a function in the context of the Explicit mesh that its arguments are split over.

    JAX wants `jax.set_mesh` around Explicit arrays: without it `vmap` and gradients by arrays off
    the mesh fail. Where a mesh is set, or none is needed, the function runs as it is.
    """

    @functools.wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        split = next(filter(is_split, _arrays((args, kwargs))), None)
        if split is None or not jax.sharding.get_abstract_mesh().empty:
            return function(*args, **kwargs)
        mesh = _mesh_set(split)
        if mesh is None:
            return _traced_on(jax.typeof(split).sharding.mesh, function, args, kwargs)
        with mesh:
            return function(*args, **kwargs)

    return run


def _mesh_set(x: Array) -> contextlib.AbstractContextManager[Any] | None:
    """`jax.set_mesh` of an array's own mesh; None while JAX traces, which refuses it then."""
    mesh = None if isinstance(x, jax.core.Tracer) else getattr(x.sharding, "mesh", None)
    if not isinstance(mesh, Mesh):
        return None
    try:
        return jax.set_mesh(mesh)
    except ValueError:
        return None


def _traced_on(
    mesh: AbstractMesh, function: Callable[..., Result], args: Any, kwargs: Any
) -> Result:
    """The function as one program, which may then name a mesh that it knows the shape of alone."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.core.Tracer)]

    def program(traced: list[Array]) -> Result:
        given = dict(zip(places, traced, strict=True))
        args, kwargs = jax.tree.unflatten(
            structure, [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        )
        return function(*args, **kwargs)

    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(program, inline=True)([leaves[i] for i in places])
