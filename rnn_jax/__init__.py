"""rnn_jax: see, measure, predict and cure the gradient of a recurrent network.

A cell is a `Cell`, a NamedTuple of pure functions; `unroll` runs it over a sequence and keeps the
adjoints dL/ds_t of the backward pass; `gradflow` measures with them.
"""

from rnn_jax import bridge, initializers
from rnn_jax.bidirectional import (
    Bidirectional,
    Directions,
    bidirectional,
    bidirectional_unroll,
)
from rnn_jax.cells import (
    Affine,
    Cell,
    Derivative,
    DroppedParams,
    ElmanParams,
    GRUParams,
    LayerNormElmanParams,
    LeakyParams,
    LearnedStateParams,
    LSTMParams,
    LSTMState,
    bfloat16_products,
    draw_masks,
    elman,
    gru,
    layer_norm_elman,
    leaky,
    learned_initial_state,
    lstm,
    segmented,
    stack,
    variational_dropout,
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
from rnn_jax.watch import watch

__all__ = [
    "Affine",
    "Bidirectional",
    "Cell",
    "Derivative",
    "Directions",
    "DroppedParams",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "LayerNormElmanParams",
    "LeakyParams",
    "LearnedStateParams",
    "Model",
    "ModelParams",
    "ReadoutParams",
    "apply",
    "bfloat16_products",
    "bidirectional",
    "bidirectional_unroll",
    "bridge",
    "closed_loop",
    "draw_masks",
    "elman",
    "free_run",
    "gru",
    "initializers",
    "last_only",
    "layer_norm_elman",
    "leaky",
    "learned_initial_state",
    "lstm",
    "plain_unroll",
    "segmented",
    "sequence_model",
    "stack",
    "unroll",
    "variational_dropout",
    "watch",
    "zero_perturbations",
]
