"""The scans of any JAX function: found in its jaxpr, named, and run with zeros in their states."""

from rnn_jax.scans.equations import Program, differentiable, program
from rnn_jax.scans.evaluate import evaluate
from rnn_jax.scans.plan import Slots, make_plan, number_slots
from rnn_jax.scans.search import Found, Leaf, Outer, Recurrence, find_recurrences

__all__ = [
    "Found",
    "Leaf",
    "Outer",
    "Program",
    "Recurrence",
    "Slots",
    "differentiable",
    "evaluate",
    "find_recurrences",
    "make_plan",
    "number_slots",
    "program",
]
