"""The scans of any JAX function: found in its jaxpr, named, and run with zeros in their states."""

from rnn_jax.scans.body import (
    Body,
    Operands,
    Origin,
    body_of,
    equation_at,
    levels_of,
    origin_of,
    read_scan,
    varied_operands,
    whole_state,
)
from rnn_jax.scans.capture import capture
from rnn_jax.scans.equations import Equation, Jaxpr, Program, differentiable, kind_of, program, run
from rnn_jax.scans.evaluate import evaluate
from rnn_jax.scans.plan import Plan, Slots, make_cut, make_plan, number_slots
from rnn_jax.scans.search import Found, Leaf, Outer, Recurrence, find_recurrences
from rnn_jax.scans.select import Select, nothing_found, selected

__all__ = [
    "Body",
    "Equation",
    "Found",
    "Jaxpr",
    "Leaf",
    "Operands",
    "Origin",
    "Outer",
    "Plan",
    "Program",
    "Recurrence",
    "Select",
    "Slots",
    "body_of",
    "capture",
    "differentiable",
    "equation_at",
    "evaluate",
    "find_recurrences",
    "kind_of",
    "levels_of",
    "make_cut",
    "make_plan",
    "nothing_found",
    "number_slots",
    "origin_of",
    "program",
    "read_scan",
    "run",
    "selected",
    "varied_operands",
    "whole_state",
]
