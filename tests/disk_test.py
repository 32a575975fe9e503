"""A disk that is full, read-only or taken away: one line says so, and what was written is whole."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest
from run_files import check_whole

from experiments import memory, sine
from experiments.memory import MemoryConfig
from rnn_jax.io import checkpoint, records

TINY = sine.SineConfig(train_steps=45, log_every=10, hidden_size=4, checkpoint_every=10)


@pytest.fixture
def disk(tmp_path):
    """A function that makes a file system of so many kB, or changes it; skipped where it cannot."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(kilobytes, *options):
        kind = ",".join((f"size={kilobytes}k", *options))
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", kind, "tmpfs", str(place)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"no small file system can be made here: {made.stderr.strip()}")
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    yield make
    subprocess.run(["umount", str(place)], capture_output=True)


def remounted(place, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def run_in(folder):
    return sine.run(dataclasses.replace(TINY, workdir=str(folder)))


def check_nothing_is_half(folder):
    check_whole(folder)
    assert not list(folder.glob(".*.*[0-9]")), "half a file is left"


@pytest.mark.survival
@pytest.mark.parametrize(
    "kilobytes",
    [400] + [pytest.param(size, marks=pytest.mark.slow) for size in (30, 200, 330, 500, 600, 640)],
)
def test_a_full_disk_is_said_and_with_more_room_the_run_goes_on(disk, kilobytes):
    """Full at the first checkpoint, at a later one, or at the figures; a whole run takes 690 kB."""
    place = disk(kilobytes)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)") as error:
        run_in(place / "run")
    assert "\n" not in str(error.value)
    check_nothing_is_half(place / "run")
    remounted(place, "size=5000k")
    run_in(place / "run")
    run_in(place / "other")
    for path in sorted((place / "other").glob("arrays/*")):
        assert path.read_bytes() == (place / "run" / "arrays" / path.name).read_bytes()
    steps = [row["step"] for row in records.load_metrics(place / "run")]
    assert steps == [10, 20, 30, 40, 45]
    check_nothing_is_half(place / "run")


@pytest.mark.survival
@pytest.mark.slow
def test_a_full_disk_within_a_group_of_networks(disk):
    place = disk(400)
    config = MemoryConfig(
        length="8", hidden_size=5, batch_size=4, train_steps=12, test_every=3, seeds=3,
        checkpoint_every=3, workdir=str(place / "run"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="No space left on device"):
        memory.run(config)
    remounted(place, "size=5000k")
    rows = memory.run(config)
    assert rows == memory.run(dataclasses.replace(config, workdir=str(place / "other")))


@pytest.mark.survival
def test_a_read_only_folder_is_refused_and_left_as_it_is(disk):
    place = disk(2000)
    folder = records.open_run(place / "run", {"seed": 1})
    records.append_metrics(folder, [{"step": 1}])
    remounted(place, "ro")
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\)"):
        run_in(place / "run")
    assert records.load_metrics(folder) == [{"step": 1}]


@pytest.mark.survival
def test_a_folder_that_vanishes_is_said_and_does_not_come_back(tmp_path, monkeypatch):
    append = records.append_metrics

    def appending(workdir, rows):
        append(workdir, rows)
        if rows[0]["step"] == 20:
            shutil.rmtree(workdir)

    monkeypatch.setattr(records, "append_metrics", appending)
    with pytest.raises(ValueError, match="run is gone: somebody moved or removed it"):
        run_in(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_orbax_own_words_for_a_full_disk_are_translated(tmp_path, monkeypatch):
    """What TensorStore says is a ValueError; callers want the system's error, and no remains."""
    import orbax.checkpoint as ocp

    def full(self, path, *_, **__):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: no bytes [os_error_code='28']")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(tmp_path, 1, {"a": np.arange(3)})
    assert list(tmp_path.iterdir()) == []
