"""What the gradient-flow experiment measures on one network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments.setup import host_memory
from experiments.setup.networks import Network
from rnn_jax import gradflow
from rnn_jax.gradflow import theory
from rnn_jax.types import Array, Params, State, StepLosses

NUM_LAGS = 24
"""At most so many lags have a product of Jacobians."""
JACOBIANS_AT_ONCE = 64


class Measured(NamedTuple):
    """What is measured on one network; logarithms in nats.

    Attributes:
        log_norms: ln|dL/ds_t|, `[T, B]`.
        credit: ln rms|dL_t/ds_k|, `[T, T]`.
        terms: name -> ln norm of each summand of that parameter's gradient, `[T]`.
        exponents: Lyapunov exponents, `[N]`.
        lags: `[L]`.
        singular_values: ln singular values of the product over the last so many steps, `[L, N]`.
        product_eigenvalues: ln of the moduli of the same products' eigenvalues, `[L, N]`; NaN for
            those so small beside the largest that rounding hides them.
        eigenvalues: of W, or of the last Jacobian where the cell has no single W, `[N]`.
        truncation: share and direction of dL/dtheta left by each window.
        diagnosis: the verdict and its numbers.
    """

    log_norms: np.ndarray
    credit: np.ndarray
    terms: dict[str, np.ndarray]
    exponents: np.ndarray
    lags: np.ndarray
    singular_values: np.ndarray
    product_eigenvalues: np.ndarray
    eigenvalues: np.ndarray
    truncation: gradflow.TruncationBias
    diagnosis: gradflow.Diagnosis


def check_memory(state_size: int, num_steps: int, batch_size: int) -> None:
    """`UsageError` where what is surely needed is more than there is; nothing is made.

    Args:
        state_size: numbers in a state.
        num_steps: T.
        batch_size: B.
    """
    products = (3 * 4 * NUM_LAGS + 8 * JACOBIANS_AT_ONCE) * state_size**2
    adjoints = 4 * 4 * num_steps * batch_size * state_size
    needed = products + adjoints + 4 * num_steps**2
    host_memory.check_fits(needed, "--hidden_size, --length or --batch_size")


def exponents_of(network: Network) -> Array:
    """Lyapunov exponents on the network's own inputs, the first fifth of the steps left out."""
    burn_in = network.xs.shape[0] // 5
    return gradflow.lyapunov_spectrum(
        network.cell, network.params, network.state, network.xs, burn_in=burn_in
    )


def measure(network: Network) -> Measured:
    """Everything that is drawn of one network."""
    arguments = (network.cell, network.params, network.state, network.xs)
    terms = gradflow.parameter_terms(*arguments, network.step_losses)
    lags = np.unique(np.geomspace(1, network.xs.shape[0], NUM_LAGS).astype(int))
    return Measured(
        log_norms=np.asarray(gradflow.state_gradients(*arguments, network.step_losses)),
        credit=np.asarray(gradflow.credit_matrix(*arguments, _of_every_step(network))),
        terms={
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(terms)
        },
        exponents=np.asarray(exponents_of(network)),
        lags=lags,
        singular_values=np.asarray(singular_values_by_lag(network, lags)),
        product_eigenvalues=product_eigenvalues_by_lag(network, lags),
        eigenvalues=eigenvalues_of(network),
        truncation=jax.tree.map(
            np.asarray, gradflow.truncation_bias(*arguments, network.step_losses)
        ),
        diagnosis=gradflow.diagnose(*arguments, network.step_losses),
    )


def _of_every_step(network: Network) -> StepLosses:
    """The mean emitted unit as the loss of each step: each has its row in the credit matrix."""
    return lambda states: jnp.mean(network.cell.emit(states), axis=-1)


