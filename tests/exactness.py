"""How nearly the gradients of two programs must agree."""

import jax
import numpy as np


def assert_as_good_as_equal(found, wanted):
    """Equal to the last few bits.

    Optimized, XLA makes the same bits of the two programs that are compared; without optimization,
    which is how tests are compiled, it may add in another order.
    """

    def compare(a, b):
        a, b = np.asarray(a), np.asarray(b)
        rtol = 32 * np.finfo(a.dtype).eps if np.issubdtype(a.dtype, np.floating) else 0
        scale = np.max(np.abs(b), initial=0).astype(float)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)

    jax.tree.map(compare, found, wanted)
