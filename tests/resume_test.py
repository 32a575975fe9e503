"""A run that was stopped, however, and taken up again is the run that was not."""

import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import digits, interruption, memory, nonfinite, resuming, series, sine, sine_seeds
from experiments.memory import MemoryConfig
from experiments.nonfinite import NonFinite
from experiments.options import UsageError
from rnn_jax import checkpoint, records

TINY = sine.SineConfig(num_steps=45, log_every=10, hidden_size=4, checkpoint_every=10)


def contents(folder):
    """Every file but checkpoints; the lines of metrics.jsonl without their times."""
    files = {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and "checkpoints" not in path.parts
    }
    if records.METRICS in files:
        rows = [json.loads(line) for line in files[records.METRICS].splitlines()]
        files[records.METRICS] = [{**row, "seconds": 0} for row in rows]
    return files


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


def test_a_signal_ends_the_chunk_and_the_run_goes_on_from_there(whole, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"), checkpoint_every=0)
    with monkeypatch.context() as patch:
        stop_at(patch, 20, interrupt)
        with pytest.raises(interruption.Interrupted, match="stopped after iteration 30 of 45"):
            sine.run(config)
    assert checkpoint.steps(tmp_path / "run" / resuming.CHECKPOINTS) == [30]
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
    folder = tmp_path / "run" / resuming.CHECKPOINTS
    assert checkpoint.steps(folder) == [10, 20, 30]
    next((folder / "000000000030").rglob("_METADATA")).write_text("")
    with (tmp_path / "run" / records.METRICS).open("ab") as file:
        file.write(STRANGE_LINES + b'{"step": 50, "lo')
    sine.run(config)
    assert contents(tmp_path / "run") == whole


def test_a_fresh_start_where_one_is_asked_for(whole, tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"))
    other = dataclasses.replace(config, seed=1)
    sine.run(other)
    with pytest.raises(ValueError, match=r"seed was 1, now 0.*--overwrite"):
        sine.run(config)
    sine.run(dataclasses.replace(config, overwrite=True))
    assert contents(tmp_path / "run") == whole


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    config = dataclasses.replace(TINY, workdir=str(tmp_path))
    with records.held(tmp_path), pytest.raises(ValueError, match="another process is at work"):
        sine.run(config)


@pytest.mark.parametrize(
    "content",
    [
        b'[{"seed": 1e400}]',
        b'[{"seed": 0, "loss": 1' + b"0" * 400 + b"}]",
        b"[" * 200_000,
        b'{"seed": 0}',
        b"[1]",
        b'[{"seed": 0}, {"seed": 7}]',
        b"\xff",
        None,
    ],
)
def test_a_table_of_seeds_that_is_none_starts_anew(content, tmp_path):
    if content is not None:
        (tmp_path / "seeds.json").write_bytes(content)
    assert sine_seeds.found(tmp_path, range(3)) == []


def test_a_table_of_seeds_goes_on_after_the_last_finished(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, num_seeds=2, workdir=str(tmp_path / "run"))
    whole = sine.run_seeds(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    run, seeds = sine.run, []

    def running(config, write):
        seeds.append(config.seed)
        if len(seeds) == 1:
            interrupt()
        return run(config, write)

    monkeypatch.setattr(sine, "run", running)
    with pytest.raises(interruption.Interrupted, match="stopped after 1 of 2 seeds"):
        sine.run_seeds(config)
    assert sine.run_seeds(config) == whole
    assert seeds == [0, 1]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


FEW = {"hidden_size": 5, "batch_size": 4, "train_steps": 12, "test_every": 3, "seeds": 3}
SIDE_BY_SIDE = {
    "memory": (memory, MemoryConfig(length="8", **FEW)),
    "digits": (digits, digits.DigitsConfig(**FEW)),
    "series": (series, series.SeriesConfig(length=24, season=12, **FEW)),
}


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
        with pytest.raises(interruption.Interrupted, match="stopped at iteration 9 of 12"):
            experiment.run(config)
    experiment.run(config)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert not (tmp_path / "run" / resuming.CHECKPOINTS).exists()


def test_the_line_to_go_on_with():
    words = ["python", "-m", "x", "--workdir=a b", "--overwrite", "--noresume"]
    said = interruption.command_to_go_on(words, ["overwrite", "resume", "seed"])
    assert said == "python -m x '--workdir=a b' --nooverwrite --resume"
    assert interruption.command_to_go_on(words, ["seed"]) == "python -m x '--workdir=a b'"


EXPLODING = sine.SineConfig(
    num_steps=6,
    log_every=2,
    hidden_size=16,
    init="orthogonal",
    gain=8.0,
    num_points=501,
    checkpoint_every=2,
)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["restart", "signal"])
@pytest.mark.parametrize(("bad", "back"), [(28, 20), (21, 10)])
def test_a_run_goes_back_to_where_it_would_have_undisturbed(tmp_path, monkeypatch, kind, bad, back):
    """Not to an early checkpoint, nor to one whose very next iteration fails."""
    config = dataclasses.replace(TINY, log_every=5, on_nonfinite="restore", restore_factor=0.5)
    first = nonfinite.first_nonfinite
    failed = []

    def failing(metrics, first_step):
        if not failed and first_step <= bad < first_step + len(metrics.loss):
            failed.append(bad)
            return nonfinite.Beginning(bad, "made up")
        return first(metrics, first_step)

    monkeypatch.setattr(nonfinite, "first_nonfinite", failing)
    monkeypatch.setattr(nonfinite, "examine", lambda *_: "")
    starts = []
    take_up = resuming.take_up

    def taking_up(*arguments):
        starts.append(take_up(*arguments))
        return starts[-1]

    monkeypatch.setattr(resuming, "take_up", taking_up)
    sine.run(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    assert [start.done for start in starts] == [0, back]
    failed.clear()
    stopped = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        stop_at(patch, 10, interrupt if kind == "signal" else crash)
        with pytest.raises((interruption.Interrupted, KeyboardInterrupt)):
            sine.run(stopped)
    sine.run(stopped)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_such_updates_can_be_skipped_and_are_counted(tmp_path, capsys):
    config = dataclasses.replace(EXPLODING, workdir=str(tmp_path), on_nonfinite="skip")
    result = sine.run(config)
    rows = records.load_metrics(tmp_path)
    # The square of a norm leaves the finite range before the gradient itself does.
    assert sum(row["nonfinite_norms"] for row in rows) >= result.skipped > 0
    assert f"{result.skipped} of 6 updates were skipped" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in result.params.cell)


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


@pytest.mark.slow
def test_a_run_that_diverges_is_saved_by_smaller_steps(tmp_path):
    """A step of 1e38 leaves the finite range; 1e38 times 1e-40 trains."""
    config = dataclasses.replace(
        TINY,
        workdir=str(tmp_path),
        learning_rate=1e38,
        on_nonfinite="restore",
        restore_factor=1e-40,
    )
    result = sine.run(config)
    assert np.isfinite(result.history.loss).all()
    assert [row["step"] for row in records.load_metrics(tmp_path)] == [10, 20, 30, 40, 45]


def started(folder, *flags):
    command = (
        *(sys.executable, "-m", "experiments.sine", f"--workdir={folder}"),
        *("--num_steps=60000", "--log_every=1000", "--hidden_size=32", "--checkpoint_every=2000"),
        *flags,
    )
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_thirty_sigkills(tmp_path):
    """Killed at random moments thirty times, then to the end: nothing missing, nothing twice."""
    whole = started(tmp_path / "whole")
    said = whole.communicate(timeout=300)[1]
    assert whole.returncode == 0, said
    draw = random.Random(0)
    killed = 0
    while killed < 30:
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


@pytest.mark.slow
def test_sigterm_ends_with_a_code_of_its_own_and_the_line_to_go_on(tmp_path):
    worker = started(tmp_path / "run", "--overwrite")
    time.sleep(5)
    worker.send_signal(signal.SIGTERM)
    said = worker.communicate(timeout=60)[1]
    assert worker.returncode == interruption.EXIT_CODE, said
    line = said.strip().splitlines()[-1]
    assert "--nooverwrite" in line
    assert "--overwrite" not in line.split()
    again = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert re.search(r"taken up after iteration \d+000", again.stderr)
    rows = records.load_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1000, 60001, 1000))


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
        folder = tmp_path / "run" / resuming.CHECKPOINTS / "0000"
        while time.monotonic() < deadline and worker.poll() is None:
            steps = checkpoint.steps(folder) if folder.exists() else []
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
