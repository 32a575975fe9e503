"""One wave per iteration, made in NumPy on the host, as the tutorial's loop makes it."""

import numpy as np

from rnn_jax.tasks import sine


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `[1, 49, 1]` (batch first), float32, from a whole start in 0..9."""
    start = rng.integers(10)
    times = np.linspace(start, start + sine.SPAN, sine.NUM_POINTS)
    points = np.sin(times).astype(np.float32)
    return points[:-1].reshape(1, -1, 1), points[1:].reshape(1, -1, 1)
