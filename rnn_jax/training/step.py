"""Training: one pure step, and many of them in one XLA program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from rnn_jax.model import Model, ModelParams
from rnn_jax.objectives import Objective, Run, mean_loss
from rnn_jax.placement import align, batch_axes, mean, on_its_mesh
from rnn_jax.training import optim
from rnn_jax.training.regularizers import Regularizer
from rnn_jax.training.traces import Trace, trace_states
from rnn_jax.types import Array, Batch, Key, Params, State
from rnn_jax.unroll import zero_perturbations


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
        step: number of updates made, int32.
        params: the model's parameters.
        opt_state: the optimizer's state.
        carry: recurrent state from which the next iteration starts, leaves `[B, H]`.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    carry: State


class Metrics(NamedTuple):
    """What a training step tells.

    Attributes:
        loss: mean over examples and steps, scalar.
        step_losses: `[T]`, L_t averaged over the batch.
        gradient_norm: global norm of dL/dtheta before clipping, scalar.
        trace: what the trace function measured; by default |dL/ds_t|, `[T]`.
    """

    loss: Array
    step_losses: Array
    gradient_norm: Array
    trace: Any


def fresh_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: Key,
    input_size: int,
    batch_size: int,
) -> TrainState:
    """Fresh parameters and optimizer, and the zero state."""
    params = model.init(key, input_size)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=model.cell.initial_state(params.cell, (batch_size,)),
    )


# One program, where op by op it would be dozens to compile.
init_state = jax.jit(
    fresh_state, static_argnames=("model", "optimizer", "input_size", "batch_size")
)


@on_its_mesh
def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    trace: Trace = trace_states,
    regularize: Regularizer | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters. Pure; to be jitted, vmapped or scanned by the caller.

    Args:
        objective: what is trained.
        optimizer: made by `rnn_jax.training.optim.recorded`.
        state: where training stands; `carry` gets no gradient from this iteration.
        batch: the data of this step.
        trace: what to measure on the way.
        regularize: what to add to the gradient before the optimizer records and clips it, such as
            `regularizers.pascanu`; the trace and the loss are those without it.
    """
    carry = _beside_its_batch(state.params, state.carry, batch, leading=1)
    axes = batch_axes(state.params, carry, batch)
    zeros = zero_perturbations(carry, objective.num_steps(batch))

    def loss_fn(params: ModelParams, perturbations: State) -> tuple[Array, Run]:
        run = objective.run(params, carry, batch, perturbations)
        return mean_loss(run, axes), run

    (loss, run), (gradients, adjoints) = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
        state.params, zeros
    )
    if regularize is not None:
        extra = regularize(objective, state.params, carry, run, adjoints)
        gradients = jax.tree.map(jnp.add, gradients, extra)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics = Metrics(
        loss=loss,
        step_losses=mean(jnp.atleast_2d(run.step_losses), axes, axis=1),
        gradient_norm=optim.raw_norm(opt_state),
        trace=trace(objective, state.params, carry, run, adjoints),
    )
    new = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=run.carry,
    )
    return new, metrics


def _beside_its_batch(params: Params, carry: State, batch: Batch, leading: int) -> State:
    """The carry, on a mesh where the examples are; inputs `[*leading, B, D]`."""
    return align(params, 1, (batch.inputs, leading), (carry, 0))[2]


@on_its_mesh
def scan_steps(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    state: TrainState,
    key: Key,
    num_steps: int,
    trace: Trace = trace_states,
    regularize: Regularizer | None = None,
) -> tuple[TrainState, Metrics]:
    """`num_steps` training steps as one scan; `train_chunk` without the jit.

    Step n draws its batch with fold_in(key, n), so no random state is carried and a resumed run is
    the same run. All batches are drawn before the scan: a random number inside it costs more
    than a whole step of a small network (10 of 26 microseconds at H = 16, B = 1, T = 49).
    """
    steps = state.step + jnp.arange(num_steps)
    batches = jax.vmap(lambda step: sample(jax.random.fold_in(key, step)))(steps)
    carry = _beside_its_batch(state.params, state.carry, batches, leading=2)
    state = dataclasses.replace(state, carry=carry)

    def body(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(objective, optimizer, state, batch, trace, regularize)

    if num_steps > 1:
        return lax.scan(body, state, batches)

    # XLA takes a loop of one pass apart, and then rounds differently than in a longer loop. Where
    # it cannot see the number of passes, a chunk of one has the bits of any other.
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    empty = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(body, state, first)[1]
    )
    passes = lax.optimization_barrier(jnp.ones((), jnp.int32))
    state, metrics = lax.fori_loop(0, passes, lambda _, now: body(now[0], first), (state, empty))
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)


@functools.partial(
    jax.jit,
    static_argnames=("objective", "optimizer", "sample", "num_steps", "trace", "regularize"),
    donate_argnames=("state",),
)
def train_chunk(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    state: TrainState,
    key: Key,
    num_steps: int,
    trace: Trace = trace_states,
    regularize: Regularizer | None = None,
) -> tuple[TrainState, Metrics]:
    """`num_steps` training steps in one XLA program.

    Args:
        objective: what is trained.
        optimizer: made by `rnn_jax.training.optim.recorded`.
        sample: `key -> Batch`, run on the device.
        state: where training stands. Its buffers are donated: use the returned one afterwards.
        key: the run's data key; the same at every call.
        num_steps: K.
        trace: what to measure at every step.
        regularize: what to add to the gradient, as in `train_step`.

    Returns:
        The new state, and metrics stacked over the steps, leaves `[K, ...]`.
    """
    return scan_steps(objective, optimizer, sample, state, key, num_steps, trace, regularize)
