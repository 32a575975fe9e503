"""Runs killed at named moments of writing: what is there is whole, and the run goes on from it."""

import subprocess
import sys
from pathlib import Path

import pytest
from run_files import check_whole, contents

from rnn_jax.io import records

pytestmark = pytest.mark.survival

ROOT = Path(__file__).parents[1]

KILLED_AT = """
import os, runpy, signal, sys
wanted, place, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def kill(event, args):
    global left
    if event != wanted or (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    path = args[1] if event == "os.rename" else args[0]
    if os.fsdecode(path).endswith(place):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
del sys.argv[1:4]
sys.argv[0] = "-m"
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Python reports what it is about to do with files, whoever does it: Orbax, too."""

SINE = ("--train_steps=40", "--log_every=10", "--hidden_size=4", "--checkpoint_every=10")
MEMORY = (
    *("--length=8", "--hidden_size=5", "--batch_size=4", "--train_steps=12", "--test_every=3"),
    *("--seeds=3", "--checkpoint_every=3"),
)

POINTS = {
    "sine": [
        ("os.rename", "/config.json", 1),
        ("os.rename", "/metrics.jsonl", 1),
        ("open", "/metrics.jsonl", 2),
        ("open", "/000000000010.orbax-checkpoint-tmp/_METADATA", 1),
        ("os.rename", "/000000000010", 1),
        ("os.rename", "/000000000010.json", 1),
        ("os.rename", "/000000000030", 1),
        ("os.rename", "/arrays/trace.npy", 1),
        ("os.rename", "/free_run.png", 1),
    ],
    "memory": [
        ("os.rename", "/000000000006", 1),
        ("os.rename", "/000000000009.json", 1),
        # Before an old checkpoint goes.
        ("os.remove", "/000000000003.json", 1),
        ("os.rename", "/0000-000000-000002.npz", 1),
        ("os.rename", "/0000-000000-000002.jsonl", 1),
        ("shutil.rmtree", "/checkpoints/0000", 1),
        ("os.rename", "/arrays/test_loss_0000.npy", 1),
        ("os.rename", "/networks.jsonl", 1),
        ("shutil.rmtree", "/parts", 1),
        ("os.rename", "/summary.txt", 1),
    ],
}
"""Of each experiment, one after the other: what it is about to do, where, and the n-th time."""


def run(folder, experiment, *point):
    """An experiment of a few seconds, killed at a point if one is given."""
    settings = {"sine": SINE, "memory": MEMORY}[experiment]
    start = ("-c", KILLED_AT, *map(str, point)) if point else ("-m",)
    command = (
        sys.executable,
        *start,
        f"experiments.{experiment}",
        f"--workdir={folder}",
        *settings,
    )
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", POINTS)
def test_killed_at_each_point_of_writing_it_ends_in_the_same_files(experiment, tmp_path):
    """Each run goes on from what the one before left, up to the next point."""
    ended = run(tmp_path / "whole", experiment)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "run"
    for point in POINTS[experiment]:
        ended = run(folder, experiment, *point)
        assert ended.returncode == -9, (point, ended.stderr)
        check_whole(folder)
    ended = run(folder, experiment)
    assert ended.returncode == 0, ended.stderr
    assert contents(folder) == contents(tmp_path / "whole")
    with records.held(folder):
        left = [path.name for path in folder.rglob(".*") if path.name != records.LOCK]
    assert left == []
