"""Back-propagation through time, adjoints first.

    s_t = step(theta, s_{t-1}, x_t)                    `forward`: a scan
    lambda_t = e_t + J_{t+1}^T lambda_{t+1}            `adjoints`: a reverse scan, lambda its carry
    dL/dtheta = sum_t (ds_t/dtheta)^T lambda_t         `parameter_gradients`: one product over all t

e_t is the part of dL/ds_t that goes through the output of step t alone, lambda_t the whole of it.
Plain autodiff adds a weight gradient to its carry at each step of the reverse scan and forgets
lambda_t. Here the scan does the least that must be serial, and lambda_t for every t comes for free.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.cells import Affine, Cell
from rnn_jax.tap import tap
from rnn_jax.types import Array, Params, State


class Trajectory(NamedTuple):
    """A forward run, and what its linearization needs.

    Attributes:
        initial: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        states: s_1..s_T, leaves `[T, B, H]`.
        kept: what `activate`'s derivative needs of each step, leaves `[T, B, ...]`; None
            for a cell without `affine` parts, and where the slope is told from the state.
        perturbations: what was added to the states as they were computed, or None.
        valid: `[T, B]`, False on padding; None where there is none.
    """

    initial: State
    xs: Array
    states: State
    kept: Any = None
    perturbations: State | None = None
    valid: Array | None = None


class Linearization(NamedTuple):
    """Every step's transposed Jacobian J_t^T, as a function and what it needs at each t.

    Attributes:
        pull: `(lambda_t, local_t) -> J_t^T lambda_t`.
        locals: pytree with a leading `[T]` axis.
    """

    pull: Callable[[State, Any], State]
    locals: Any


def where_valid(valid: Array | None, new: State, old: State) -> State:
    """`new` where an example's sequence still runs, `old` on its padding; valid `[..., B]`."""
    if valid is None:
        return new

    def select(a: Array, b: Array) -> Array:
        mask = jnp.expand_dims(valid, range(valid.ndim, a.ndim))
        return jnp.where(jnp.broadcast_to(mask, a.shape), a, b)

    return jax.tree.map(select, new, old)


HOISTED_ELEMENTS = 2**26
"""Largest size of x_t U for all t at once, in numbers: a quarter of a gigabyte in float32."""


def hoists_input(affine: Affine, params: Params, xs: Array) -> bool:
    """Whether x_t U is computed for all t before the scan, or at each step to save its memory."""
    projected = jax.eval_shape(affine.project, params, xs)
    return sum(leaf.size for leaf in jax.tree.leaves(projected)) <= HOISTED_ELEMENTS


def forward(
    cell: Cell,
    params: Params,
    initial: State,
    xs: Array,
    perturbations: State | None = None,
    valid: Array | None = None,
    sites: State | None = None,
) -> Trajectory:
    """Runs the cell over xs; on padding the state stays as it was.

    `sites` are zeros like the states: where JAX differentiates this scan by itself, their gradient
    is lambda_t, and nothing is added.
    """
    affine = cell.affine
    hoisted = affine is not None and hoists_input(affine, params, xs)
    inputs = affine.project(params, xs) if affine is not None and hoisted else xs

    def body(state: State, inputs_t: Any) -> tuple[State, Any]:
        x, perturbation, valid_t, site = inputs_t
        if affine is None:
            new, kept = cell.step(params, state, x), None
        else:
            projected = x if hoisted else affine.project(params, x)
            new, kept = _keep(affine, params, state, projected, affine.recur(params, state))
        if perturbation is not None:
            new = jax.tree.map(jnp.add, new, perturbation)
        if site is not None:
            new = jax.tree.map(tap, new, site)
        new = where_valid(valid_t, new, state)
        return new, (new, kept)

    _, (states, kept) = lax.scan(body, initial, (inputs, perturbations, valid, sites))
    return Trajectory(initial, xs, states, kept, perturbations, valid)


def trajectory_through(
    cell: Cell, params: Params, initial: State, xs: Array, states: State
) -> Trajectory:
    """The trajectory whose states are known; what is kept of each step is made for all t at once.

    Args:
        cell: any `Cell`.
        params: its parameters.
        initial: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        states: s_1..s_T as the cell computed them, leaves `[T, B, H]`.
    """
    trajectory = Trajectory(initial, xs, states)
    affine = cell.affine
    if affine is None or affine.slope is not None:
        return trajectory
    previous = previous_states(trajectory)
    projected, recurred = affine.project(params, xs), affine.recur(params, previous)
    return trajectory._replace(kept=_keep(affine, params, previous, projected, recurred)[1])


def _keep(
    affine: Affine, params: Params, state: State, projected: Any, recurred: Any
) -> tuple[State, Any]:
    """s_t, and what the derivative of `activate` needs: nothing, what it names, or (a_t, r_t)."""
    if affine.derivative is not None:
        return affine.derivative.keep(state, projected, recurred)
    new = affine.activate(params, state, projected, recurred)
    return new, None if affine.slope is not None else (projected, recurred)


def previous_states(trajectory: Trajectory) -> State:
    """s_0..s_{T-1}: what each step started from."""
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]),
        trajectory.initial,
        trajectory.states,
    )


def activations(trajectory: Trajectory) -> State:
    """The states as the cell computed them, before anything was added."""
    if trajectory.perturbations is None:
        return trajectory.states
    return jax.tree.map(jnp.subtract, trajectory.states, trajectory.perturbations)


