"""rnn_jax: see, measure, predict and cure the gradient of a recurrent network.

A cell is a `Cell`, a NamedTuple of pure functions; `unroll` runs it over a sequence and keeps the
adjoints dL/ds_t of the backward pass; `gradflow` measures with them.
"""

from rnn_jax.cells import (
    Affine,
    Cell,
    ElmanParams,
    GRUParams,
    LeakyParams,
    LSTMParams,
    LSTMState,
    elman,
    gru,
    leaky,
    lstm,
)
from rnn_jax.model import (
    Model,
    ModelParams,
    ReadoutParams,
    apply,
    closed_loop,
    free_run,
    last_only,
    sequence_model,
)
from rnn_jax.unroll import plain_unroll, unroll, zero_perturbations

__all__ = [
    "Affine",
    "Cell",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "LeakyParams",
    "Model",
    "ModelParams",
    "ReadoutParams",
    "apply",
    "closed_loop",
    "elman",
    "free_run",
    "gru",
    "last_only",
    "leaky",
    "lstm",
    "plain_unroll",
    "sequence_model",
    "unroll",
    "zero_perturbations",
]
