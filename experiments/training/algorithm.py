"""How one network learns: a few pure functions of its hyperparameters and its key.

A loop (`experiments.training.loop`) runs any number of networks by them: it jits them for one
network and maps them over many, and decides when to log, to test, to keep a checkpoint and to stop.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rnn_jax import training
from rnn_jax.model import Model
from rnn_jax.objectives import Objective
from rnn_jax.training.noise import with_noise_key
from rnn_jax.training.regularizers import Regularizer
from rnn_jax.training.traces import ParameterTrace, Trace, trace_states
from rnn_jax.types import Array, Batch, Key

Hparams = dict[str, Array]
"""Name of a hyperparameter -> its value for one network, scalar."""
Arrays = dict[str, Any]
"""Name -> array."""
SUMMANDS = "summands."
"""How the names of the summands' norms of parameters begin."""


class FirstNonFinite(NamedTuple):
    """Where a chunk of iterations first left the finite range; all zeros where it did not.

    Attributes:
        iteration: within the chunk, from 1.
        loss_step: first time step, from 1, whose loss is not finite; 0 where all are.
        adjoint_step: time step, from 1, at which |dL/ds_t| leaves the finite range, going back in
            time; 0 where it does not.
    """

    iteration: Any
    loss_step: Any
    adjoint_step: Any


class Algorithm(NamedTuple):
    """How one network learns; every function is pure.

    Attributes:
        init: `(hparams, key) -> TrainState`.
        train_chunk: `(hparams, state, key, num_steps) -> (TrainState, metrics, FirstNonFinite)`;
            `num_steps` is static, metrics are `name -> [k, ...]`, k the number of iterations, or 1
            where the chunk is summarized.
        evaluate: `(state, key) -> name -> array`, after every chunk; empty where nothing is tested.
        measure: `(state, key) -> name -> array`, at the stages of training that the loop is asked
            for.
        intervene: `(state, key) -> TrainState`, before the iterations of `intervene_at`; None for
            nothing.
        intervene_at: those iterations.
    """

    init: Callable[[Hparams, Key], training.TrainState]
    train_chunk: Callable[
        [Hparams, training.TrainState, Key, int],
        tuple[training.TrainState, Arrays, FirstNonFinite],
    ]
    evaluate: Callable[[training.TrainState, Key], Arrays]
    measure: Callable[[training.TrainState, Key], Arrays]
    intervene: Callable[[training.TrainState, Key], training.TrainState] | None = None
    intervene_at: tuple[int, ...] = ()


NOISE = 2**30
"""What the stream of noise is folded in by; beyond any number by which a key is split."""


class Streams(NamedTuple):
    """What a network's key is split into, so that no two uses of it draw the same numbers."""

    init: Key
    data: Key
    test: Key
    noise: Key


def streams(key: Key) -> Streams:
    """The streams of a network's key."""
    # Apart from the split, whose numbers would change with its size.
    init, data, test = jax.random.split(key, 3)
    return Streams(init, data, test, jax.random.fold_in(key, NOISE))


def nothing(state: training.TrainState, key: Key) -> Arrays:
    """An `evaluate` or `measure` that looks at nothing."""
    del state, key
    return {}


