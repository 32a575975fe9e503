"""What to try against a gradient that vanishes or explodes."""

from rnn_jax.gradflow.anatomy import anatomies
from rnn_jax.gradflow.measurements import Measurements, Network
from rnn_jax.gradflow.parameter_remedies import (
    critical_gain,
    livelier_units,
    longer_memory,
    orthogonal_matrix,
)
from rnn_jax.gradflow.remedy import Case, Remedy
from rnn_jax.gradflow.training_remedies import bounds, gated_cell, other_start, readout_that_looks
from rnn_jax.gradflow.trials import edited
from rnn_jax.types import Params


def remedies(network: Network, found: Measurements) -> tuple[Remedy, ...]:
    """Remedies for a network on which `found` was measured, most specific first."""
    if found.verdict == "healthy":
        return ()
    case = Case(network, found, anatomies(network.params))
    if found.silent:
        return tuple(readout_that_looks(case))
    memory = longer_memory(case)
    # Where a gate or a leak gives the memory that is wanted, W need not.
    gain = [] if memory and found.verdict == "vanishing" else critical_gain(case)
    return (
        *livelier_units(case),
        *memory,
        *gain,
        *orthogonal_matrix(case, gain),
        *other_start(case),
        *gated_cell(case),
        *bounds(case),
    )


def apply_remedy(remedy: Remedy, params: Params) -> Params:
    """The parameters with a remedy of `diagnose` applied.

    Raises:
        ValueError: a remedy that is not a change of parameters.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> cell = rnn_jax.elman(32, recurrent_init=rnn_jax.initializers.orthogonal(0.5))
    >>> params = cell.init(jax.random.key(0), 1)
    >>> data = (jnp.zeros((4, 32)), jnp.zeros((60, 4, 1)))
    >>> losses = gradflow.LastStep(lambda state: state.sum(-1))
    >>> remedy = gradflow.diagnose(cell, params, *data, losses).remedies[0]
    >>> better = gradflow.apply_remedy(remedy, params)
    >>> remedy.name, gradflow.diagnose(cell, better, *data, losses).verdict
    ('scale W', 'healthy')
    """
    if not remedy.edits:
        raise ValueError(
            f"the remedy {remedy.name!r} is not a change of parameters; do what it says: "
            f"{remedy.advice}"
        )
    return edited(params, remedy.edits)