def linearize(cell: Cell, params: Params, trajectory: Trajectory) -> Linearization:
    """The steps' transposed Jacobians along a trajectory.

    A cell with `affine` parts leaves the reverse scan the product by W^T and a few elementwise
    operations. One without is linearized at each step.
    """
    affine = cell.affine
    if affine is None:

        def pull_step(adjoint: State, local: tuple[State, Array]) -> State:
            previous, x = local
            return jax.vjp(lambda state: cell.step(params, state, x), previous)[1](adjoint)[0]

        return Linearization(pull_step, (previous_states(trajectory), trajectory.xs))

    split, locals_ = _split(affine, params, trajectory)
    # recur is affine in the state, so its transpose is the same wherever it is taken.
    transpose = jax.vjp(lambda state: affine.recur(params, state), trajectory.initial)[1]

    def pull(adjoint: State, local: Any) -> State:
        past, _, recurred = split(adjoint, local)
        return jax.tree.map(jnp.add, past, transpose(recurred)[0])

    return Linearization(pull, locals_)


Split = Callable[[State, Any], tuple[State, Any, Any]]
"""`(lambda_t, local_t) -> (dL/ds_{t-1} but for what goes through r_t, dL/da_t, dL/dr_t)`."""


def _split(affine: Affine, params: Params, trajectory: Trajectory) -> tuple[Split, Any]:
    """`activate` transposed, elementwise, and what it needs at each t."""
    states = activations(trajectory)
    slope, derivative = affine.slope, affine.derivative
    if slope is not None:

        def by_slope(adjoint: Array, state: Array) -> tuple[State, Array, Array]:
            delta = adjoint * slope(state)
            return jnp.zeros_like(adjoint), delta, delta

        return by_slope, states
    previous = previous_states(trajectory)
    if derivative is not None:

        def by_hand(adjoint: State, local: tuple[State, State, Any]) -> tuple[State, Any, Any]:
            return derivative.pull(*local, adjoint)

        return by_hand, (previous, states, trajectory.kept)

    def differentiated(adjoint: State, local: Any) -> tuple[State, Any, Any]:
        state, (projected, recurred) = local
        return jax.vjp(
            lambda s, a, r: affine.activate(params, s, a, r), state, projected, recurred
        )[1](adjoint)

    return differentiated, (previous, trajectory.kept)


def adjoints(
    linearization: Linearization,
    immediate: State,
    valid: Array | None = None,
) -> tuple[State, State]:
    """lambda_t = e_t + J_{t+1}^T lambda_{t+1} for every t.

    Args:
        linearization: J_t^T for t = 1..T.
        immediate: e_t, leaves `[T, B, H]`.
        valid: `[T, B]`; on padding lambda_t is exactly 0 and what reaches it passes through.

    Returns:
        lambda_1..lambda_T, leaves `[T, B, H]`, and dL/ds_0, leaves `[B, H]`.
    """

    def body(future: State, inputs: tuple[State, Any, Array | None]) -> tuple[State, State]:
        immediate_t, local, valid_t = inputs
        adjoint = jax.tree.map(jnp.add, immediate_t, future)
        past = where_valid(valid_t, linearization.pull(adjoint, local), adjoint)
        return past, adjoint

    nothing = jax.tree.map(lambda e: jnp.zeros_like(e[0]), immediate)
    initial, result = lax.scan(
        body, nothing, (immediate, linearization.locals, valid), reverse=True
    )
    return where_valid(valid, result, jax.tree.map(jnp.zeros_like, result)), initial


def preactivation_cotangents(
    cell: Cell, params: Params, trajectory: Trajectory, adjoint: State
) -> tuple[Any, Any]:
    """dL/da_t and dL/dr_t of a cell with `affine` parts, for all t at once; leaves `[T, B, G]`."""
    assert cell.affine is not None
    split, locals_ = _split(cell.affine, params, trajectory)
    _, projected, recurred = jax.vmap(split)(adjoint, locals_)
    return projected, recurred


def parameter_gradients(
    cell: Cell, params: Params, trajectory: Trajectory, adjoint: State
) -> tuple[Params, Array]:
    """dL/dtheta = sum_t (ds_t/dtheta)^T lambda_t, and dL/dx_t `[T, B, D]`, from lambda_t."""
    previous = previous_states(trajectory)
    affine = cell.affine
    if affine is None:
        steps = jax.vmap(cell.step, in_axes=(None, 0, 0))
        _, pullback = jax.vjp(lambda p, xs: steps(p, previous, xs), params, trajectory.xs)
        return pullback(adjoint)

    projected, recurred = preactivation_cotangents(cell, params, trajectory, adjoint)
    primal, pullback = jax.vjp(affine.project, params, trajectory.xs)
    # Of x in bfloat16 and a state in float32 the first product is bfloat16, its cotangent is not.
    projected = jax.tree.map(lambda c, p: c.astype(p.dtype), projected, primal)
    from_input, inputs = pullback(projected)
    (from_state,) = jax.vjp(lambda p: affine.recur(p, previous), params)[1](recurred)
    total = jax.tree.map(jnp.add, from_input, from_state)
    if affine.slope is None and affine.derivative is None:
        # Elementwise parameters inside the activation, such as a leak.
        activated = jax.vjp(lambda p: affine.activate(p, previous, *trajectory.kept), params)[1]
        total = jax.tree.map(jnp.add, total, activated(adjoint)[0])
    return total, inputs
