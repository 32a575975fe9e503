"""A disk that is full, read-only or gone in mid-run: one line, and what was written is whole."""

import contextlib
import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import pytest

from experiments import sine
from rnn_jax import records

TINY = sine.SineConfig(num_steps=40, log_every=10, hidden_size=4, checkpoint_every=10)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes; skips where one cannot be mounted."""
    command = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(("umount", "-l", str(folder)), check=True)


def run_in(folder, *flags):
    command = (
        *(sys.executable, "-m", "experiments.sine", f"--workdir={folder}"),
        *("--num_steps=40", "--log_every=10", "--hidden_size=4", *flags),
    )
    return subprocess.run(command, capture_output=True, text=True)


def check_one_line(done):
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr
    return last


@pytest.mark.slow
@pytest.mark.parametrize("size", [16384, 65536, 200_000])
def test_a_full_disk(tmp_path, size):
    with small_disk(tmp_path, size):
        said = check_one_line(run_in(tmp_path / "run", "--checkpoint_every=10"))
        assert "No space left on device" in said
        assert "whole" in said
        for path in (tmp_path / "run").rglob("*.json"):
            json.loads(path.read_text())


@pytest.mark.slow
def test_a_read_only_disk(tmp_path):
    with small_disk(tmp_path, 2**20):
        subprocess.run(("mount", "-o", "remount,ro", str(tmp_path)), check=True)
        done = run_in(tmp_path / "run")
        assert done.returncode == 1
        assert "cannot be written (Read-only file system)" in done.stderr


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"))
    append = records.append_metrics

    def appending(workdir, rows):
        append(workdir, rows)
        shutil.rmtree(workdir)

    monkeypatch.setattr(records, "append_metrics", appending)
    with pytest.raises((OSError, ValueError)) as error:
        sine.run(config)
    assert not isinstance(error.value, OSError) or error.value.errno == errno.ENOENT
