"""Checkpoints: what was saved comes back bit for bit, and what is broken is told."""

import json
import os
import random
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from rnn_jax import training
from rnn_jax.io import checkpoint
from rnn_jax.training import optim


def state_of(hidden_size=3, seed=0):
    model = rnn_jax.sequence_model(rnn_jax.lstm(hidden_size), 1)
    optimizer = optim.recorded(optax.adam(1e-3), 1.0)
    return training.init_state(model, optimizer, jax.random.key(seed), 1, 2)


def same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Four checkpoints saved with keep=2; the second is the best."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.0), (40, float("nan"))):
        checkpoint.save(folder, step, state_of(seed=step), score=score, notes={"at": step}, keep=2)
    return folder


def test_the_newest_comes_back_and_the_best_is_kept(kept):
    assert checkpoint.steps(kept) == [20, 30, 40]
    assert {p.name for p in kept.iterdir() if p.is_dir()} == {f"{n:012d}" for n in (20, 30, 40)}
    found = checkpoint.load(kept, state_of())
    assert (found.step, found.notes) == (40, {"at": 40})
    same(found.tree, state_of(seed=40))


@pytest.mark.survival
def test_another_network_is_refused_by_its_first_leaf(kept):
    with pytest.raises(ValueError, match=r"carry\.c is \(2, 3\) float32 .* but \(2, 4\) float32"):
        checkpoint.load(kept, state_of(4))


def test_there_may_be_none(tmp_path, monkeypatch):
    """And Orbax, half a second, is not imported to find that out."""
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert checkpoint.load(tmp_path / "nothing", state_of()) is None
    (tmp_path / "000000000005").mkdir()
    assert checkpoint.load(tmp_path, state_of()) is None, "no manifest, so it never was whole"


def broken_copy(kept, tmp_path, damage, seed):
    """The checkpoints with files of the newest `damage` of them cut short or flipped."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    draw = random.Random(seed)
    for step in checkpoint.steps(folder)[::-1][:damage]:
        place = folder / f"{step:012d}"
        files = [p for p in place.rglob("*") if p.is_file() and p.stat().st_size]
        path = draw.choice([*sorted(files), place.with_suffix(".json")])
        content = bytearray(path.read_bytes())
        if draw.random() < 0.5:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return folder


@pytest.mark.survival
@pytest.mark.parametrize("seed", range(6))
def test_a_broken_one_is_passed_over(kept, tmp_path, caplog, seed):
    folder = broken_copy(kept, tmp_path, 1, seed)
    found = checkpoint.load(folder, state_of())
    assert (found.step, found.notes) == (30, {"at": 30})
    assert "the checkpoint before it is used" in caplog.text
    same(found.tree, state_of(seed=30))


def test_a_pipe_in_a_files_place_is_not_waited_for(kept, tmp_path):
    folder = broken_copy(kept, tmp_path, 0, 0)
    for path in (folder / "000000000040.json", folder / "000000000030" / "_METADATA"):
        path.unlink()
        os.mkfifo(path)
    assert checkpoint.load(folder, state_of()).step == 20


@pytest.mark.survival
def test_where_none_is_whole_every_file_is_named(kept, tmp_path):
    folder = broken_copy(kept, tmp_path, 3, 1)
    for step in checkpoint.steps(folder):
        (folder / f"{step:012d}" / "_METADATA").write_text("{}")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole") as error:
        checkpoint.load(folder, state_of())
    assert all(f"{step:012d}" in str(error.value) for step in (20, 30, 40))
    assert "--overwrite" in str(error.value)


def test_a_manifest_cannot_point_elsewhere(kept, tmp_path):
    folder = broken_copy(kept, tmp_path, 0, 0)
    manifest = folder / "000000000040.json"
    fields = json.loads(manifest.read_text())
    fields["files"]["../../secret"] = [1, "0" * 64]
    manifest.write_text(json.dumps(fields))
    assert checkpoint.load(folder, state_of()).step == 30


def test_files_beside_a_checkpoint_belong_to_it(tmp_path):
    beside = tmp_path / "piece.npz"
    beside.write_bytes(b"what the first ten steps told")
    names = {"piece.npz": checkpoint.digest(beside)}
    checkpoint.save(tmp_path, 10, {"a": jnp.arange(3)}, beside=names)
    found = checkpoint.load(tmp_path)
    np.testing.assert_array_equal(found.tree["a"], [0, 1, 2])
    assert found.beside == names
    beside.write_bytes(b"what the first ten steps tolD")
    with pytest.raises(ValueError, match=r"piece\.npz is not what was written"):
        checkpoint.load(tmp_path)


def test_a_run_that_went_back_does_not_keep_what_lay_ahead(kept, tmp_path):
    """Else broken checkpoints of later steps would crowd out the whole ones of now."""
    folder = broken_copy(kept, tmp_path, 2, 0)
    assert checkpoint.load(folder).step == 20
    checkpoint.save(folder, 25, state_of(seed=25), score=9.0, keep=2)
    assert checkpoint.steps(folder) == [20, 25]
    same(checkpoint.load(folder, state_of()).tree, state_of(seed=25))
    assert list(checkpoint.notes(folder).items()) == [(20, {"at": 20}), (25, {})]
    checkpoint.drop(folder, 25)
    assert checkpoint.load(folder, state_of()).step == 20


@pytest.mark.survival
def test_a_manifest_vouches_for_itself(kept, tmp_path):
    folder = broken_copy(kept, tmp_path, 0, 0)
    manifest = folder / "000000000040.json"
    manifest.write_text(manifest.read_text().replace('"at": 40', '"at": 41'))
    assert checkpoint.load(folder).step == 30


def test_a_folder_that_is_gone_does_not_come_back(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "gone" / "checkpoints", 1, {"a": jnp.arange(3)})
    assert not (tmp_path / "gone").exists()


@pytest.mark.survival
@pytest.mark.slow
def test_any_damage_at_all(kept, tmp_path):
    """Thirty more damages, to the two newest at once: the oldest or something whole is found."""
    for seed in range(30):
        folder = broken_copy(kept, tmp_path, 2, 100 + seed)
        found = checkpoint.load(folder, state_of())
        same(found.tree, state_of(seed=found.step))
