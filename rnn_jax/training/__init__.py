"""Training: a step, many of them in one program, and what acts on their gradient."""

from rnn_jax.training.step import (
    Metrics,
    TrainState,
    fresh_state,
    init_state,
    scan_steps,
    train_chunk,
    train_step,
)

__all__ = [
    "Metrics",
    "TrainState",
    "fresh_state",
    "init_state",
    "scan_steps",
    "train_chunk",
    "train_step",
]
