"""Devices and hosts: start-up, meshes of networks or of examples, and moves between hosts."""

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

LANES = "lanes"
"""The mesh axis along which networks are spread."""
EXAMPLES = "examples"
"""The mesh axis along which the examples of one network's batch are spread."""

Tree = TypeVar("Tree")


def use_cpu_devices(count: int = 0) -> None:
    """Makes several devices of a CPU; without effect once a device was used.

    Args:
        count: how many; 0 for one a core.

    All devices share one pool of threads, which XLA makes as large as the number of cores. A
    program holds a thread of it for each device while its products wait for others. NPROC, which
    XLA reads, gives the pool a second thread for each device; a larger NPROC of yours stays.
    """
    count = count or os.cpu_count() or 1
    given = os.environ.get("NPROC", "")
    own = int(given) if given.isdecimal() else 0
    os.environ["NPROC"] = str(max(2 * count, os.cpu_count() or 1, own))
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def connect(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a distributed run; call it before anything touches a device.

    Args:
        coordinator_address: `host:port` of process 0. Empty lets JAX ask SLURM, Kubernetes, Open
            MPI or the TPU pod it runs on.
        num_processes: how many there are; 0 to ask likewise.
        process_id: which one this is; -1 to ask likewise.

    Raises:
        ValueError: some of the three are given and others not, or JAX cannot tell them.
    """
    given = (bool(coordinator_address), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator_address={coordinator_address!r}, num_processes={num_processes}, "
            f"process_id={process_id}: give all three, or none where SLURM or a TPU pod tells them"
        )
    # Collectives between CPUs need a library of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if all(given):
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    else:
        jax.distributed.initialize()


def lanes_mesh(devices: Any = None) -> Mesh:
    """A mesh of one axis over all devices of all processes, or over those given."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (LANES,))


def spread(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays `[N, ...]` on the mesh, N split over its devices.

    In a run of several processes each of them holds the same arrays and hands over its own part.
    """
    sharding = NamedSharding(mesh, PartitionSpec(LANES))

    def put(leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def examples_mesh(devices: Any = None) -> Mesh:
    """A mesh of one axis for the examples of a batch, over all devices or over those given."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (EXAMPLES,))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a whole copy of every array on each device of a mesh: parameters, optimizer states."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_examples(tree: Tree, mesh: Mesh, axis: int = 0, axis_name: str | None = None) -> Tree:
    """Splits the batch axis of every array over a mesh; inside a jitted program, says to.

    Args:
        tree: arrays whose `axis` counts examples, such as a carry `[B, H]`, or, with axis 1,
            inputs `[T, B, D]`. Made in a jitted program, each device makes its own part only.
        mesh: of `examples_mesh`, or any other; of Auto axes or Explicit ones (`jax.make_mesh`), for
            which JAX wants a jitted program that makes its own data to run in `jax.set_mesh`.
        axis: which one is B.
        axis_name: the mesh axis to split it over; needed where a mesh has several. Arrays are
            whole along the others, and along those of their own axes that are not B.

    Raises:
        ValueError: B is not a multiple of the number of devices along the mesh axis; several mesh
            axes and no name, or a name that the mesh does not have.

    With parameters replicated and data split, a training step is data-parallel: every device runs
    the network over its own examples, and their gradients are added up. A trace is the same as on
    one device.

    >>> import jax.numpy as jnp
    >>> from rnn_jax import sharding
    >>> mesh = sharding.examples_mesh()
    >>> sharding.split_examples(jnp.zeros((4 * mesh.size, 3)), mesh).shape[1]
    3
    """
    name = _examples_axis(mesh, axis_name)
    count = mesh.shape[name]
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[axis] % count:
            raise ValueError(
                f"a batch of {leaf.shape[axis]} cannot be split over {count} devices; give a "
                f"multiple of {count}"
            )
    place = NamedSharding(mesh, PartitionSpec(*(None,) * axis, name))
    # On an Explicit axis a constraint would only check what the type of the array says already.
    explicit = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[name] == AxisType.Explicit
    move = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    return jax.tree.map(lambda leaf: move(leaf, place), tree)


def _examples_axis(mesh: Mesh, axis_name: str | None) -> str:
    """The name of the mesh axis for the examples: the one given, ours, or the only one."""
    names = mesh.axis_names
    if axis_name is None:
        if EXAMPLES in names:
            return EXAMPLES
        if len(names) == 1:
            return names[0]
        raise ValueError(
            f"the mesh has the axes {', '.join(names)}: give axis_name, the one to split the "
            "examples over"
        )
    if axis_name not in names:
        raise ValueError(f"axis_name is {axis_name!r}, but the mesh has {', '.join(names)}")
    return axis_name


def gather(tree: Any) -> Any:
    """Arrays spread over a mesh as NumPy arrays, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def is_writer() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def from_writer(value: np.ndarray) -> np.ndarray:
    """The writing process's array in every process; all must call it with one of equal shape."""
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def only_writer(action: Callable[[], np.ndarray]) -> np.ndarray:
    """Runs `action` in the writing process alone, and returns its array in every process.

    Args:
        action: it may read and write files. Its array's shape may depend on what it finds.

    Raises:
        ValueError: the action raised one; its own in the writing process, one that points there in
            the others, so that none of them waits for ever.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = np.zeros(0, np.int64), None
    if is_writer():
        try:
            result = action()
        except ValueError as error:
            failure = error
    size = from_writer(np.asarray(-1 if failure else result.size, np.int64))
    if failure:
        raise failure
    if size < 0:
        raise ValueError("process 0 stopped, and its message says why")
    return from_writer(result if is_writer() else np.zeros(int(size), np.int64))
