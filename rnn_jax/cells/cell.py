"""What a recurrent cell is here: a NamedTuple of pure functions, with its structure where known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnn_jax.placement import is_split
from rnn_jax.types import Array, Params, State

Factors = dict[str, tuple[Array, Array]]


def _itself(state: State) -> Array:
    return state


class Derivative(NamedTuple):
    """The derivative by hand of an `activate` that has no parameters of its own.

    Attributes:
        keep: `(s, a, r) -> (s', kept)`: `activate`, and what `pull` needs of the step.
        pull: `(s, s', kept, dL/ds') -> (dL/ds, dL/da, dL/dr)`; dL/ds is the part that does not go
            through r.
    """

    keep: Callable[[State, Any, Any], tuple[State, Any]]
    pull: Callable[[State, State, Any, State], tuple[State, Any, Any]]


class Affine(NamedTuple):
    """A step taken apart: affine in x, affine in s, then a function of each example alone.

        step(params, s, x) == activate(params, s, project(params, x), recur(params, s))

    Elman, leaky, LSTM and GRU cells all have this form. With the parts named, the input product is
    one matrix product over all time steps before the forward scan, and the weight gradients are
    one matrix product after the reverse scan; neither scan recomputes anything.

    Attributes:
        project: `(params, x) -> a`, affine in x; it broadcasts over leading axes.
        recur: `(params, s) -> r`, affine in s; it broadcasts over leading axes.
        activate: `(params, s, a, r) -> s'`, each example by itself; it broadcasts. Elementwise
            over the units too in most cells, not with layer normalization.
        slope: `states -> phi'(z)` for cells `s' = phi(a + r)` whose slope can be told from s'
            alone (tanh: 1 - s'^2). It saves the memory of r_t and the work of differentiating
            `activate`. None for any other cell.
        derivative: of `activate`, by hand, where that is less work than differentiating it, which
            computes every exponential twice. None is always correct.
        factors: `(x, s_{t-1}, dL/da, dL/dr) -> {parameter: (left, right)}`, such that one
            example's part of each parameter's gradient is the outer product left right^T. None
            where some parameter's is not.
    """

    project: Callable[[Params, Array], Any]
    recur: Callable[[Params, State], Any]
    activate: Callable[[Params, State, Any, Any], State]
    slope: Callable[[State], Array] | None = None
    derivative: Derivative | None = None
    factors: Callable[[Array, State, Any, Any], Factors] | None = None


def times(x: Array, weights: Array) -> Array:
    """x `[..., D]` times weights `[D, G]`, as one product over all leading axes.

    So is the gradient of the weights then. Left with its axes, XLA makes a transposed copy of
    `[T, B, G]` for it (4 of 87 milliseconds at H = 512, B = 128, T = 50 on two CPU cores). Axes
    that an Explicit mesh splits cannot be merged with others.
    """
    if x.ndim < 3 or is_split(x):
        return x @ weights
    return (x.reshape(-1, x.shape[-1]) @ weights).reshape(*x.shape[:-1], weights.shape[-1])


def ones_like_unit(x: Array) -> Array:
    """Ones `[..., 1]` for x `[..., D]`: the left factor of a bias."""
    return jnp.ones_like(x[..., :1])


class Cell(NamedTuple):
    """A recurrent cell as pure functions; all of them broadcast over leading batch axes.

    Attributes:
        init: `(key, input_size) -> params`.
        initial_state: `(params, batch_shape=()) -> state`, leaves `[*batch_shape, H]`.
        step: `(params, state, x) -> state`, x `[..., D]`.
        emit: `state -> [..., H]`, what the readout sees; the state itself unless given.
        affine: the step's structure where it has one (see `Affine`); None is always correct.
        layers: the cells of a stack, bottom first, where this is one (see `rnn_jax.stack`).
        segment_length: how far `unroll` runs between two checkpoints (see `rnn_jax.segmented`).
        prepare: `params -> prepared`, what a step needs of the parameters alone, such as the
            orthogonal W of a skew-symmetric one: `unroll` computes it once a sequence, and
            differentiates it by itself. `step` and `affine` take both, so None is always correct.

    Any pure function will do as a step:

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> integrator = rnn_jax.Cell(
    ...     init=lambda key, input_size: jnp.ones(()),
    ...     initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, 1)),
    ...     step=lambda leak, state, x: leak * state + x,
    ... )
    >>> rnn_jax.unroll(integrator, 0.5, jnp.zeros(1), jnp.ones((3, 1)))[:, 0]
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """

    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, Array], State]
    emit: Callable[[State], Array] = _itself
    affine: Affine | None = None
    layers: "tuple[Cell, ...] | None" = None
    segment_length: int | None = None
    prepare: Callable[[Params], Any] | None = None


def affine_cell(
    init: Callable[..., Params],
    initial_state: Callable[..., State],
    affine: Affine,
    emit: Callable[[State], Array] = _itself,
) -> Cell:
    """A cell from its parts; `step` is their composition."""

    def step(params: Params, state: State, x: Array) -> State:
        return affine.activate(
            params, state, affine.project(params, x), affine.recur(params, state)
        )

    return Cell(init, initial_state, step, emit, affine)


def affine_within(affine: Affine | None) -> Affine | None:
    """The structure of a cell whose parameters are the field `cell` of larger ones."""
    if affine is None:
        return None
    return affine._replace(
        project=lambda params, x: affine.project(params.cell, x),
        recur=lambda params, state: affine.recur(params.cell, state),
        activate=lambda params, state, a, r: affine.activate(params.cell, state, a, r),
        # They would name the parameters of the inner cell only.
        factors=None,
    )


def prepare_within(cell: Cell) -> Callable[[Params], Any] | None:
    """The `prepare` of a cell whose parameters are the field `cell` of larger ones."""
    prepare = cell.prepare
    if prepare is None:
        return None
    return lambda params: params._replace(cell=prepare(params.cell))


def prepared(cell: Cell, params: Params) -> Any:
    """The parameters as each step of a sequence reads them."""
    return params if cell.prepare is None else cell.prepare(params)


def fixed(number: Array) -> Array:
    """A number that a sweep varies and training does not: its gradient is 0."""
    return lax.stop_gradient(number)


def emit_size(cell: Cell, params: Params) -> int:
    """H of what a cell emits, `[..., H]`."""
    return jax.eval_shape(lambda p: cell.emit(cell.initial_state(p)), params).shape[-1]
