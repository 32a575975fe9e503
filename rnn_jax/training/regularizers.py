"""Cures that act on the Jacobians themselves: Pascanu's Omega, and gradient flossing.

Both want the state gradient to keep its size on its way back. Omega asks it of the adjoints of the
loss at hand, within each training step; flossing asks it of every direction, in steps of its own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rnn_jax import bptt
from rnn_jax.bptt import Trajectory
from rnn_jax.cells import Cell
from rnn_jax.checks import check_examples, check_fit
from rnn_jax.gradflow import lyapunov_spectrum
from rnn_jax.gradflow.scaled import rescale
from rnn_jax.losses import masked_mean
from rnn_jax.model import ModelParams
from rnn_jax.norms import state_norm
from rnn_jax.objectives import Objective, Run
from rnn_jax.placement import batch_axes, filled, mean, on_its_mesh
from rnn_jax.types import Array, Batch, Key, Params, State

Regularizer = Callable[[Objective, ModelParams, State, Run, State], ModelParams]
"""`(objective, params, carry, run, adjoints) -> gradient`, added to that of the loss before the
optimizer sees it: the `regularize` of `train.train_step`."""


def omega(cell: Cell, params: Params, previous: State, xs: Array, adjoints: State) -> Array:
    """Omega_t = (|J_t^T lambda_t| / |lambda_t| - 1)^2: by how much step t stretches the gradient.

    Args:
        cell: any `Cell`.
        params: its parameters.
        previous: s_0..s_{T-1}, leaves `[T, B, H]`.
        xs: `[T, B, D]`.
        adjoints: lambda_1..lambda_T, leaves `[T, B, H]`; their size does not matter.

    Returns:
        `[T, B]`, 0 where lambda_t is 0. The sum over t is the Omega of one example.

    Its gradient by params is the immediate one: previous, xs and adjoints are constants, and so are
    the pre-activations of a cell with `affine` parts. What is left is W where it multiplies
    lambda_t, and the parameters inside `activate`. Of a cell without such parts, every parameter
    has the gradient of J_t at a constant s_{t-1}.

    Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks",
    ICML (2013), eq. 9 and 10; their x_t is the pre-activation.
    """
    previous, xs, adjoints = lax.stop_gradient((previous, xs, adjoints))
    trajectory = lax.stop_gradient(_trajectory(cell, params, previous, xs))
    linearization = bptt.linearize(cell, params, trajectory)
    batch_axes = xs.ndim - 1
    # Only directions matter: scaled up, an adjoint of 1e-30 has a square that float32 holds.
    vectors = rescale(adjoints, filled(0, jnp.int32, xs, xs.ndim - 1)).value
    before = state_norm(vectors, batch_axes)
    after = state_norm(jax.vmap(linearization.pull)(vectors, linearization.locals), batch_axes)
    alive = before > 0
    ratio = after / jnp.where(alive, before, 1)
    return jnp.where(alive, jnp.square(ratio - 1), 0)


def _trajectory(cell: Cell, params: Params, previous: State, xs: Array) -> Trajectory:
    """The run that went through s_0..s_{T-1}, with its last state."""
    last = cell.step(params, jax.tree.map(lambda s: s[-1], previous), xs[-1])
    states = jax.tree.map(lambda s, end: jnp.concatenate([s[1:], end[None]]), previous, last)
    first = jax.tree.map(lambda s: s[0], previous)
    return bptt.trajectory_through(cell, params, first, xs, states)


def pascanu(weight: float | Array) -> Regularizer:
    """The gradient of weight times the mean of `omega`, for `train.train_step(regularize=...)`.

    Args:
        weight: alpha. The mean is over the steps and examples whose lambda_t is not 0, so that it
            means the same at every length; the sum over t of eq. 9 is T times as large. (The
            program published with the paper takes this mean too, but of squared norms' ratios,
            which near 1 is four times as large.)

    Returns:
        A regularizer: zero for the readout, and for all else of an Elman cell but W.
    """

    def regularize(
        objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
    ) -> ModelParams:
        previous = jax.tree.map(
            lambda s_0, s: jnp.concatenate([s_0[None], s[:-1]]), carry, run.states
        )
        alive = state_norm(adjoints, 2) > 0
        axes = batch_axes(params, previous, run.inputs)

        def penalty(cell_params: Params) -> Array:
            terms = omega(objective.model.cell, cell_params, previous, run.inputs, adjoints)
            return weight * masked_mean(terms, alive, mesh_axes=axes)

        return ModelParams(
            cell=jax.grad(penalty)(params.cell),
            readout=jax.tree.map(jnp.zeros_like, params.readout),
        )

    return regularize


def both(*terms: Regularizer) -> Regularizer:
    """Several regularizers at once: the sum of their gradients."""

    def regularize(
        objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
    ) -> ModelParams:
        gradients = [term(objective, params, carry, run, adjoints) for term in terms]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *gradients)

    return regularize


class FlossState(NamedTuple):
    """All that flossing changes: the number of its steps, the cell's parameters, its optimizer."""

    step: Array
    params: Params
    opt_state: optax.OptState


class FlossMetrics(NamedTuple):
    """What a flossing step tells, before its update.

    Attributes:
        loss: `flossing_loss`, scalar.
        exponents: `[k]`, the batch's mean, largest first, in nats per step.
        gradient_norm: global norm of the loss's gradient, scalar.
    """

    loss: Array
    exponents: Array
    gradient_norm: Array


