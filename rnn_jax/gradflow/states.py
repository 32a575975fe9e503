"""dL/ds_t at every time step, exact where float32 would give 0 or inf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cells import Cell
from rnn_jax.checks import batch_shape_of, check_fit, num_steps_of
from rnn_jax.gradflow import finite
from rnn_jax.gradflow.backward import prepare, scan_adjoints
from rnn_jax.gradflow.losses import Immediate, LastStep, Losses, loss_values
from rnn_jax.gradflow.scaled import Scaled, log_norm
from rnn_jax.gradflow.segments import segmented
from rnn_jax.placement import align, batch_axes, mean, on_its_mesh
from rnn_jax.types import Array, Params, State
from rnn_jax.unroll import fill_padding, unroll, valid_steps, zero_perturbations


def value_and_grad(cell: Cell, loss_fn: Callable[..., Array] | LastStep) -> Callable[..., Any]:
    """Loss, parameter gradient and dL/ds_t for every t, from one backward pass.

    Args:
        cell: any `Cell`.
        loss_fn: `(states, *args) -> loss`, a scalar, or `[T, B]` (`[T]` without a batch axis): then
            the loss is the sum over t, averaged over the batch; padding does not count. Or a
            `LastStep`, whose function gets `*args` too: then it is the mean over the batch.

    Returns:
        A function `(params, state, xs, *args, lengths=None) -> (loss, grads, adjoints)`: grads like
        params, adjoints like the states, leaves `[T, B, H]`. In the dtype of the parameters;
        `state_gradients` has the logarithms where these leave its range.

    Raises:
        ValueError: an `Immediate`, which has no loss; shapes that do not fit; a NaN or inf in the
            arguments, or in the states.

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

    if isinstance(loss_fn, Immediate):
        raise ValueError(
            "value_and_grad returns the loss, and an Immediate has none: give the loss as a "
            "function of the states; for lambda_t alone take state_gradients"
        )

    @on_its_mesh
    def evaluate(
        params: Params, state: State, xs: Array, *args: Any, lengths: Array | None = None
    ) -> tuple[Array, Params, State]:
        inputs = check_fit(cell, params, state, xs)
        batch_shape, num_steps = batch_shape_of(cell, params, state, inputs), num_steps_of(inputs)
        valid = None if lengths is None else valid_steps(lengths, inputs, batch_shape)
        # Where the batch lies, so lie the zeros by which it is differentiated.
        own, inputs, state, valid = align(
            params, len(batch_shape), (inputs, 1), (state, 0), (valid, 1)
        )
        params = params if batch_shape else own
        axes = batch_axes(params, state, inputs)
        inputs = fill_padding(inputs, valid)
        finite.check_finite(params, state, inputs)

        def loss(params: Params, perturbations: State) -> Array:
            states = unroll(
                cell, params, state, inputs, perturbations=perturbations, lengths=lengths
            )
            if isinstance(loss_fn, LastStep):
                last = LastStep(lambda final: loss_fn.loss(final, *args))
                return mean(loss_values(last, states, batch_shape), axes)

            def of_states(states: State) -> Array:
                return loss_fn(states, *args)

            # Losses of steps do not count on padding; a scalar may read any state.
            if valid is not None and jax.eval_shape(of_states, states).ndim:
                value = loss_values(of_states, states, batch_shape, valid)
            else:
                value = of_states(states)
            if jnp.ndim(value) == 0:
                return value
            finite.check_step_losses(value, batch_shape, num_steps)
            return mean(jnp.sum(value, axis=0), axes)

        value, (grads, adjoints) = jax.value_and_grad(loss, (0, 1))(
            params, zero_perturbations(state, num_steps)
        )
        if finite.is_concrete(value) and not np.isfinite(value):
            finite.check_states(unroll(cell, params, state, inputs, lengths=lengths))
        return value, grads, adjoints

    return evaluate


@on_its_mesh
def state_gradients(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
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
        step_losses: `states -> [T, B]`; L_t must depend on s_t alone. Or `LastStep(s_T -> [B])`, or
            e_t itself, `Immediate(e)`.
        lengths: `[B]`; losses on padding do not count, and there the result is -inf. A `LastStep`
            loss reads each example's last true state.
        segment_length: keep only every so-manyth state and compute the others again going back (for
            a `LastStep` or an `Immediate`); about sqrt(T) takes the least memory.

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
    if segment_length is not None:
        return segmented(cell, params, state, xs, step_losses, lengths, segment_length, log_norm)
    prepared = prepare(cell, params, state, xs, step_losses, lengths)
    return scan_adjoints(cell, *prepared, log_norm)


@on_its_mesh
def leaf_gradients(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    step_losses: Losses,
    *,
    lengths: Array | None = None,
) -> State:
    """`state_gradients` of each leaf of the state apart: an LSTM's c and h tell different stories.

    Returns:
        A pytree like the state of `[T, B]` in nats.

    Arguments and errors are those of `state_gradients`.
    """
    prepared = prepare(cell, params, state, xs, step_losses, lengths)

    def measure(adjoint: Scaled) -> State:
        return jax.tree.map(lambda leaf: log_norm(Scaled(leaf, adjoint.exponent)), adjoint.value)

    return scan_adjoints(cell, *prepared, measure)
