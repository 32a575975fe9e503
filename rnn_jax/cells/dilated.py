"""Skip connections over time: a cell whose recurrence reaches several steps back."""

from rnn_jax.cells.cell import Cell
from rnn_jax.cells.elman import check_size
from rnn_jax.types import Array, Params, State


def dilated(cell: Cell, dilation: int) -> Cell:
    """The cell that starts each step from its state of some steps ago, s_t = f(x_t, s_{t-d}).

    T steps are T / d steps deep: a gradient that grows or fades with each does so T / d times.
    The cell runs as d interleaved copies that share their weights.

    Args:
        cell: any `Cell`. Layers of a stack may have dilations 1, 2, 4, ..., with which the top sees
            every step through some of them.
        dilation: d, at least 1; 1 is the cell itself.

    Returns:
        A `Cell` with the parameters of the cell given; its state is a tuple of the d newest states,
        oldest first, and `emit` gives the newest's. dL/ds_t is by all d of them.

    Source: Chang et al., "Dilated recurrent neural networks", NIPS (2017), eq. 2 and section 2.2.

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.stack([rnn_jax.dilated(rnn_jax.gru(8), 2**layer) for layer in range(3)])
    >>> params = cell.init(jax.random.key(0), input_size=1)
    >>> states = rnn_jax.unroll(cell, params, cell.initial_state(params), jnp.ones((20, 1)))
    >>> cell.emit(states).shape
    (20, 8)
    """
    check_size("dilation", dilation)
    if dilation == 1:
        return cell

    def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> tuple[State, ...]:
        return (cell.initial_state(params, batch_shape),) * dilation

    def step(params: Params, state: tuple[State, ...], x: Array) -> tuple[State, ...]:
        return (*state[1:], cell.step(params, state[0], x))

    return Cell(
        cell.init,
        initial_state,
        step,
        emit=lambda state: cell.emit(state[-1]),
        prepare=cell.prepare,
    )
