"""Matrix products in bfloat16, everything else in float32."""

from typing import Any

import jax
from jax import lax

from rnn_jax.cells.cell import Cell, affine_cell
from rnn_jax.types import Array, Params, State

PRODUCTS = "BF16_BF16_F32"
"""`jax.lax.DotAlgorithmPreset`: factors of bfloat16, their products added up in float32."""


def bfloat16_products(cell: Cell) -> Cell:
    """The cell with the factors of its matrix products rounded to bfloat16.

    Weights, inputs and states are rounded where they are multiplied, and only there: parameters,
    states, adjoints and all sums are float32, so that lambda_t is added up as exactly as before.
    Rounding counts as the identity when differentiated. The products of the reverse scan and of
    the weight gradients are of the same kind.

    Args:
        cell: one with `affine` parts, whose `project` and `recur` hold its products.

    Returns:
        A cell with the same parameters and state.

    Raises:
        ValueError: the cell has no `affine` parts.

    It saves time where the hardware has such products: GPUs from Ampere on, TPUs. A CPU rounds the
    factors of the forward pass and multiplies in float32.

    Source: Micikevicius et al., "Mixed precision training", ICLR (2018); bfloat16 has the range of
    float32 and needs no loss scaling (Kalamkar et al., arXiv:1905.12322).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.bfloat16_products(rnn_jax.lstm(hidden_size=4))
    >>> params = cell.init(jax.random.key(0), input_size=2)
    >>> states = rnn_jax.unroll(cell, params, cell.initial_state(params), jnp.ones((7, 2)))
    >>> states.h.dtype
    dtype('float32')
    """
    affine = cell.affine
    if affine is None:
        raise ValueError(
            "bfloat16_products wants a cell with `affine` parts, which say where its matrix "
            "products are, but this cell has none; wrap the layers of a stack one by one, and give "
            "a cell of your own an Affine"
        )

    def project(params: Params, x: Array) -> Any:
        with jax.default_matmul_precision(PRODUCTS):
            return affine.project(_weights_rounded(params), _rounded(x))

    def recur(params: Params, state: State) -> Any:
        with jax.default_matmul_precision(PRODUCTS):
            return affine.recur(_weights_rounded(params), jax.tree.map(_rounded, state))

    rounded = affine._replace(project=project, recur=recur)
    return affine_cell(cell.init, cell.initial_state, rounded, cell.emit)


def _weights_rounded(params: Params) -> Params:
    """Matrices rounded; what is added, such as a bias, stays as it is."""
    return jax.tree.map(lambda leaf: _rounded(leaf) if leaf.ndim > 1 else leaf, params)


@jax.custom_jvp
def _rounded(x: Array) -> Array:
    """x at bfloat16's 8 digits, in its own type."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


_rounded.defjvps(lambda tangent, result, x: tangent)
