"""Truncated back-propagation through time: each loss is followed back a window of steps at most."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnn_jax.model import Model, ModelParams
from rnn_jax.objectives import (
    Objective,
    Run,
    judge,
    next_step_objective,
    task_objective,
    true_inputs,
)
from rnn_jax.placement import is_split
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, State
from rnn_jax.unroll import unroll


def truncated_objective(
    model: Model,
    task_or_loss: Task | Callable[[Array, Array], Array],
    window: int,
    stride: int,
) -> Objective:
    """Truncated BPTT(h; h'): after every h' steps their losses are followed back h steps.

    Args:
        model: as in `task_objective` or `next_step_objective`.
        task_or_loss: a `Task`, trained as by `task_objective`; or a loss, trained as by
            `next_step_objective`, the state carried on.
        window: h. A stride's last loss is followed back `window` steps, its own included (the
            window of `gradflow.truncation_bias`), its first one window - stride + 1; the state
            before them is a constant. From T on it is full BPTT.
        stride: h', at most the window. T / stride windows are run, side by side as one batch: a
            stride of 1 treats all losses alike and costs the most.

    Returns:
        An `Objective` whose losses, states and carry are those of the whole run. Its adjoints are
        summed over the windows, so the gradient is still sum_t (ds_t/dtheta)^T lambda_t. A task
        with one answer has one window, that before each example's own end.

    Raises:
        ValueError: a window or stride below 1, or a stride above the window.

    Source: Williams & Peng, "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories", Neural Computation 2 (1990).
    """
    for name, value in (("window", window), ("stride", stride)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least 1")
    if stride > window:
        raise ValueError(
            f"stride is {stride}, but window is {window}: no window would reach the losses between "
            "two; give a stride of at most the window"
        )
    if isinstance(task_or_loss, Task):
        whole, one_answer = task_objective(model, task_or_loss), task_or_loss.last_only
    else:
        whole, one_answer = next_step_objective(model, task_or_loss), False

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        if whole.num_steps(batch) <= window:
            return whole.run(params, carry, batch, perturbations)
        batch = batch._replace(inputs=true_inputs(batch))
        # Its losses are those of the windows, and so is its mask; only its gradient is not wanted.
        full = whole.run(*lax.stop_gradient((params, carry, batch, perturbations)))
        plan = (_before_the_end if one_answer else _every_stride)(batch, window, stride)
        states = _run_windows(model, params, carry, full.states, batch, perturbations, plan)
        outputs = model.readout(params.readout, model.cell.emit(model.select(states)))
        return full._replace(step_losses=judge(task_or_loss, outputs, batch)[0])

    return Objective(model, run, whole.num_steps)


class _Windows(NamedTuple):
    """C windows of equal length, and where to read the states whose losses count.

    Attributes:
        steps: `[window, C, B]`, the time step at each place of each window.
        places: `[N]`, place within its window of each state to be read.
        windows: `[N]`, that window.
    """

    steps: Array
    places: np.ndarray
    windows: np.ndarray


def _every_stride(batch: Batch, window: int, stride: int) -> _Windows:
    """A window up to the end of each stride; those that reach the start are one and the same."""
    num_steps, size = batch.inputs.shape[:2]
    ends = np.append(np.arange(stride, num_steps, stride), num_steps)
    ends = ends[np.sum(ends <= window) - 1 :]
    starts = np.maximum(ends - window, 0)
    times = np.arange(num_steps)
    windows = np.searchsorted(ends, times, side="right")
    places = times - starts[windows]
    steps = starts[None] + np.arange(window)[:, None]
    return _Windows(
        jnp.broadcast_to(steps[..., None], (*steps.shape, size)), places=places, windows=windows
    )


def _before_the_end(batch: Batch, window: int, stride: int) -> _Windows:
    """One window, up to each example's last true step."""
    del stride
    num_steps, size = batch.inputs.shape[:2]
    ends = jnp.full(size, num_steps) if batch.lengths is None else jnp.asarray(batch.lengths)
    starts = jnp.maximum(ends - window, 0)[None, None]
    places = jnp.broadcast_to(jnp.arange(window)[:, None, None], (window, 1, size))
    return _Windows(
        jnp.broadcast_to(starts, places.shape) + places,
        places=np.array([window - 1]),
        windows=np.array([0]),
    )


def _run_windows(
    model: Model,
    params: ModelParams,
    carry: State,
    states: State,
    batch: Batch,
    perturbations: State,
    plan: _Windows,
) -> State:
    """The states read, leaves `[N, B, H]`, each with a gradient back to its window's start."""
    steps = plan.steps
    examples = jnp.arange(steps.shape[-1])

    def take(leaf: Array, at: Array) -> Array:
        if is_split(leaf):
            # JAX knows where this gather's results lie; on one device it is the slower one.
            order = at.reshape(-1, at.shape[-1])
            order = jnp.expand_dims(order, range(2, leaf.ndim))
            taken = jnp.take_along_axis(leaf, order, axis=0)
            return taken.reshape(*at.shape, *leaf.shape[2:])
        columns = jnp.broadcast_to(examples.reshape((1,) * (at.ndim - 1) + (-1,)), at.shape)
        return leaf[at, columns]

    # s_0..s_T; a window from step k on starts from s_k.
    known = jax.tree.map(lambda s_0, s: jnp.concatenate([s_0[None], s]), carry, states)
    start = jax.tree.map(lambda leaf: take(leaf, steps[0]), known)
    lengths = None
    if batch.lengths is not None:
        left = jnp.broadcast_to(jnp.asarray(batch.lengths)[None], steps[0].shape) - steps[0]
        # A window past an example's end is read nowhere, but must have a step.
        lengths = jnp.clip(left, 1, steps.shape[0])
    windowed = unroll(
        model.cell,
        params.cell,
        start,
        take(batch.inputs, steps),
        perturbations=jax.tree.map(lambda p: take(p, steps), perturbations),
        lengths=lengths,
    )
    return jax.tree.map(lambda s: s[plan.places, plan.windows], windowed)
