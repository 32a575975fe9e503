"""A run that was stopped, however, and taken up again is the run that was not."""

import dataclasses
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from run_files import contents

from experiments import digits, memory, series, sine
from experiments.cli import signals
from experiments.cli.options import UsageError
from experiments.memory import MemoryConfig
from experiments.training import loop, nonfinite, single, store
from experiments.training.algorithm import FirstNonFinite
from experiments.training.nonfinite import NonFinite
from rnn_jax.io import checkpoint, records

TINY = sine.SineConfig(train_steps=45, log_every=10, hidden_size=4, checkpoint_every=10)


def stop_at(monkeypatch, step, action):
    """Does something when the line of a step is written."""
    append = records.append_metrics

    def appending(workdir, rows):
        append(workdir, rows)
        if any(row["step"] == step for row in rows):
            action()

    monkeypatch.setattr(records, "append_metrics", appending)


def crash():
    raise KeyboardInterrupt


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sine") / "whole"
    sine.run(dataclasses.replace(TINY, workdir=str(folder)))
    return contents(folder)


@pytest.mark.survival
def test_a_signal_ends_the_chunk_and_the_run_goes_on_from_there(whole, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"), checkpoint_every=0)
    with monkeypatch.context() as patch:
        stop_at(patch, 20, interrupt)
        with pytest.raises(signals.Interrupted, match="stopped after iteration 30 of 45"):
            sine.run(config)
    assert checkpoint.steps(tmp_path / "run" / store.CHECKPOINTS) == [30]
    sine.run(config)
    assert contents(tmp_path / "run") == whole


STRANGE_LINES = b"\n".join(
    [
        b'{"step": 1e400, "seconds": 1}',
        b'{"step": 10, "seconds": 1e400}',
        b'{"step": 10, "seconds": "1"}',
        b'{"step": true, "seconds": 1}',
        b'{"step": "10", "seconds": 1}',
        b'{"step": ' + b"[" * 200_000,
        b"9" * 5000,
        b"\xff\x00",
        b"",
    ]
)


def test_a_run_without_its_last_checkpoint_goes_on_from_the_one_before(
    whole, tmp_path, monkeypatch
):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"))

    with monkeypatch.context() as patch:
        stop_at(patch, 40, crash)
        with pytest.raises(KeyboardInterrupt):
            sine.run(config)
    folder = tmp_path / "run" / store.CHECKPOINTS
    assert checkpoint.steps(folder) == [10, 20, 30]
    next((folder / "000000000030").rglob("_METADATA")).write_text("")
    with (tmp_path / "run" / records.METRICS).open("ab") as file:
        file.write(STRANGE_LINES + b'{"step": 50, "lo')
    sine.run(config)
    assert contents(tmp_path / "run") == whole


@pytest.mark.survival
def test_a_fresh_start_where_one_is_asked_for(whole, tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"))
    other = dataclasses.replace(config, seed=1)
    sine.run(other)
    with pytest.raises(ValueError, match=r"seed was 1, now 0.*--overwrite"):
        sine.run(config)
    sine.run(dataclasses.replace(config, overwrite=True))
    assert contents(tmp_path / "run") == whole


@pytest.mark.survival
def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path))
    with records.held(tmp_path), pytest.raises(ValueError, match="another process is at work"):
        sine.run(config)


def test_seeds_side_by_side_are_the_networks_of_runs_of_their_own(whole, tmp_path):
    """The seed of `whole` among others: the same losses, to rounding, and the same test."""
    config = dataclasses.replace(TINY, seeds=3, workdir=str(tmp_path / "table"))
    rows = sine.run_seeds(config)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    losses = records.load_array(tmp_path / "table", "loss_0000")
    for seed in (0, 2):
        alone = sine.run(
            dataclasses.replace(TINY, seed=seed, workdir=str(tmp_path / f"alone{seed}"))
        )
        np.testing.assert_allclose(losses[seed], alone.history.loss, rtol=1e-4)
        assert rows[seed]["carried_error"] == pytest.approx(alone.carried.error, rel=1e-3)
        assert rows[seed]["warmed_error_1000"] == pytest.approx(alone.warmed.mean(), rel=1e-3)


FEW = {"hidden_size": 5, "batch_size": 4, "train_steps": 12, "test_every": 3, "seeds": 3}
SIDE_BY_SIDE = {
    "memory": (memory, MemoryConfig(length="8", **FEW)),
    "digits": (digits, digits.DigitsConfig(**FEW)),
    "series": (series, series.SeriesConfig(length=24, season=12, **FEW)),
    "sine": (
        SimpleNamespace(run=sine.run_seeds),
        sine.SineConfig(train_steps=12, log_every=3, hidden_size=5, seeds=3),
    ),
}


