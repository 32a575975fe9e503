"""A training run as event files, which TensorBoard shows while it runs.

scalars      loss, gradient_norm: the numbers of metrics.jsonl
histograms   gradient/log_norms: ln|dL/ds_t|, one number a time step
images       gradient/profile, gradient/heatmap: the gradient by time step, ten times a run

Written with TensorBoard's own writer, which does without TensorFlow: what shows the files is all
that is needed to make them. An event file grows by records that carry their own checksums; of one
that a killed process cut short, TensorBoard shows all whole records.
"""

import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.profiles import profiles
from experiments.cli.options import UsageError
from experiments.training.algorithm import Arrays
from experiments.training.single import OnLog
from rnn_jax import plots

FOLDER = "tensorboard"
NUM_IMAGES = 10


class Format(NamedTuple):
    """The parts of TensorBoard that know its format."""

    event: ModuleType
    summary: ModuleType
    tensor: ModuleType
    image: ModuleType
    scalar: Callable[..., Any]
    histogram: Callable[..., Any]
    writer: Callable[[str], Any]


def load_format() -> Format:
    """TensorBoard's format; `UsageError` that names the extra where it is not installed."""
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.histogram.summary import histogram_pb
        from tensorboard.plugins.image import metadata
        from tensorboard.plugins.scalar.summary import scalar_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise UsageError(
            f'--tensorboard needs TensorBoard ({error}); pip install -e ".[tensorboard]" brings it'
        ) from error
    return Format(
        event_pb2, summary_pb2, tensor_util, metadata, scalar_pb, histogram_pb, EventFileWriter
    )


@contextlib.contextmanager
def events(workdir: Path, num_steps: int, boundary: int | None = None) -> Iterator[OnLog]:
    """Yields a function that writes a run's metrics to event files in `workdir`/tensorboard.

    Args:
        workdir: the run's folder. Event files from before are dropped when a run begins at its
            first iteration; they stay where one goes on.
        num_steps: iterations of the whole run.
        boundary: last time step with a true input, marked in the images; None where all are true.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    form = load_format()
    before = list((workdir / FOLDER).glob("events.out.tfevents.*"))
    writer = form.writer(str(workdir / FOLDER))
    seen: list[np.ndarray] = []

    def write(step: int, summary: Any) -> None:
        writer.add_event(form.event.Event(wall_time=time.time(), step=step, summary=summary))

    def log(done: int, results: Arrays) -> None:
        norms = results["trace"][0]
        first = done - len(norms)
        if first == 0:
            for path in before:
                path.unlink()
        seen.append(norms)
        write(done, form.scalar("loss", results["loss"][0, -1]))
        write(done, form.scalar("gradient_norm", results["gradient_norm"][0, -1]))
        logs = plots.natural_log(norms[-1])
        logs = logs[np.isfinite(logs)]
        what = "ln|dL/ds_t| of the last iteration, one number a time step; in nats"
        write(done, form.histogram("gradient/log_norms", logs, description=what))
        if first * NUM_IMAGES // num_steps != done * NUM_IMAGES // num_steps:
            for name, figure in _figures(np.concatenate(seen), boundary).items():
                write(done, _image(form, f"gradient/{name}", figure))
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


def _figures(norms: np.ndarray, boundary: int | None) -> dict[str, Any]:
    """The gradient so far, from |dL/ds_t| `[iterations, T]`."""
    span = f"in the first {len(norms):,} iterations"
    return {
        "profile": plots.gradient_profiles(
            profiles(norms), f"The gradient by time step, {span}", boundary
        ),
        "heatmap": plots.gradient_heatmap(norms, f"The gradient {span}", boundary),
    }


def _image(form: Format, tag: str, figure: Any) -> Any:
    """A figure as an image summary: width, height and the PNG."""
    png = plots.png(figure)
    width, height = struct.unpack(">II", png[16:24])
    what = form.image.create_summary_metadata(
        display_name=None, description=None, converted_to_tensor=True
    )
    strings = np.array([str(width).encode(), str(height).encode(), png], dtype=object)
    summary = form.summary.Summary()
    summary.value.add(tag=tag, metadata=what, tensor=form.tensor.make_tensor_proto(strings))
    return summary
