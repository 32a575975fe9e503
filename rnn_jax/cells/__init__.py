"""Recurrent cells, each a `Cell`: a NamedTuple of pure functions."""

from rnn_jax.cells.bfloat16 import bfloat16_products
from rnn_jax.cells.cell import Affine, Cell, Derivative, affine_cell
from rnn_jax.cells.dilated import dilated
from rnn_jax.cells.dropout import DroppedParams, draw_masks, variational_dropout
from rnn_jax.cells.elman import (
    ACTIVATIONS,
    ElmanParams,
    LayerNormElmanParams,
    LeakyParams,
    elman,
    layer_norm_elman,
    leaky,
)
from rnn_jax.cells.gated import GRUParams, LSTMParams, LSTMState, gru, lstm
from rnn_jax.cells.h_detach import h_detach, with_detached
from rnn_jax.cells.learned import LearnedStateParams, learned_initial_state
from rnn_jax.cells.mgu import MGUParams, mgu
from rnn_jax.cells.segmented import segmented
from rnn_jax.cells.stack import stack
from rnn_jax.cells.zoneout import with_zoneout, zoneout

__all__ = [
    "ACTIVATIONS",
    "Affine",
    "Cell",
    "Derivative",
    "DroppedParams",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "LayerNormElmanParams",
    "LeakyParams",
    "LearnedStateParams",
    "MGUParams",
    "affine_cell",
    "bfloat16_products",
    "dilated",
    "draw_masks",
    "elman",
    "gru",
    "h_detach",
    "layer_norm_elman",
    "leaky",
    "learned_initial_state",
    "lstm",
    "mgu",
    "segmented",
    "stack",
    "variational_dropout",
    "with_detached",
    "with_zoneout",
    "zoneout",
]
