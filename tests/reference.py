"""An Elman network in NumPy float64, written by hand: forward, BPTT as a loop, the textbook sum.

    z_t = x_t U + s_{t-1} W + b,   s_t = phi(z_t),   o_t = s_t V + c
    L = mean over t, batch and outputs of (o_t - y_t)^2

Nothing here uses JAX: it is the independent answer of the tests. T time, B batch, D input,
H hidden, O output.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Phi(NamedTuple):
    """An activation and its derivative, both functions of z."""

    function: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


PHI = {
    "tanh": Phi(np.tanh, lambda z: np.cosh(z) ** -2),
    "relu": Phi(lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": Phi(sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    "identity": Phi(lambda z: z, lambda z: np.ones_like(z)),
}


class Weights(NamedTuple):
    """U `[D, H]`, W `[H, H]`, b `[H]`, V `[H, O]`, c `[O]`."""

    U: np.ndarray
    W: np.ndarray
    b: np.ndarray
    V: np.ndarray
    c: np.ndarray


class Run(NamedTuple):
    """z `[T, B, H]`, states s_1..s_T `[T, B, H]`, outputs `[T, B, O]`, loss."""

    z: np.ndarray
    states: np.ndarray
    outputs: np.ndarray
    loss: float


class Gradients(NamedTuple):
    """Of L by the weights, s_0 `[B, H]`, x `[T, B, D]`; lambda_t and e_t `[T, B, H]`."""

    weights: Weights
    s_0: np.ndarray
    x: np.ndarray
    adjoints: np.ndarray
    immediate: np.ndarray


def random_weights(rng: np.random.Generator, D: int, H: int, O: int, std: float = 0.5) -> Weights:
    """Normal entries of standard deviation `std` in every weight and bias."""
    shapes = ((D, H), (H, H), (H,), (H, O), (O,))
    return Weights(*(std * rng.normal(size=shape) for shape in shapes))


def forward(weights: Weights, phi: Phi, s_0: np.ndarray, x: np.ndarray, y: np.ndarray) -> Run:
    """One step after the other; s_0 `[B, H]`, x `[T, B, D]`, y `[T, B, O]`."""
    U, W, b, V, c = weights
    z, states, outputs = [], [], []
    s = s_0
    for t in range(len(x)):
        z.append(x[t] @ U + s @ W + b)
        s = phi.function(z[t])
        states.append(s)
        outputs.append(s @ V + c)
    loss = float(np.mean((np.array(outputs) - y) ** 2))
    return Run(np.array(z), np.array(states), np.array(outputs), loss)


def backward(
    weights: Weights, phi: Phi, s_0: np.ndarray, x: np.ndarray, y: np.ndarray, run: Run
) -> Gradients:
    """BPTT by hand: one pass from the last step to the first, adding up every weight gradient."""
    U, W, _, V, _ = weights
    dU, dW, db, dV, dc = (np.zeros_like(weight) for weight in weights)
    dx, adjoints, immediate = np.zeros_like(x), np.zeros_like(run.z), np.zeros_like(run.z)
    through_future = np.zeros_like(s_0)
    for t in reversed(range(len(x))):
        do = 2 * (run.outputs[t] - y[t]) / y.size
        immediate[t] = do @ V.T
        adjoints[t] = immediate[t] + through_future
        dz = adjoints[t] * phi.derivative(run.z[t])
        previous = run.states[t - 1] if t > 0 else s_0
        dU += x[t].T @ dz
        dW += previous.T @ dz
        db += dz.sum(axis=0)
        dV += run.states[t].T @ do
        dc += do.sum(axis=0)
        dx[t] = dz @ U.T
        through_future = dz @ W.T
    return Gradients(Weights(dU, dW, db, dV, dc), through_future, dx, adjoints, immediate)


def textbook_terms(
    weights: Weights, phi: Phi, s_0: np.ndarray, x: np.ndarray, y: np.ndarray, run: Run
) -> np.ndarray:
    """Every term of dL/dW = sum_t sum_{k<=t} dL_t/do_t do_t/ds_t (prod_j ds_j/ds_{j-1}) ds_k/dW.

    The product runs over j = k+1..t and is formed as a matrix; L_t is step t's part of L.
    Returns `[T, T, H, H]`, row t and column k, zero for k > t.
    """
    _, W, _, V, _ = weights
    T, B, H = run.z.shape
    terms = np.zeros((T, T, H, H))
    for example in range(B):
        slopes = phi.derivative(run.z[:, example])
        # Entry (i, m) of a Jacobian is d s_j[i] / d s_{j-1}[m].
        jacobians = [np.diag(slope) @ W.T for slope in slopes]
        for t in range(T):
            dL_do = 2 * (run.outputs[t, example] - y[t, example]) / y.size
            for k in range(t + 1):
                product = np.eye(H)
                for j in range(k + 1, t + 1):
                    product = jacobians[j] @ product
                previous = run.states[k - 1, example] if k > 0 else s_0[example]
                # Entry (i, m, n) is d s_k[i] / d W[m, n], the state before held fixed.
                ds_dW = np.einsum("i,m,in->imn", slopes[k], previous, np.eye(H))
                terms[t, k] += np.einsum("i,imn->mn", dL_do @ V.T @ product, ds_dW)
    return terms


def summand_norms(x: np.ndarray, s_0: np.ndarray, phi: Phi, run: Run, g: Gradients) -> Weights:
    """Frobenius norm of step k's summand of dL/dU, dL/dW, dL/db, each `[T]`; V and c empty."""
    dz = g.adjoints * phi.derivative(run.z)
    previous = np.concatenate([s_0[None], run.states[:-1]])
    T = len(x)
    return Weights(
        U=np.array([np.linalg.norm(x[k].T @ dz[k]) for k in range(T)]),
        W=np.array([np.linalg.norm(previous[k].T @ dz[k]) for k in range(T)]),
        b=np.array([np.linalg.norm(dz[k].sum(axis=0)) for k in range(T)]),
        V=np.array([]),
        c=np.array([]),
    )


class Adam(NamedTuple):
    """Kingma & Ba (2015), algorithm 1: number of updates, first and second moment."""

    count: int
    m: Weights
    v: Weights


def adam_start(weights: Weights) -> Adam:
    zeros = Weights(*(np.zeros_like(weight) for weight in weights))
    return Adam(0, zeros, zeros)


def adam_update(
    weights: Weights, gradients: Weights, adam: Adam, rate: float
) -> tuple[Weights, Adam]:
    """One update with the paper's beta_1 0.9, beta_2 0.999 and epsilon 1e-8."""
    count = adam.count + 1
    new, ms, vs = [], [], []
    for weight, gradient, m, v in zip(weights, gradients, adam.m, adam.v, strict=True):
        ms.append(0.9 * m + 0.1 * gradient)
        vs.append(0.999 * v + 0.001 * gradient**2)
        m_hat = ms[-1] / (1 - 0.9**count)
        v_hat = vs[-1] / (1 - 0.999**count)
        new.append(weight - rate * m_hat / (np.sqrt(v_hat) + 1e-8))
    return Weights(*new), Adam(count, Weights(*ms), Weights(*vs))
