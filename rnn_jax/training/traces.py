"""What a training step measures on its way; by default |dL/ds_t| for every t."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.bptt import trajectory_through
from rnn_jax.gradflow.params import summand_logs
from rnn_jax.gradflow.scaled import rescale
from rnn_jax.model import ModelParams
from rnn_jax.norms import adjoint_norms, widened
from rnn_jax.objectives import Objective, Run
from rnn_jax.placement import batch_axes, filled
from rnn_jax.types import Array, Params, State

Trace = Callable[[Objective, ModelParams, State, Run, State], Any]
"""`(objective, params, carry, run, adjoints) -> pytree`, measured at every training step."""


def trace_states(
    objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
) -> Array:
    """|dL/ds_t| `[T]`: root mean square over the examples, whatever the batch size."""
    del objective, carry, run
    return adjoint_norms(adjoints, batch_axes(params, adjoints))


class ParameterTrace(NamedTuple):
    """|dL/ds_t| `[T]`, and the norm of step t's summand of dL/dtheta, a pytree of `[T]`."""

    states: Array
    parameters: Params


def trace_parameters(
    objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
) -> ParameterTrace:
    """Norms of dL/ds_t, and of each step's summand of the gradient of the cell's parameters."""
    cell = objective.model.cell
    cell_params, carry, inputs, states, cotangents = widened(
        (params.cell, carry, run.inputs, run.states, adjoints)
    )
    trajectory = trajectory_through(cell, cell_params, carry, inputs, states)
    scaled = rescale(cotangents, filled(0, jnp.int32, inputs, inputs.ndim - 1))
    logs, _ = summand_logs(cell, cell_params, trajectory, scaled, careful=False)
    return ParameterTrace(
        states=adjoint_norms(adjoints, batch_axes(params, adjoints)),
        parameters=jax.tree.map(jnp.exp, logs),
    )
