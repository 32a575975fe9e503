"""Recurrent cells, each a `Cell`: a NamedTuple of pure functions."""

from rnn_jax.cells.cell import Affine, Cell, affine_cell
from rnn_jax.cells.elman import ACTIVATIONS, ElmanParams, LeakyParams, elman, leaky
from rnn_jax.cells.gated import GRUParams, LSTMParams, LSTMState, gru, lstm

__all__ = [
    "ACTIVATIONS",
    "Affine",
    "Cell",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "LeakyParams",
    "affine_cell",
    "elman",
    "gru",
    "leaky",
    "lstm",
]
