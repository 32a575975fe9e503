"""A run's folder: whole files, equal after a round trip, and no run replaced by another."""

import json
import os
from typing import NamedTuple

import numpy as np
import pytest

from rnn_jax.io import records


class Pair(NamedTuple):
    left: np.ndarray
    right: np.ndarray


def test_a_folder_of_other_settings_is_refused_and_the_settings_named(tmp_path):
    records.open_run(tmp_path, {"seed": 1, "rate": 0.1})
    with pytest.raises(ValueError, match=r"rate was 0\.1, now 0\.2"):
        records.open_run(tmp_path, {"seed": 1, "rate": 0.2})
    assert records.load_config(tmp_path) == {"seed": 1, "rate": 0.1}
    records.open_run(tmp_path, {"seed": 1, "rate": 0.2}, overwrite=True)
    assert records.load_config(tmp_path) == {"seed": 1, "rate": 0.2}


def test_of_many_settings_that_differ_the_first_are_named(tmp_path):
    old = {f"setting_{number:02d}": 1 for number in range(20)}
    records.open_run(tmp_path, {"experiment": "sine", **old})
    with pytest.raises(ValueError, match=r"setting_07 was 1, now 2; and 12 more\. Name another"):
        records.open_run(tmp_path, {"experiment": "sine", **dict.fromkeys(old, 2)})
    with pytest.raises(ValueError, match=r"settings: experiment was 'sine', now 'digits'\. Name"):
        records.open_run(tmp_path, {"experiment": "digits"})


def test_a_folder_of_the_same_settings_is_taken_again(tmp_path):
    path = records.open_run(tmp_path, {"seed": 1})
    records.append_metrics(path, [{"step": 1}])
    records.open_run(tmp_path, {"seed": 1})
    records.clear_metrics(path)
    assert records.load_metrics(tmp_path) == []


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    for open_it in (lambda path: records.open_run(path, {}), records.make_folder):
        with pytest.raises(ValueError, match=r"run cannot be made: .*run is not a folder"):
            open_it(tmp_path / "run")
        with pytest.raises(ValueError, match=r"--workdir=.*below cannot be made: .*run is not a"):
            open_it(tmp_path / "run" / "below")


def test_a_folder_that_cannot_be_is_named_with_the_reason_and_the_way_out(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in (
        ("", "--workdir=: give a folder a name"),
        (" ", "--workdir=' ': give a folder a name"),
        ("~/runs", r"--workdir=~/runs: .* write \$HOME, or give ./~/runs"),
        ("a\nb", r"--workdir='a\\nb': give a folder a name"),
        ("a\0b", r"--workdir='a\\x00b': give"),
        ("a\udcff", r"--workdir='a\\udcff': give"),
        (tmp_path / ("n" * 300), r"cannot be made \(File name too long\); name a folder"),
        (tmp_path / "dangling", "dangling is a link to .*nowhere, which is not there; remove"),
        (tmp_path / "dangling" / "run", "dangling is a link to .*nowhere, which is not there"),
        (tmp_path / "loop", "loop is a link to .*loop, which is not there"),
        ("/proc/run", r"--workdir=/proc/run cannot be made \(No such file or directory\)"),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            records.make_folder(name)
        assert str(raised.value).isprintable()
    assert not (tmp_path / "nowhere").exists()


def test_pipes_in_a_folder_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / records.LOCK)
    os.mkfifo(tmp_path / records.METRICS)
    with pytest.raises(ValueError, match="cannot be written"), records.held(tmp_path):
        pass
    with pytest.raises(OSError, match="No such device"):
        records.append_metrics(tmp_path, [{"step": 1}])


def test_metrics_come_back_in_order_and_are_json_whatever_the_numbers(tmp_path):
    path = records.open_run(tmp_path, {})
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}]
    for row in rows:
        records.append_metrics(path, [row])
    lines = (path / records.METRICS).read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]


def test_arrays_and_trees_come_back_equal(tmp_path):
    path = records.open_run(tmp_path, {})
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 4)).astype(np.float32)
    tree = {"a": Pair(rng.normal(size=2), rng.normal(size=(1, 2))), "b": array}
    records.save_array(path, "trace", array)
    records.save_tree(path, "params", tree)
    np.testing.assert_array_equal(records.load_array(path, "trace"), array)
    loaded = records.load_tree(path, "params", tree)
    np.testing.assert_array_equal(loaded["a"].right, tree["a"].right)
    np.testing.assert_array_equal(loaded["b"], array)


def test_a_tree_of_another_shape_names_the_leaf_and_both_shapes(tmp_path):
    path = records.open_run(tmp_path, {})
    records.save_tree(path, "params", Pair(np.zeros(2), np.zeros(3)))
    with pytest.raises(ValueError, match=r"right is \(3,\), but \(4,\)"):
        records.load_tree(path, "params", Pair(np.zeros(2), np.zeros(4)))


def test_a_config_that_is_no_object(tmp_path):
    (tmp_path / records.CONFIG).write_text("[1, 2]")
    with pytest.raises(ValueError, match="list"):
        records.load_config(tmp_path)
    (tmp_path / records.CONFIG).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"config\.json is not UTF-8"):
        records.load_config(tmp_path)


def test_what_a_killed_process_had_begun_to_write_is_gone_when_the_folder_is_held(tmp_path):
    path = records.open_run(tmp_path, {"seed": 1})
    unfinished = [
        path / ".metrics.jsonl.123",
        path / "arrays" / ".trace.npy.45",
        path / ".writable-6",
    ]
    others = [path / ".hidden", path / "config.json", path / "arrays" / ".7"]
    for file in (*unfinished, *others[::2]):
        file.write_text("half")
    with records.held(tmp_path):
        assert not any(file.exists() for file in unfinished)
        assert all(file.exists() for file in others)
