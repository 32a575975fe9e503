"""Training: one pure step, and many of them in one XLA program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from rnn_jax import optim
from rnn_jax.adjoint import Trajectory
from rnn_jax.gradflow.params import summand_logs
from rnn_jax.gradflow.scaled import rescale
from rnn_jax.losses import masked_mean
from rnn_jax.model import Model, ModelParams, apply, free_run
from rnn_jax.norms import adjoint_norms
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


class Run(NamedTuple):
    """One pass of an objective over a batch.

    Attributes:
        step_losses: L_t of each example, `[T, B]` (`[B]` where only the last output counts).
        inputs: what the cell saw, `[T, B, D]`.
        states: what it became, leaves `[T, B, H]`.
        carry: the state from which the next iteration starts.
        mask: `[T, B]`, True where a step's loss counts; None where all do.
    """

    step_losses: Array
    inputs: Array
    states: State
    carry: State
    mask: Array | None = None


class Objective(NamedTuple):
    """What is trained.

    Attributes:
        model: a cell and a readout.
        run: `(params, carry, batch, perturbations) -> Run`.
        num_steps: `batch -> T`, the number of states in a run.
    """

    model: Model
    run: Callable[[ModelParams, State, Batch, State], Run]
    num_steps: Callable[[Batch], int]


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


Trace = Callable[[Objective, ModelParams, State, Run, State], Any]
"""`(objective, params, carry, run, adjoints) -> pytree`, measured at every training step."""


def trace_states(
    objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
) -> Array:
    """|dL/ds_t| `[T]`: root mean square over the examples, whatever the batch size."""
    del objective, params, carry, run
    return adjoint_norms(adjoints)


class ParameterTrace(NamedTuple):
    """|dL/ds_t| `[T]`, and the norm of step t's summand of dL/dtheta, a pytree of `[T]`."""

    states: Array
    parameters: Params


def trace_parameters(
    objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
) -> ParameterTrace:
    """Norms of dL/ds_t, and of each step's summand of the gradient of the cell's parameters."""
    trajectory = retrace(objective, params, carry, run)
    batch_shape = run.inputs.shape[:-1]
    scaled = rescale(adjoints, jnp.zeros(batch_shape, jnp.int32))
    logs = summand_logs(objective.model.cell, params.cell, trajectory, scaled)
    return ParameterTrace(
        states=adjoint_norms(adjoints),
        parameters=jax.tree.map(jnp.exp, logs),
    )


def retrace(objective: Objective, params: ModelParams, carry: State, run: Run) -> Trajectory:
    """The trajectory of a run; gated cells' pre-activations are one product over all t."""
    cell = objective.model.cell
    trajectory = Trajectory(carry, run.inputs, run.states)
    if cell.affine is None or cell.affine.slope is not None:
        return trajectory
    previous = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), carry, run.states
    )
    return trajectory._replace(
        projected=cell.affine.project(params.cell, run.inputs),
        recurred=cell.affine.recur(params.cell, previous),
    )