def bptt_algorithm(
    objective: Objective,
    optimizer: Callable[[Hparams], optax.GradientTransformation],
    sample: Callable[[Key], Batch],
    *,
    input_size: int,
    batch_size: int,
    initial_model: Callable[[Hparams], Model] | None = None,
    trace: Trace = trace_states,
    regularize: Regularizer | None = None,
    summarize: Callable[[training.Metrics], Arrays] | None = None,
    evaluate: Callable[[training.TrainState, Key], Arrays] = nothing,
    measure: Callable[[training.TrainState, Key], Arrays] = nothing,
    intervene: Callable[[training.TrainState, Key], training.TrainState] | None = None,
    intervene_at: tuple[int, ...] = (),
) -> Algorithm:
    """Stochastic gradients by back-propagation through time.

    Args:
        objective: what is trained.
        optimizer: `hparams -> ` a chain made by `rnn_jax.training.optim`; numbers may be traced.
        sample: `key -> Batch`; iteration n draws with fold_in(data key, n).
        input_size: D.
        batch_size: B.
        initial_model: `hparams -> Model` whose `init` draws the parameters, where hyperparameters
            act on them; the objective's model unless given.
        trace: what is measured at every iteration.
        regularize: what is added to the gradient.
        summarize: metrics of a chunk, leaves `[K, ...]`, to what is kept of them; every iteration's
            loss, gradient norm and trace unless given.
        evaluate, measure, intervene, intervene_at: see `Algorithm`.
    """
    kept = summarize or every_iteration

    def init(hparams: Hparams, key: Key) -> training.TrainState:
        model = objective.model if initial_model is None else initial_model(hparams)
        state = training.fresh_state(
            model, optimizer(hparams), streams(key).init, input_size, batch_size
        )
        noisy = with_noise_key(state.opt_state, streams(key).noise)
        return dataclasses.replace(state, opt_state=noisy)

    def train_chunk(
        hparams: Hparams, state: training.TrainState, key: Key, num_steps: int
    ) -> tuple[training.TrainState, Arrays, FirstNonFinite]:
        state, metrics = training.scan_steps(
            objective,
            optimizer(hparams),
            sample,
            state,
            streams(key).data,
            num_steps,
            trace,
            regularize,
        )
        return state, kept(metrics), first_nonfinite(metrics)

    return Algorithm(init, train_chunk, evaluate, measure, intervene, intervene_at)


def every_iteration(metrics: training.Metrics) -> Arrays:
    """Loss, gradient norm and trace of every iteration, `[K, ...]`.

    With a trace of parameters also summands.NAME of each, the norm of each time step's summand of
    its gradient.
    """
    kept = {
        "loss": metrics.loss,
        "gradient_norm": metrics.gradient_norm,
        "trace": state_norms(metrics.trace),
    }
    if isinstance(metrics.trace, ParameterTrace):
        summands = jax.tree_util.tree_leaves_with_path(metrics.trace.parameters)
        for path, leaf in summands:
            kept[SUMMANDS + jax.tree_util.keystr(path, simple=True, separator=".")] = leaf
    return kept


def chunk_summary(metrics: training.Metrics) -> Arrays:
    """Means of loss and gradient norm over a chunk, largest norm, last trace; `[1, ...]`."""
    return {
        "loss": jnp.mean(metrics.loss, keepdims=True),
        "gradient_norm": jnp.mean(metrics.gradient_norm, keepdims=True),
        "worst_norm": jnp.max(metrics.gradient_norm, keepdims=True),
        "traces": state_norms(metrics.trace)[-1:],
    }


def losses_and_last_trace(metrics: training.Metrics) -> Arrays:
    """Loss and gradient norm of every iteration `[K]`, and the last one's trace `[1, T]`."""
    return {
        "loss": metrics.loss,
        "gradient_norm": metrics.gradient_norm,
        "traces": state_norms(metrics.trace)[-1:],
    }


def state_norms(trace: Any) -> Any:
    """|dL/ds_t| `[..., T]` of a trace with or without parameters."""
    return trace.states if isinstance(trace, ParameterTrace) else trace


def first_nonfinite(metrics: training.Metrics) -> FirstNonFinite:
    """Where a chunk's metrics, leaves `[K, ...]`, first left the finite range."""
    bad_loss = ~jnp.isfinite(metrics.step_losses)
    bad_adjoint = ~jnp.isfinite(state_norms(metrics.trace))
    bad = (
        jnp.any(bad_loss, axis=1) | jnp.any(bad_adjoint, axis=1) | ~jnp.isfinite(metrics.loss)
    ) | ~jnp.isfinite(metrics.gradient_norm)
    first = jnp.argmax(bad)
    losses, adjoints = bad_loss[first], bad_adjoint[first]
    last_bad = adjoints.shape[0] - jnp.argmax(adjoints[::-1])
    found = FirstNonFinite(
        1 + first,
        jnp.where(jnp.any(losses), 1 + jnp.argmax(losses), 0),
        jnp.where(jnp.any(adjoints), last_bad, 0),
    )
    return jax.tree.map(lambda value: jnp.where(jnp.any(bad), value, 0), found)
