"""Adjoints far outside the range of floats, in NumPy float64 and in mpmath, written by hand.

    lambda_t = e_t + W (phi'(z_{t+1}) * lambda_{t+1})         s_t = phi(x_t U + s_{t-1} W + b)

NumPy keeps a unit vector and the logarithm of its size; mpmath has no range to leave. Nothing here
uses JAX. T time, B batch, H hidden.
"""

from typing import NamedTuple

import mpmath
import numpy as np


class Adjoints(NamedTuple):
    """lambda_t = unit vectors `[T, B, H]` times exp(logs `[T, B]`); a zero has log -inf."""

    vectors: np.ndarray
    logs: np.ndarray


def normalized(vectors: np.ndarray, logs: np.ndarray) -> Adjoints:
    size = np.linalg.norm(vectors, axis=-1)
    safe = np.where(size > 0, size, 1)
    logs = np.where(size > 0, logs + np.log(safe), -np.inf)
    return Adjoints(vectors / safe[..., None], logs)


def total(a: Adjoints, b: Adjoints) -> Adjoints:
    """a + b at the scale of the larger."""
    largest = np.maximum(a.logs, b.logs)
    largest = np.where(np.isfinite(largest), largest, 0)
    parts = (x.vectors * np.exp(x.logs - largest)[..., None] for x in (a, b))
    return normalized(sum(parts), largest)


def adjoints(slopes: np.ndarray, W: np.ndarray, immediate: np.ndarray) -> Adjoints:
    """lambda_1..lambda_T from phi'(z_t) `[T, B, H]` and e_t `[T, B, H]`, all float64."""
    future = Adjoints(np.zeros_like(immediate[0]), np.full(immediate.shape[1], -np.inf))
    steps = []
    for t in reversed(range(len(immediate))):
        own = normalized(immediate[t], np.zeros(immediate.shape[1]))
        now = total(own, future)
        steps.append(now)
        future = normalized((now.vectors * slopes[t]) @ W.T, now.logs)
    return Adjoints(*(np.array(leaf[::-1]) for leaf in zip(*steps, strict=True)))


def mp_log_adjoints(slopes: np.ndarray, W: np.ndarray, immediate: np.ndarray) -> np.ndarray:
    """ln|lambda_t| `[T]` of one example in 40 digits; slopes and immediate `[T, H]`."""
    with mpmath.workdps(40):
        H = len(W)
        matrix = [[mpmath.mpf(float(w)) for w in row] for row in W]
        future = [mpmath.mpf(0)] * H
        logs = []
        for t in reversed(range(len(immediate))):
            now = [mpmath.mpf(float(immediate[t, i])) + future[i] for i in range(H)]
            logs.append(float(mpmath.log(mpmath.norm(now))))
            pulled = [now[i] * mpmath.mpf(float(slopes[t, i])) for i in range(H)]
            future = [mpmath.fdot(matrix[i], pulled) for i in range(H)]
        return np.array(logs[::-1])


def mp_log_singular_values(matrices: np.ndarray, digits: int) -> np.ndarray:
    """ln of the singular values, largest first, of matrices[-1] ... matrices[0].

    `digits` must be well above twice the decades between the largest and the smallest value.
    """
    with mpmath.workdps(digits):
        product = mpmath.eye(matrices.shape[-1])
        for matrix in matrices:
            product = mpmath.matrix(matrix.tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        return np.array(sorted((float(mpmath.log(value)) for value in values), reverse=True))
