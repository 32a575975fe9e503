"""Cells by name: the one place where a new cell is entered, for the library and the command line.

What a factory can be asked for is read from its signature: an argument `activation`,
`recurrent_init`, `kernel_init` or `bias_init` is what the cells here mean by it, and every argument
whose default is a float is a hyperparameter that a sweep may vary.
"""

import inspect
from collections.abc import Callable

from rnn_jax.cells.antisymmetric import antisymmetric, gated_antisymmetric
from rnn_jax.cells.cell import Cell
from rnn_jax.cells.cornn import cornn
from rnn_jax.cells.elman import elman, layer_norm_elman, leaky
from rnn_jax.cells.exp_rnn import exp_rnn
from rnn_jax.cells.gated import gru, lstm
from rnn_jax.cells.indrnn import indrnn
from rnn_jax.cells.lem import lem
from rnn_jax.cells.lru import lru
from rnn_jax.cells.minimal import min_gru, min_lstm
from rnn_jax.cells.slstm import slstm
from rnn_jax.cells.wave_rnn import wave_rnn

CELLS: dict[str, Callable[..., Cell]] = {
    "elman": elman,
    "leaky": leaky,
    "layer_norm": layer_norm_elman,
    "lstm": lstm,
    "gru": gru,
    "antisymmetric": antisymmetric,
    "gated_antisymmetric": gated_antisymmetric,
    "cornn": cornn,
    "lem": lem,
    "exp_rnn": exp_rnn,
    "indrnn": indrnn,
    "wave_rnn": wave_rnn,
    "lru": lru,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "slstm": slstm,
}
"""name -> factory, whose first argument is hidden_size; `rnn_jax.NAME` is the same function."""


def takes(factory: Callable[..., Cell], argument: str) -> bool:
    """Whether a factory has an argument of that name."""
    return argument in inspect.signature(factory).parameters


def hyperparameters(factory: Callable[..., Cell]) -> dict[str, float]:
    """Name -> default of a factory's arguments that are numbers; a sweep may vary them.

    >>> import rnn_jax
    >>> from rnn_jax.cells.registry import hyperparameters
    >>> hyperparameters(rnn_jax.lstm)
    {'forget_bias': 1.0}
    """
    return {
        name: argument.default
        for name, argument in inspect.signature(factory).parameters.items()
        if isinstance(argument.default, float)
    }