def next_step_objective(model: Model, loss: Callable[[Array, Array], Array]) -> Objective:
    """An output and a loss at every step; the state is carried on (truncated BPTT).

    Args:
        model: a `sequence_model`.
        loss: `(outputs [T, B, O], targets [T, B, O]) -> [T, B]`.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        outputs, states = apply(model, params, carry, batch.inputs, perturbations=perturbations)
        final = jax.tree.map(lambda s: s[-1], states)
        return Run(loss(outputs, batch.targets), batch.inputs, states, final)

    return Objective(model, run, lambda batch: batch.inputs.shape[0])


def closed_loop_objective(
    model: Model, loss: Callable[[Array, Array], Array], warmup_steps: int
) -> Objective:
    """True inputs for `warmup_steps`, then the model's own outputs, and a loss at every step.

    The gradient runs through the whole free run, so the network learns to correct itself instead
    of being surprised by its own errors. Every iteration starts from the zero state.

    Args:
        model: a `sequence_model` with as many outputs as inputs.
        loss: `(outputs [T, B, D], targets [T, B, D]) -> [T, B]`.
        warmup_steps: number of true inputs; the batch's remaining steps run free.
    """

    def run(params: ModelParams, carry: State, batch: Batch, perturbations: State) -> Run:
        num_steps = batch.inputs.shape[0]
        if not 1 <= warmup_steps < num_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps}, but the batch has {num_steps} steps: give at "
                f"least 1 and leave at least one for the free run"
            )
        # The last true input is the free run's first.
        split = warmup_steps - 1
        before, after = (
            jax.tree.map(lambda p, s=part: p[s], perturbations)
            for part in (slice(None, split), slice(split, None))
        )
        parts = []
        state = carry
        if split:
            outputs, states = apply(
                model, params, state, batch.inputs[:split], perturbations=before
            )
            state = jax.tree.map(lambda s: s[-1], states)
            parts.append((outputs, states))
        parts.append(
            free_run(
                model, params, state, batch.inputs[split], num_steps - split, perturbations=after
            )
        )
        outputs, states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        inputs = jnp.concatenate([batch.inputs[:warmup_steps], outputs[split:-1]])
        return Run(loss(outputs, batch.targets), inputs, states, carry)

    return Objective(model, run, lambda batch: batch.inputs.shape[0])


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "input_size", "batch_size"))
def init_state(
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


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    trace: Trace = trace_states,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters. Pure; to be jitted, vmapped or scanned by the caller.

    Args:
        objective: what is trained.
        optimizer: made by `rnn_jax.optim.recorded`.
        state: where training stands; `carry` gets no gradient from this iteration.
        batch: the data of this step.
        trace: what to measure on the way.
    """
    zeros = zero_perturbations(state.carry, objective.num_steps(batch))

    def loss_fn(params: ModelParams, perturbations: State) -> tuple[Array, Run]:
        run = objective.run(params, state.carry, batch, perturbations)
        return mean_loss(run), run

    (loss, run), (gradients, adjoints) = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
        state.params, zeros
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics = Metrics(
        loss=loss,
        step_losses=jnp.mean(jnp.atleast_2d(run.step_losses), axis=1),
        gradient_norm=optim.raw_norm(opt_state),
        trace=trace(objective, state.params, state.carry, run, adjoints),
    )
    new = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=run.carry,
    )
    return new, metrics


def mean_loss(run: Run) -> Array:
    """Mean over a run's steps that count, then over its examples; scalar."""
    if run.mask is None:
        return jnp.mean(run.step_losses)
    return jnp.mean(masked_mean(run.step_losses, run.mask, axis=0))


def scan_steps(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Key], Batch],
    state: TrainState,
    key: Key,
    num_steps: int,
    trace: Trace = trace_states,
) -> tuple[TrainState, Metrics]:
    """`num_steps` training steps as one scan; `train_chunk` without the jit.

    Step n draws its batch with fold_in(key, n), so no random state is carried and a resumed run is
    the same run. All batches are drawn before the scan: a random number inside it costs more
    than a whole step of a small network (10 of 26 microseconds at H = 16, B = 1, T = 49).
    """
    steps = state.step + jnp.arange(num_steps)
    batches = jax.vmap(lambda step: sample(jax.random.fold_in(key, step)))(steps)

    def body(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(objective, optimizer, state, batch, trace)

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
    static_argnames=("objective", "optimizer", "sample", "num_steps", "trace"),
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
) -> tuple[TrainState, Metrics]:
    """`num_steps` training steps in one XLA program.

    Args:
        objective: what is trained.
        optimizer: made by `rnn_jax.optim.recorded`.
        sample: `key -> Batch`, run on the device.
        state: where training stands. Its buffers are donated: use the returned one afterwards.
        key: the run's data key; the same at every call.
        num_steps: K.
        trace: what to measure at every step.

    Returns:
        The new state, and metrics stacked over the steps, leaves `[K, ...]`.
    """
    return scan_steps(objective, optimizer, sample, state, key, num_steps, trace)
