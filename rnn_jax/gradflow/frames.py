"""Directions carried along a trajectory by its Jacobians, forward and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import bptt
from rnn_jax.cells import Cell
from rnn_jax.decompositions import QR, qr
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.arguments import checked
from rnn_jax.gradflow.scaled import Scaled, apply, rescale
from rnn_jax.norms import flat_examples
from rnn_jax.placement import beside
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import run_forward


class Run(NamedTuple):
    """What each Jacobian of a trajectory is taken at; E is the number of examples.

    Attributes:
        params: the cell's parameters, in float32 at least.
        previous: s_0..s_{T-1}, leaves `[T, B, H]`.
        xs: `[T, B, D]`.
        flat: s_0, `[E, N]`.
        restore: `[E, N]` -> a state, leaves `[B, H]`.
        batch_ndim: number of axes of B.
    """

    params: Params
    previous: State
    xs: Any
    flat: Array
    restore: Callable[[Array], State]
    batch_ndim: int


def trajectory(cell: Cell, params: Params, state: State, xs: Any) -> Run:
    """The states that a cell runs through, each the place of a Jacobian; shapes were checked."""
    params, state, xs, _, batch_shape = checked(cell, params, state, xs)
    # A plain scan, so that derivatives of any order and mode go through.
    run = run_forward(cell._replace(affine=None), params, state, xs)
    finite.check_states(run.states)
    flat, restore = flat_examples(state, len(batch_shape))
    return Run(params, bptt.previous_states(run), xs, flat, restore, len(batch_shape))


def push(cell: Cell, run: Run, previous: State, x: Any, vectors: Scaled, careful: bool) -> Scaled:
    """J_t times each row of `vectors`, `[E, k, N]`, each at a scale of its own."""
    jvp = _forward(lambda state: cell.step(run.params, state, x), previous)

    def product(v: Array) -> Array:
        return flat_examples(jvp(run.restore(v)), run.batch_ndim)[0]

    return apply(jax.vmap(product, in_axes=1, out_axes=1), vectors, careful)


def _forward(step: Callable[[State], State], state: State) -> Callable[[State], State]:
    """J v as a function of v; a function with a derivative of its own has J^T alone."""
    try:
        return jax.linearize(step, state)[1]
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
    _, pull = jax.vjp(step, state)
    push = jax.linear_transpose(lambda adjoint: pull(adjoint)[0], state)
    return lambda v: push(v)[0]


def pull(cell: Cell, run: Run, previous: State, x: Any, vectors: Scaled, careful: bool) -> Scaled:
    """J_t^T times each row of `vectors`, `[E, k, N]`, each at a scale of its own."""
    _, vjp = jax.vjp(lambda state: cell.step(run.params, state, x), previous)

    def product(v: Array) -> Array:
        return flat_examples(vjp(run.restore(v))[0], run.batch_ndim)[0]

    return apply(jax.vmap(product, in_axes=1, out_axes=1), vectors, careful)


LARGEST_TRACED_FRAME = 1024
"""Units of a state whose frame is made while the program is traced."""


def random_frame(run: Run, count: int | None = None) -> Array:
    """Orthonormal `[E, N, k]`: the identity's columns may lie in invariant subspaces for good.

    It depends on no argument, so that NumPy makes it while the program is traced, where it is
    small: to trace a large program must not take its memory.
    """
    size, dtype = run.flat.shape[1], run.flat.dtype
    if size > LARGEST_TRACED_FRAME:
        normal = jax.random.normal(jax.random.key(0), (size, size), dtype)
        frame = qr(normal[:, :count]).Q
    else:
        nowhere = jax.sharding.AbstractMesh((), ())
        with jax.ensure_compile_time_eval(), jax.sharding.use_abstract_mesh(nowhere):
            normal = jax.random.normal(jax.random.key(0), (size, size), dtype)
            values, triangle = np.linalg.qr(np.asarray(normal[:, :count]))
        frame = jnp.asarray(values * np.sign(np.diagonal(triangle)), dtype)
    frame = beside(frame, run.flat)
    # Of every example the same, and where its state is.
    return jax.vmap(lambda state: frame + jnp.zeros_like(state[0]))(run.flat)


def columns(frame: Array) -> Scaled:
    """The columns of `[E, N, k]` as scaled vectors `[E, k, N]`."""
    vectors = jnp.swapaxes(frame, 1, 2)
    return rescale(vectors, jnp.zeros_like(vectors[..., 0], jnp.int32))


def frame_of(vectors: Scaled) -> QR:
    """The vectors made orthonormal again, columns of Q `[E, N, k]`."""
    return jax.vmap(qr)(jnp.swapaxes(vectors.value, 1, 2))