@pytest.mark.survival
@pytest.mark.slow
@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_networks_side_by_side_go_on_within_their_group(name, tmp_path, monkeypatch):
    experiment, settings = SIDE_BY_SIDE[name]
    experiment.run(dataclasses.replace(settings, workdir=str(tmp_path / "whole")))
    config = dataclasses.replace(settings, workdir=str(tmp_path / "run"), checkpoint_every=3)
    save = checkpoint.save

    def saving(folder, step, tree, **options):
        save(folder, step, tree, **options)
        if step == 6:
            interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", saving)
        with pytest.raises(signals.Interrupted, match="stopped after iteration 9 of 12"):
            experiment.run(config)
    experiment.run(config)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert not (tmp_path / "run" / store.CHECKPOINTS).exists()


def test_the_line_to_go_on_with():
    words = ["python", "-m", "x", "--workdir=a b", "--overwrite", "--noresume"]
    said = signals.command_to_resume(words, ["overwrite", "resume", "seed"])
    assert said == "python -m x '--workdir=a b' --nooverwrite --resume"
    assert signals.command_to_resume(words, ["seed"]) == "python -m x '--workdir=a b'"


EXPLODING = sine.SineConfig(
    train_steps=6,
    log_every=2,
    hidden_size=16,
    init="orthogonal",
    gain=8.0,
    num_points=501,
    checkpoint_every=2,
)


@pytest.mark.survival
def test_a_gradient_that_explodes_stops_the_run_and_is_followed(tmp_path):
    config = dataclasses.replace(EXPLODING, workdir=str(tmp_path))
    with pytest.raises(NonFinite) as error:
        sine.run(config)
    said = str(error.value)
    assert "|dL/ds_t| leaves the finite range at time step" in said
    assert "the gradient is exploding" in said
    profile = records.load_array(tmp_path, "nonfinite_profile")
    assert profile.shape == (500, 1)
    assert np.isfinite(profile).all()
    assert profile.max() > np.log(np.finfo(np.float32).max)
    # The network is chaotic, so a second run of it is another trajectory, of the same kind: what
    # float32 still held of the first grew at about the same rate.
    trace = np.log(records.load_array(tmp_path, "trace")[error.value.step - 1])
    held = np.flatnonzero(np.isfinite(trace))
    assert 10 < len(held) < 500
    rates = [np.polyfit(held, -values[held], 1)[0] for values in (trace, profile[:, 0])]
    np.testing.assert_allclose(*rates, atol=0.1)
    assert (tmp_path / "nonfinite_profile.png").stat().st_size > 5000
    assert "try:" in (tmp_path / "diagnosis.txt").read_text()


@pytest.mark.survival
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["restart", "signal"])
@pytest.mark.parametrize(("bad", "back"), [(28, 20), (21, 10)])
def test_a_run_goes_back_to_where_it_would_have_undisturbed(tmp_path, monkeypatch, kind, bad, back):
    """Not to an early checkpoint, nor to one whose very next iteration fails."""
    config = dataclasses.replace(TINY, log_every=5, on_nonfinite="restore", restore_factor=0.5)
    settled, failed = loop._settled, []

    def failing(programs, now, first, results, where):
        now, found = settled(programs, now, first, results, where)
        if not failed and first < bad <= first + now.chunks[-1]["loss"].shape[1]:
            failed.append(bad)
            found = FirstNonFinite(bad - first, 1, 0)
        return now, found

    monkeypatch.setattr(loop, "_settled", failing)
    monkeypatch.setattr(nonfinite, "examine", lambda *_: "")
    starts = []
    started = single._started

    def starting(*arguments):
        now, saved = started(*arguments)
        starts.append(now.iteration)
        return now, saved

    monkeypatch.setattr(single, "_started", starting)
    sine.run(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    assert starts == [0, back]
    failed.clear()
    stopped = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        stop_at(patch, 10, interrupt if kind == "signal" else crash)
        with pytest.raises((signals.Interrupted, KeyboardInterrupt)):
            sine.run(stopped)
    sine.run(stopped)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.survival
@pytest.mark.slow
def test_such_updates_can_be_skipped_and_are_counted(tmp_path, capsys):
    config = dataclasses.replace(EXPLODING, workdir=str(tmp_path), on_nonfinite="skip")
    result = sine.run(config)
    rows = records.load_metrics(tmp_path)
    # The square of a norm leaves the finite range before the gradient itself does.
    assert sum(row.get("nonfinite_norms", 0) for row in rows) >= result.skipped > 0
    assert f"{result.skipped} of 6 updates were skipped" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in result.params.cell)


