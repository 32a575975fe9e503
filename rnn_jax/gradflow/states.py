"""dL/ds_t at every time step, exact where float32 would give 0 or inf.

    lambda_t = e_t + J_{t+1}^T lambda_{t+1}

is scanned backward with lambda as a `Scaled` number: after each product the largest entry is
brought back to [1/2, 1) and the power of two goes into an integer; e_t is added at its own scale.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnn_jax import adjoint
from rnn_jax.adjoint import Linearization, Trajectory
from rnn_jax.cells import Cell
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.scaled import NO_EXPONENT, Scaled, add, log_norm, rescale
from rnn_jax.types import Array, Params, State, StepLosses
from rnn_jax.unroll import check_fit, run_forward, unroll, valid_steps, zero_perturbations


class LastStep(NamedTuple):
    """A loss at the last step only, given as such: it needs no e_t for the other steps.

    Attributes:
        loss: `s_T, leaves [B, H] -> [B]`.
    """

    loss: Callable[[State], Array]


def value_and_grad(cell: Cell, loss_fn: Callable[..., Array]) -> Callable[..., Any]:
    """Loss, parameter gradient and dL/ds_t for every t, from one backward pass.

    Args:
        cell: any `Cell`.
        loss_fn: `(states, *args) -> loss`, a scalar, or `[T, B]` (`[T]` without a batch axis): then
            the loss is the sum over t, averaged over the batch.

    Returns:
        A function `(params, state, xs, *args, lengths=None) -> (loss, grads, adjoints)`: grads like
        params, adjoints like the states, leaves `[T, B, H]`. In the dtype of the parameters;
        `state_gradients` has the logarithms where these leave its range.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> cell = rnn_jax.elman(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> state, xs = cell.initial_state(params, (3,)), jnp.ones((7, 3, 2))
    >>> evaluate = gradflow.value_and_grad(cell, lambda states: jnp.sum(states[-1] ** 2))
    >>> loss, grads, adjoints = evaluate(params, state, xs)
    >>> adjoints.shape, grads.W.shape
    ((7, 3, 4), (4, 4))
    """

    def evaluate(
        params: Params, state: State, xs: Array, *args: Any, lengths: Array | None = None
    ) -> tuple[Array, Params, State]:
        check_fit(cell, params, state, xs)
        finite.check_finite(params, state, xs)

        def loss(params: Params, perturbations: State) -> Array:
            states = unroll(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
            value = loss_fn(states, *args)
            if jnp.ndim(value) == 0:
                return value
            finite.check_step_losses(value, xs.shape[1:-1], xs.shape[0])
            return jnp.mean(jnp.sum(value, axis=0))

        value, (grads, adjoints) = jax.value_and_grad(loss, (0, 1))(
            params, zero_perturbations(state, xs.shape[0])
        )
        if finite.is_concrete(value) and not np.isfinite(value):
            finite.check_states(unroll(cell, params, state, xs, lengths=lengths))
        return value, grads, adjoints

    return evaluate


def state_gradients(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses | LastStep,
    *,
    lengths: Array | None = None,
    segment_length: int | None = None,
) -> Array:
    """ln|dL/ds_t| of each example at every time step, L = sum_t L_t of that example.

    Args:
        cell: any `Cell`.
        params: its parameters.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`.
        step_losses: `states -> [T, B]`; L_t must depend on s_t alone. Or `LastStep(s_T -> [B])`.
        lengths: `[B]`; losses on padding do not count, and there the result is -inf. A `LastStep`
            loss reads each example's last true state.
        segment_length: keep only every so-manyth state and compute the others again on the way
            back (for a `LastStep` loss); about sqrt(T) takes the least memory.

    Returns:
        `[T, B]` in nats (`[T]` without a batch axis). Row 0 is s_1. The norm is over all units of
        all leaves. -inf means exactly zero.

    Raises:
        ValueError: shapes that do not fit; a NaN or inf in the arguments, or in the states.

    The error of a logarithm is that of the matrix products, whatever its size: lambda is rescaled
    by powers of two at every step, so 1e-4000 is as good as 1. phi' is computed from phi(z), as
    autodiff does: a unit so saturated that its activation rounds to 1 has slope 0 (tanh beyond
    |z| = 8.7 in float32, 18.7 in float64).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> cell = rnn_jax.elman(2, "identity", recurrent_init=rnn_jax.initializers.identity(0.01))
    >>> params = cell.init(jax.random.key(0), 1)
    >>> losses = lambda states: states.sum(-1).at[:-1].set(0)
    >>> logs = gradflow.state_gradients(cell, params, jnp.zeros(2), jnp.zeros((1000, 1)), losses)
    >>> bool(jnp.allclose(logs[0] - logs[-1], 999 * jnp.log(0.01)))
    True
    """
    measure = _log_norms
    if segment_length is not None:
        return _segmented(cell, params, state, xs, step_losses, lengths, segment_length, measure)
    trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)
    return scan_adjoints(cell, params, trajectory, immediate, measure)


def leaf_gradients(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses | LastStep,
    *,
    lengths: Array | None = None,
) -> State:
    """`state_gradients` of each leaf of the state apart: an LSTM's c and h tell different stories.

    Returns:
        A pytree like the state of `[T, B]` in nats.

    Arguments and errors are those of `state_gradients`.
    """
    trajectory, immediate = prepare(cell, params, state, xs, step_losses, lengths)

    def measure(adjoint: Scaled) -> State:
        return jax.tree.map(lambda leaf: log_norm(Scaled(leaf, adjoint.exponent)), adjoint.value)

    return scan_adjoints(cell, params, trajectory, immediate, measure)


_forward = jax.jit(run_forward, static_argnums=0)


def prepare(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses | LastStep,
    lengths: Array | None,
) -> tuple[Trajectory, State]:
    """The forward run, and e_t of each example's own loss: leaves `[T, B, H]`.

    For a `LastStep` loss e_T alone, leaves `[B, H]`. Errors are those of `state_gradients`.
    """
    check_fit(cell, params, state, xs)
    finite.check_finite(params, state, xs)
    trajectory = _forward(
        cell, params, state, xs, valid=None if lengths is None else valid_steps(lengths, xs)
    )
    finite.check_states(trajectory.states)
    num_steps, batch_shape = xs.shape[0], xs.shape[1:-1]
    if isinstance(step_losses, LastStep):
        final = jax.tree.map(lambda s: s[-1], trajectory.states)
        return trajectory, last_immediate(step_losses, final, batch_shape)
    losses, pullback = jax.vjp(step_losses, trajectory.states)
    finite.check_step_losses(losses, batch_shape, num_steps)
    counted = jnp.ones_like(losses)
    if trajectory.valid is not None:
        counted = trajectory.valid.astype(losses.dtype)
    return trajectory, pullback(counted)[0]


def last_immediate(last: LastStep, final: State, batch_shape: tuple[int, ...]) -> State:
    """e_T of each example, leaves `[B, H]`."""
    losses, pullback = jax.vjp(last.loss, final)
    if losses.shape != batch_shape:
        raise ValueError(
            f"LastStep's loss returned shape {losses.shape}, but the batch has {batch_shape}: one "
            "loss for each example"
        )
    return pullback(jnp.ones_like(losses))[0]


def zero_scaled(like: State, batch_ndim: int) -> Scaled:
    """An exact zero, leaves like `like`, `[*batch, ...]`."""
    leaf = jax.tree.leaves(like)[0]
    return Scaled(
        jax.tree.map(jnp.zeros_like, like),
        jnp.full(leaf.shape[:batch_ndim], NO_EXPONENT, jnp.int32),
    )


def _log_norms(adjoint: Scaled) -> Array:
    return log_norm(adjoint)


def scan_adjoints(
    cell: Cell,
    params: Params,
    trajectory: Trajectory,
    immediate: State,
    measure: Callable[[Scaled], Any],
) -> Any:
    """Runs lambda_t backward over a trajectory and returns measure(lambda_t), leaves `[T, ...]`.

    `immediate` is e_t, leaves `[T, B, H]`, or e_T alone, leaves `[B, H]`.
    """
    batch_ndim = trajectory.xs.ndim - 2
    linearization = adjoint.linearize(cell, params, trajectory)
    start = zero_scaled(trajectory.initial, batch_ndim)
    leaf, state_leaf = jax.tree.leaves(immediate)[0], jax.tree.leaves(trajectory.states)[0]
    if leaf.ndim < state_leaf.ndim:
        start, immediate = rescale(immediate, jnp.zeros_like(start.exponent)), None
    step = functools.partial(_adjoint_step, linearization, measure)
    inputs = (immediate, linearization.locals, trajectory.valid)
    return lax.scan(step, start, inputs, reverse=True)[1]


def _adjoint_step(
    linearization: Linearization,
    measure: Callable[[Scaled], Any],
    future: Scaled,
    inputs: tuple[State | None, Any, Array | None],
) -> tuple[Scaled, Any]:
    """lambda_t from what reaches it of the future, and what goes on to t - 1."""
    immediate, local, valid = inputs
    current = future
    if immediate is not None:
        own = rescale(immediate, jnp.zeros_like(future.exponent))
        current = rescale(*add(own, future))
    past = rescale(linearization.pull(current.value, local), current.exponent)
    if valid is None:
        return past, measure(current)
    nothing = zero_scaled(current.value, current.exponent.ndim)
    return (
        adjoint.where_valid(valid, past, current),
        measure(adjoint.where_valid(valid, current, nothing)),
    )


def _segmented(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: StepLosses | LastStep,
    lengths: Array | None,
    segment_length: int,
    measure: Callable[[Scaled], Any],
) -> Array:
    """Nested checkpointing: only the states between segments are kept on the way forward."""
    if not isinstance(step_losses, LastStep):
        raise ValueError(
            "segment_length wants a loss of the last step, but step_losses is a function of all "
            "states; wrap it as gradflow.LastStep(loss of s_T)"
        )
    check_fit(cell, params, state, xs)
    num_steps = xs.shape[0]
    if not 1 <= segment_length <= num_steps:
        raise ValueError(
            f"segment_length is {segment_length}, but must be in 1..{num_steps}, the steps in xs"
        )
    finite.check_finite(params, state, xs)
    valid = None if lengths is None else valid_steps(lengths, xs)
    # What does not fill a segment comes first, as a segment of its own.
    head = num_steps % segment_length

    def forward(start: State, inputs: tuple[Array, Array | None]) -> Trajectory:
        return run_forward(cell, params, start, inputs[0], valid=inputs[1])

    def skip(start: State, inputs: tuple[Array, Array | None]) -> tuple[State, State]:
        states = forward(start, inputs).states
        return jax.tree.map(lambda s: s[-1], states), start

    def split(a: Array) -> Array:
        return a[head:].reshape(-1, segment_length, *a.shape[1:])

    def back(future: Scaled, segment: Any) -> tuple[Scaled, Array]:
        start, inputs = segment
        trajectory = forward(start, inputs)
        linearization = adjoint.linearize(cell, params, trajectory)
        step = functools.partial(_adjoint_step, linearization, measure)
        return lax.scan(step, future, (None, linearization.locals, trajectory.valid), reverse=True)

    first = jax.tree.map(lambda a: a[:head], (xs, valid))
    rest = jax.tree.map(split, (xs, valid))
    after_head = skip(state, first)[0] if head else state
    final, starts = lax.scan(skip, after_head, rest)
    if finite.is_concrete(final) and finite.first_nonfinite(final):
        # Only now are the states looked at one by one, a segment at a time.
        if head:
            finite.check_states(forward(state, first).states, 0, num_steps)
        for index in range(num_steps // segment_length):
            start, inputs = jax.tree.map(lambda a, i=index: a[i], (starts, rest))
            before = head + index * segment_length
            finite.check_states(forward(start, inputs).states, before, num_steps)
    immediate = last_immediate(step_losses, final, xs.shape[1:-1])
    adjoint_now = rescale(immediate, jnp.zeros(xs.shape[1:-1], jnp.int32))
    adjoint_now, logs = lax.scan(back, adjoint_now, (starts, rest), reverse=True)
    logs = logs.reshape(-1, *logs.shape[2:])
    if not head:
        return logs
    return jnp.concatenate([back(adjoint_now, (state, first))[1], logs])
