"""|dL/ds_t| over the time steps, at several spans of a training."""

import numpy as np

from rnn_jax import plots


def profiles(norms: np.ndarray) -> dict[str, np.ndarray]:
    """|dL/ds_t| over t at the start, middle and end of training.

    Each is the geometric mean over a twentieth of the iterations; keys name which.

    Args:
        norms: `[iterations, T]`.
    """
    total = len(norms)
    width = max(1, total // 20)
    spans = {"start": 0, "middle": (total - width) // 2, "end": total - width}
    return {
        f"{word} (iterations {first + 1:,} to {first + width:,})": np.exp(
            np.mean(plots.natural_log(norms[first : first + width]), axis=0)
        )
        for word, first in spans.items()
    }
