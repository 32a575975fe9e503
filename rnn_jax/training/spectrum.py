"""Weight decay on W's spectrum: singular values are drawn to 1, not to 0."""

import jax
import jax.numpy as jnp

from rnn_jax.model import ModelParams
from rnn_jax.objectives import Objective, Run
from rnn_jax.training.regularizers import Regularizer
from rnn_jax.types import Array, Params, State


def recurrent_matrices(params: Params) -> list[Array]:
    """Every square `[H, H]` of the leaves W of a cell or of cells within: a gate's each."""
    found: list[Array] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        if name == "W" and leaf.ndim == 2 and leaf.shape[1] % leaf.shape[0] == 0:
            found += jnp.split(leaf, leaf.shape[1] // leaf.shape[0], axis=1)
    return found


def spectral_penalty(params: Params) -> Array:
    """Sum over W of |W^T W - I|^2, which is the sum over its singular values of (sigma^2 - 1)^2.

    Args:
        params: of a cell whose recurrent matrices are leaves W, alone or gates side by side.

    Raises:
        ValueError: a cell without any.

    Source: Vorontsov, Trabelsi, Kadoury & Pal, "On orthogonality and learning recurrent networks
    with long term dependencies", ICML (2017), section 2.2.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> from rnn_jax.training.spectrum import spectral_penalty
    >>> cell = rnn_jax.elman(4, recurrent_init=rnn_jax.initializers.orthogonal(2.0))
    >>> spectral_penalty(cell.init(jax.random.key(0), 1)).round(3)
    Array(36., dtype=float32)
    """
    matrices = recurrent_matrices(params)
    if not matrices:
        raise ValueError(
            "the cell's parameters have no square leaf W `[H, H]` or `[H, G H]`, so nothing has a "
            "spectrum to be held; take the weight of the penalty away"
        )
    off = [W.T @ W - jnp.eye(len(W), dtype=W.dtype) for W in matrices]
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(each)) for each in off]))


def soft_orthogonal(weight: float | Array) -> Regularizer:
    """The gradient of weight times `spectral_penalty`, for `training.train_step(regularize=...)`.

    Args:
        weight: lambda; the paper tries 1e-5 to 1e-1, and loses speed where it is large.
    """

    def regularize(
        objective: Objective, params: ModelParams, carry: State, run: Run, adjoints: State
    ) -> ModelParams:
        return ModelParams(
            cell=jax.grad(lambda cell: weight * spectral_penalty(cell))(params.cell),
            readout=jax.tree.map(jnp.zeros_like, params.readout),
        )

    return regularize
