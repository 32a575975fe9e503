"""Cures that act within a step: what wraps the cell, and the chance that comes with its inputs."""

from collections.abc import Callable

import jax

import rnn_jax
from experiments.cli.options import UsageError
from rnn_jax.cells.dilated import dilated
from rnn_jax.cells.h_detach import h_detach, with_detached
from rnn_jax.cells.zoneout import with_zoneout, zoneout
from rnn_jax.tasks.task import Task
from rnn_jax.types import Array, Batch, Key

Lengthen = Callable[[Key | None, Array], Array]
"""`(key, inputs [T, B, D]) -> [T, B, D + N]`; without a key what evaluation sees."""

STREAM = 2
"""Folded into the key of an iteration's data for what is drawn here."""


def switched_cell(
    cell: rnn_jax.Cell, zoneout_rate: float, detach: float, dilation: int
) -> rnn_jax.Cell:
    """The cell with the cures that are switched on.

    Raises:
        UsageError: h-detach of a cell whose recurrent product is not known.
    """
    if detach:
        if cell.affine is None:
            raise UsageError(
                f"--detach={detach:g}: this cell does not say where its recurrent product is, so "
                "there is nothing to cut; take an lstm, gru or another cell with `affine` parts"
            )
        cell = h_detach(cell)
    cell = dilated(cell, dilation)
    return zoneout(cell) if zoneout_rate else cell


def lengthen_inputs(
    cell: rnn_jax.Cell, zoneout_rate: float, detach: float, dilation: int
) -> Lengthen | None:
    """What a switched cell reads behind its inputs; None where it reads nothing more.

    Args:
        cell: as it was before `switched_cell`.
    """
    if not (zoneout_rate or detach):
        return None

    def lengthen(key: Key | None, xs: Array) -> Array:
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        if detach:
            xs = with_detached(keys[0], xs, detach)
        if zoneout_rate:
            xs = with_zoneout(keys[1], dilated(cell, dilation), xs, zoneout_rate)
        return xs

    return lengthen


def lengthened(task: Task, lengthen: Lengthen | None, by_chance: bool) -> Task:
    """The task with longer inputs, drawn anew for each batch or as evaluation sees them."""
    if lengthen is None:
        return task

    def sample(key: Key) -> Batch:
        batch = task.sample(key)
        own = jax.random.fold_in(key, STREAM) if by_chance else None
        return batch._replace(inputs=lengthen(own, batch.inputs))

    size = jax.eval_shape(sample, jax.random.key(0)).inputs.shape[-1]
    return task._replace(sample=sample, input_size=size)