@pytest.mark.survival
@pytest.mark.slow
def test_or_the_run_goes_back_as_often_as_it_may(tmp_path, capsys):
    config = dataclasses.replace(
        EXPLODING, workdir=str(tmp_path), on_nonfinite="restore", max_restores=2
    )
    with pytest.raises(NonFinite):
        sine.run(config)
    said = capsys.readouterr().err
    assert "the learning rate is 0.003" in said
    assert "the learning rate is 0.0009" in said
    with pytest.raises(UsageError, match="--checkpoint_every"):
        sine.run(dataclasses.replace(config, checkpoint_every=0))


@pytest.mark.survival
@pytest.mark.slow
def test_a_run_that_diverges_is_saved_by_smaller_steps(tmp_path):
    """A step of 1e35 leaves the finite range; 1e35 times 1e-37 trains."""
    config = dataclasses.replace(
        TINY,
        workdir=str(tmp_path),
        learning_rate=1e35,
        on_nonfinite="restore",
        restore_factor=1e-37,
    )
    result = sine.run(config)
    assert np.isfinite(result.history.loss).all()
    assert [row["step"] for row in records.load_metrics(tmp_path)] == [10, 20, 30, 40, 45]


def started(folder, *flags):
    command = (
        *(sys.executable, "-m", "experiments.sine", f"--workdir={folder}"),
        *("--train_steps=60000", "--log_every=1000", "--hidden_size=32", "--checkpoint_every=2000"),
        *flags,
    )
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.survival
@pytest.mark.slow
def test_sigkills_at_random_moments(tmp_path):
    """Killed at random moments three times, then to the end: nothing missing, nothing twice.

    `kills_test` kills at named ones.
    """
    whole = started(tmp_path / "whole")
    said = whole.communicate(timeout=300)[1]
    assert whole.returncode == 0, said
    draw = random.Random(0)
    killed = 0
    while killed < 3:
        worker = started(tmp_path / "run")
        time.sleep(draw.uniform(0.5, 6.0))
        if worker.poll() is None:
            killed += 1
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    worker = started(tmp_path / "run")
    said = worker.communicate(timeout=300)[1]
    assert worker.returncode == 0, said
    found, wanted = contents(tmp_path / "run"), contents(tmp_path / "whole")
    assert [row["step"] for row in found[records.METRICS]] == list(range(1000, 60001, 1000))
    assert found == wanted


@pytest.mark.survival
@pytest.mark.slow
def test_sigterm_ends_with_a_code_of_its_own_and_the_line_to_go_on(tmp_path):
    worker = started(tmp_path / "run", "--overwrite")
    # It trains once there is a line of it.
    deadline = time.monotonic() + 200
    metrics = tmp_path / "run" / records.METRICS
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    said = worker.communicate(timeout=60)[1]
    assert worker.returncode == signals.EXIT_CODE, said
    line = said.strip().splitlines()[-1]
    assert "--nooverwrite" in line
    assert "--overwrite" not in line.split()
    again = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resumed after iteration \d+000", again.stderr)
    rows = records.load_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1000, 60001, 1000))


@pytest.mark.survival
@pytest.mark.slow
def test_networks_side_by_side_survive_kills_within_a_group(tmp_path):
    settings = (
        *("--length=20", "--hidden_size=20", "--train_steps=3000", "--test_every=50", "--seeds=4"),
        *("--cpu_devices=2", "--checkpoint_every=100"),
    )

    def started(folder):
        command = (sys.executable, "-m", "experiments.memory", f"--workdir={folder}", *settings)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    worker = started(tmp_path / "whole")
    said = worker.communicate(timeout=300)[1]
    assert worker.returncode == 0, said
    stood = []
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        worker = started(tmp_path / "run")
        # Further than the one before it, so that there is something to go on from.
        deadline = time.monotonic() + 100
        folder = tmp_path / "run" / store.CHECKPOINTS / "0000"
        while time.monotonic() < deadline and worker.poll() is None:
            # The group's folder holds one of its batch.
            steps = [step for batch in folder.glob("*/") for step in checkpoint.steps(batch)]
            if steps and (not stood or steps[-1] > stood[-1]):
                stood.append(steps[-1])
                break
            time.sleep(0.02)
        worker.send_signal(number)
        said = worker.communicate(timeout=100)[1]
        assert worker.returncode == code, said
    assert len(stood) == 3
    worker = started(tmp_path / "run")
    said = worker.communicate(timeout=300)[1]
    assert worker.returncode == 0, said
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
