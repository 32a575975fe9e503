"""Long sequences in little memory: on the way back a cell is run again, segment by segment."""

from rnn_jax.cells.cell import Cell


def segmented(cell: Cell, segment_length: int) -> Cell:
    """The same cell, unrolled with a checkpoint before every segment of so many steps.

    Args:
        cell: any `Cell`. Other wrappers make a cell anew: this one comes last.
        segment_length: steps between two checkpoints. About sqrt(T) takes least memory.

    Returns:
        A `Cell` whose states and gradients are those of the cell. What the way back needs of a
        step, gates and products, is kept for one segment only, and computed a second time there;
        the states themselves are what `unroll` returns, and are kept.

    Raises:
        ValueError: segment_length is no whole number of at least 1.

    Source: Chen, Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost" (2016).

    >>> import jax, jax.numpy as jnp
    >>> import rnn_jax
    >>> cell = rnn_jax.segmented(rnn_jax.lstm(4), segment_length=10)
    >>> params = cell.init(jax.random.key(0), 1)
    >>> rnn_jax.unroll(cell, params, cell.initial_state(params), jnp.ones((105, 1))).h.shape
    (105, 4)
    """
    if not isinstance(segment_length, int) or isinstance(segment_length, bool):
        raise ValueError(f"segment_length is {segment_length!r}; give a whole number of steps")
    if segment_length < 1:
        raise ValueError(f"segment_length is {segment_length}; give at least 1 step")
    return cell._replace(segment_length=segment_length)
