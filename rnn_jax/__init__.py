"""rnn_jax: see, measure, predict and cure the gradient of a recurrent network.

A cell is a `Cell`, a NamedTuple of pure functions; `unroll` runs it over a sequence and keeps the
adjoints dL/ds_t of the backward pass; `gradflow` measures with them.
"""

import importlib
import sys
from typing import Any

from rnn_jax import initializers
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
    MGUParams,
    bfloat16_products,
    dilated,
    draw_masks,
    elman,
    gru,
    h_detach,
    layer_norm_elman,
    leaky,
    learned_initial_state,
    lstm,
    mgu,
    segmented,
    stack,
    variational_dropout,
    with_detached,
    with_zoneout,
    zoneout,
)
from rnn_jax.inspect import Layer, inspect
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
from rnn_jax.moved import MOVED, OldNames
from rnn_jax.unroll import plain_unroll, unroll, zero_perturbations
from rnn_jax.watch import watch

__version__ = "0.2.0"

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
    "Layer",
    "LayerNormElmanParams",
    "LeakyParams",
    "LearnedStateParams",
    "MGUParams",
    "Model",
    "ModelParams",
    "ReadoutParams",
    "apply",
    "bfloat16_products",
    "bidirectional",
    "bidirectional_unroll",
    "bridge",
    "closed_loop",
    "dilated",
    "draw_masks",
    "elman",
    "free_run",
    "gru",
    "h_detach",
    "initializers",
    "inspect",
    "last_only",
    "layer_norm_elman",
    "leaky",
    "learned_initial_state",
    "lstm",
    "mgu",
    "plain_unroll",
    "segmented",
    "sequence_model",
    "stack",
    "unroll",
    "variational_dropout",
    "watch",
    "with_detached",
    "with_zoneout",
    "zero_perturbations",
    "zoneout",
]

LAZY = (
    "bptt",
    "bridge",
    "equinox",
    "gradflow",
    "io",
    "linen",
    "losses",
    "nnx",
    "norms",
    "objectives",
    "plots",
    "sharding",
    "sweep",
    "tasks",
    "training",
)
"""Modules that are imported when they are first asked for: with Flax, Orbax and matplotlib, which
some of them need, `import rnn_jax` would take twice as long."""


def __getattr__(name: str) -> Any:
    """Imports a module of `LAZY`, one that goes by an old name, or a cell of the registry."""
    if name in LAZY or name in MOVED:
        return importlib.import_module(f"{__name__}.{name}")
    if not name.startswith("_") and name in (cells := _registry()):
        return cells[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _registry() -> dict[str, Any]:
    """Cells by name, but those that go by another name here."""
    registered = importlib.import_module(f"{__name__}.cells.registry").CELLS
    return {name: make for name, make in registered.items() if make.__name__ == name}


def __dir__() -> list[str]:
    """Public names, those that are imported later included."""
    return sorted({*__all__, *LAZY, *_registry(), "__version__"})


if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
    sys.meta_path.append(OldNames())
