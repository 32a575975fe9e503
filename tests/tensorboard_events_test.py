"""Event files, read back as TensorBoard reads them."""

import builtins
import dataclasses
import importlib.util
import struct

import numpy as np
import pytest

from experiments import sine
from experiments.cli.options import UsageError
from experiments.training.tensorboard_events import FOLDER, events
from rnn_jax.io import records

TINY = sine.SineConfig(train_steps=30, log_every=10, hidden_size=4, tensorboard=True)


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="TensorBoard, the extra [tensorboard], is not installed",
)


def read_back(workdir):
    """tag -> (step, value), in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(workdir / FOLDER), size_guidance={"tensors": 0})
    found.Reload()
    return {
        tag: [(told.step, make_ndarray(told.tensor_proto)) for told in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }


def metrics(loss, norms):
    loss, norms = np.asarray(loss), np.asarray(norms)
    return {"loss": loss[None], "gradient_norm": 2 * loss[None], "trace": norms[None]}


@needs_tensorboard
def test_what_is_told_is_what_tensorboard_reads(tmp_path):
    rng = np.random.default_rng(0)
    losses, norms = np.exp(rng.normal(size=4)), np.exp(rng.normal(size=(4, 20)))
    with events(tmp_path, 4) as log:
        for done in (2, 4):
            log(done, metrics(losses[done - 2 : done], norms[done - 2 : done]))
    found = read_back(tmp_path)
    for tag, wanted in (("loss", losses), ("gradient_norm", 2 * losses)):
        assert [step for step, _ in found[tag]] == [2, 4]
        np.testing.assert_allclose([value for _, value in found[tag]], wanted[1::2], rtol=1e-6)
    for (_, buckets), logs in zip(found["gradient/log_norms"], np.log(norms[1::2]), strict=True):
        np.testing.assert_allclose([buckets[0, 0], buckets[-1, 1]], [logs.min(), logs.max()])
        counts, _ = np.histogram(logs, [*buckets[:, 0], buckets[-1, 1]])
        # A number on an edge may be counted on either side of it.
        assert np.abs(np.cumsum(buckets[:, 2]) - np.cumsum(counts)).max() <= 1
    for tag in ("gradient/profile", "gradient/heatmap"):
        assert [step for step, _ in found[tag]] == [2, 4]
        width, height, png = found[tag][0][1]
        assert png.startswith(b"\x89PNG")
        assert (int(width), int(height)) == struct.unpack(">II", png[16:24])


@pytest.mark.slow
@needs_tensorboard
def test_a_run_tells_what_it_records(tmp_path):
    sine.run(dataclasses.replace(TINY, workdir=str(tmp_path / "run")))
    found = read_back(tmp_path / "run")
    for tag in ("loss", "gradient_norm"):
        rows = [(row["step"], row[tag]) for row in records.load_metrics(tmp_path / "run")]
        assert [step for step, _ in rows] == [10, 20, 30]
        np.testing.assert_allclose(found[tag], rows, rtol=1e-6)
    trace = records.load_array(tmp_path / "run", "trace")
    for (step, buckets), row in zip(found["gradient/log_norms"], (9, 19, 29), strict=True):
        assert step == row + 1
        np.testing.assert_allclose(buckets[0, 0], np.log(trace[row]).min())
    assert [step for step, _ in found["gradient/heatmap"]] == [10, 20, 30]


@needs_tensorboard
def test_zeros_and_what_is_not_finite_leave_the_rest_readable(tmp_path):
    with events(tmp_path, 2) as log:
        log(2, metrics([1.0, np.nan], [[1.0, 1.0, 1.0], [0.0, np.inf, np.e]]))
    found = read_back(tmp_path)
    assert np.isnan(found["loss"][0][1])
    buckets = found["gradient/log_norms"][0][1]
    np.testing.assert_allclose(buckets[-1], [1, 1, 1])
    assert len(found["gradient/profile"]) == len(found["gradient/heatmap"]) == 1


@needs_tensorboard
def test_a_run_started_anew_drops_what_was_told_and_one_that_goes_on_adds_to_it(tmp_path):
    for first, loss, wanted in (
        (0, 5.0, [(2, 5.0)]),
        (2, 4.0, [(2, 5.0), (4, 4.0)]),
        (0, 3.0, [(2, 3.0)]),
    ):
        with events(tmp_path, 1000) as log:
            log(first + 2, metrics([loss, loss], np.ones((2, 3))))
        found = read_back(tmp_path)
        assert sorted((step, float(loss)) for step, loss in found["loss"]) == wanted
        assert "gradient/profile" not in found  # a tenth of the run has not passed


def test_without_tensorboard_nothing_starts_and_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r'pip install -e "\.\[tensorboard\]"') as raised:
        sine.run(config)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_event_files_are_of_one_run(tmp_path):
    config = dataclasses.replace(TINY, seeds=2, workdir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="--seeds=2"):
        sine.run_seeds(config)


@needs_tensorboard
def test_of_a_file_that_a_kill_cut_short_all_whole_records_are_read(tmp_path):
    with events(tmp_path, 6) as log:
        for done in (2, 4, 6):
            log(done, metrics(np.full(2, done), np.ones((2, 5))))
    (path,) = (tmp_path / FOLDER).glob("events.*")
    path.write_bytes(path.read_bytes()[:-100])
    assert [step for step, _ in read_back(tmp_path)["loss"]] == [2, 4, 6]
    path.write_bytes(path.read_bytes()[:400])
    assert len(read_back(tmp_path)["loss"]) < 3