@on_its_mesh
def flossing_loss(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    num_exponents: int | None = None,
    burn_in: int = 0,
    *,
    qr_every: int = 1,
) -> Array:
    """Mean of the squares of the first k Lyapunov exponents of each example; scalar.

    Arguments and errors are those of `gradflow.lyapunov_spectrum`; differentiable by params, state
    and xs.

    Source: Engelken, "Gradient flossing: improving gradient descent through dynamic control of
    Jacobians", NeurIPS (2023).
    """
    exponents = _exponents(cell, params, state, xs, num_exponents, burn_in, qr_every)
    return mean(jnp.square(exponents), batch_axes(params, exponents))


def _exponents(
    cell: Cell,
    params: Params,
    state: State,
    xs: Array,
    num_exponents: int | None,
    burn_in: int,
    qr_every: int,
) -> Array:
    """Exponents of each example, `[B, k]`; `[k]` without a batch axis."""
    xs = check_fit(cell, params, state, xs)
    check_examples(xs)

    def spectrum(state: State, xs: Array) -> Array:
        return lyapunov_spectrum(cell, params, state, xs, num_exponents, burn_in, qr_every=qr_every)

    return spectrum(state, xs) if xs.ndim == 2 else jax.vmap(spectrum, (0, 1))(state, xs)


def floss_init(optimizer: optax.GradientTransformation, params: Params) -> FlossState:
    """Flossing at its start: its optimizer is fresh, and its own."""
    return FlossState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@on_its_mesh
def floss_step(
    cell: Cell,
    optimizer: optax.GradientTransformation,
    floss: FlossState,
    state: State,
    xs: Array,
    num_exponents: int | None = None,
    burn_in: int = 0,
    *,
    qr_every: int = 1,
) -> tuple[FlossState, FlossMetrics]:
    """One update of the cell's parameters that brings its first k exponents nearer to 0.

    Pure. `cell`, `optimizer` and the counts are static; the others as in `flossing_loss`.
    """

    def loss_fn(params: Params) -> tuple[Array, Array]:
        exponents = _exponents(cell, params, state, xs, num_exponents, burn_in, qr_every)
        axes = batch_axes(params, exponents)
        return mean(jnp.square(exponents), axes), mean(jnp.atleast_2d(exponents), axes, axis=0)

    (loss, exponents), gradients = jax.value_and_grad(loss_fn, has_aux=True)(floss.params)
    updates, opt_state = optimizer.update(gradients, floss.opt_state, floss.params)
    new = FlossState(floss.step + 1, optax.apply_updates(floss.params, updates), opt_state)
    return new, FlossMetrics(loss, exponents, optax.tree.norm(gradients))


@functools.partial(
    jax.jit,
    static_argnames=(
        "cell",
        "optimizer",
        "sample",
        "num_steps",
        "num_exponents",
        "burn_in",
        "time_steps",
        "qr_every",
    ),
)
def floss_chunk(
    cell: Cell,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    floss: FlossState,
    state: State,
    key: Key,
    num_steps: int,
    num_exponents: int | None = None,
    burn_in: int = 0,
    *,
    time_steps: int | None = None,
    qr_every: int = 1,
) -> tuple[FlossState, FlossMetrics]:
    """`num_steps` flossing steps in one XLA program, on the inputs of a task.

    Args:
        cell: the recurrent part of a model.
        optimizer: any of Optax, flossing's own.
        sample: `key -> Batch`, a task's; step n draws with fold_in(key, n).
        floss: where flossing stands; `floss_init` makes the first.
        state: s_0 of every step, leaves `[B, H]`.
        key: the run's flossing key; the same at every call.
        num_steps: K.
        num_exponents: k, all unless given.
        burn_in: steps at the start of each sequence over which nothing is counted.
        time_steps: use only so many steps of each sequence, burn-in included.
        qr_every: steps between two QR decompositions.

    Returns:
        The new state, and metrics stacked over the steps, leaves `[K, ...]`.

    Raises:
        ValueError: as `gradflow.lyapunov_spectrum`; a batch with lengths or with too few steps.

    Before training or between two chunks of it, the cell's parameters go in and come out:

        floss = floss._replace(params=train_state.params.cell)
        floss, metrics = floss_chunk(cell, optimizer, task.sample, floss, state, key, 500)
        params = train_state.params._replace(cell=floss.params)
        train_state = train_state.replace(params=params)

    `train_chunk` donates its state: `floss` holds buffers that are gone after it, and gets new
    ones as above.
    """

    def body(floss: FlossState, _: None) -> tuple[FlossState, FlossMetrics]:
        xs = _whole_inputs(sample(jax.random.fold_in(key, floss.step)), time_steps)
        return floss_step(
            cell, optimizer, floss, state, xs, num_exponents, burn_in, qr_every=qr_every
        )

    return lax.scan(body, floss, length=num_steps)


def _whole_inputs(batch: Batch, time_steps: int | None) -> Array:
    """The first `time_steps` inputs of a batch without padding."""
    if batch.lengths is not None:
        raise ValueError(
            "the batch has lengths, but exponents want steps that are all true; floss on a task of "
            "one length, made without shortest"
        )
    num_steps = batch.inputs.shape[0]
    if time_steps is not None and not 1 <= time_steps <= num_steps:
        raise ValueError(
            f"time_steps is {time_steps}, but the batch has {num_steps} steps: give 1..{num_steps}"
        )
    return batch.inputs[:time_steps]