def singular_values_by_lag(network: Network, lags: np.ndarray) -> Array:
    """ln singular values `[L, N]` of the Jacobian product over the last so many steps.

    Of the batch's first example. All lags run in one program: a step before the lag's first is the
    identity.
    """
    cell, params = network.cell, network.params
    first = jax.tree.map(lambda s: s[0], network.state)
    xs = network.xs[:, 0]
    num_steps = xs.shape[0]
    states = rnn_jax.plain_unroll(cell, params, first, xs)
    all_states = jax.tree.map(lambda s, rest: jnp.concatenate([s[None], rest]), first, states)

    def step(params: Params, state: State, x: Array) -> State:
        return jax.tree.map(
            lambda new, old: jnp.where(x[-1] > 0, new, old),
            cell.step(params, state, x[:-1]),
            state,
        )

    def of_lag(lag: Array) -> Array:
        active = (jnp.arange(num_steps) >= num_steps - lag).astype(xs.dtype)
        start = jax.tree.map(lambda s: s[num_steps - lag], all_states)
        inputs = jnp.concatenate([xs, active[:, None]], axis=1)
        return gradflow.jacobian_product(
            cell._replace(step=step, affine=None), params, start, inputs
        )

    return jax.jit(jax.vmap(of_lag))(jnp.asarray(lags))


def product_eigenvalues_by_lag(network: Network, lags: np.ndarray) -> np.ndarray:
    """ln of the moduli of the eigenvalues `[L, N]` of the products of `singular_values_by_lag`.

    The product is built backwards from the last step in float64, its scale kept as a logarithm.
    """
    cell, params = network.cell, network.params
    first = jax.tree.map(lambda s: s[0], network.state)
    xs = network.xs[:, 0]
    states = rnn_jax.plain_unroll(cell, params, first, xs)
    previous = jax.tree.map(lambda s, rest: jnp.concatenate([s[None], rest[:-1]]), first, states)
    flat_first, unravel = ravel_pytree(first)

    def step(flat: Array, x: Array) -> Array:
        return ravel_pytree(cell.step(params, unravel(flat), x))[0]

    flat = jax.vmap(lambda state: ravel_pytree(state)[0])(previous)
    jacobians = jax.jit(jax.vmap(jax.jacrev(step)))
    product, scale = np.eye(len(flat_first)), 0.0
    found = []
    wanted = set(lags.tolist())
    for stop in range(len(xs), 0, -JACOBIANS_AT_ONCE):
        start = max(0, stop - JACOBIANS_AT_ONCE)
        block = np.asarray(jacobians(flat[start:stop], xs[start:stop]), np.float64)
        for t in range(stop - 1, start - 1, -1):
            product = product @ block[t - start]
            size = np.abs(product).max()
            if size > 0:
                product, scale = product / size, scale + np.log(size)
            if len(xs) - t in wanted:
                found.append(_log_moduli(product) + scale)
    return np.array(found)


def _log_moduli(matrix: np.ndarray) -> np.ndarray:
    """ln|eigenvalues|, falling; NaN where smaller than the rounding of the largest entry."""
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
    hidden = moduli <= len(matrix) * np.finfo(np.float64).eps
    return np.where(hidden, np.nan, np.log(np.where(hidden, 1, moduli)))


def eigenvalues_of(network: Network) -> np.ndarray:
    """Eigenvalues of W for an Elman cell, else of the last step's Jacobian (first example)."""
    if isinstance(network.params, rnn_jax.ElmanParams):
        return np.linalg.eigvals(np.asarray(network.params.W, np.float64))
    start = jax.tree.map(lambda s: s[0], network.state)
    states = rnn_jax.plain_unroll(network.cell, network.params, start, network.xs[:, 0])
    flat, unravel = ravel_pytree(jax.tree.map(lambda s: s[-1], states))
    jacobian = jax.jacobian(
        lambda s: ravel_pytree(network.cell.step(network.params, unravel(s), network.xs[-1, 0]))[0]
    )(flat)
    return np.linalg.eigvals(np.asarray(jacobian, np.float64))


def slope_bounds(network: Network, activation: str) -> tuple[float, float] | None:
    """Smallest and largest slope that the singular values of W allow (Pascanu et al. 2013)."""
    if not isinstance(network.params, rnn_jax.ElmanParams):
        return None
    bounds = theory.singular_value_bounds(network.params.W, activation)
    return float(bounds.lower_slope), float(bounds.upper_slope)
