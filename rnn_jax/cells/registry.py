"""Cells by name: the one place where a new cell is entered, for the library and the command line.

What a factory can be asked for is read from its signature: an argument `activation`,
`recurrent_init`, `kernel_init` or `bias_init` is what the cells here mean by it, and every argument
whose default is a float is a hyperparameter that a sweep may vary.
"""

import inspect
from collections.abc import Callable

from rnn_jax.cells.cell import Cell
from rnn_jax.cells.elman import elman, layer_norm_elman, leaky
from rnn_jax.cells.gated import gru, lstm

CELLS: dict[str, Callable[..., Cell]] = {
    "elman": elman,
    "leaky": leaky,
    "layer_norm": layer_norm_elman,
    "lstm": lstm,
    "gru": gru,
}
"""name -> factory, whose first argument is hidden_size."""


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
