"""What a run keeps of its networks, and what is said of them: a tiny run of every experiment."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

import rnn_jax
from experiments import (
    compare,
    diagnose,
    digits,
    gradient_flow,
    gradient_sweep,
    memory,
    series,
    sine,
)
from experiments.cli.options import UsageError
from experiments.training import parts
from rnn_jax.io import parameters, records

FEW = {
    "hidden_size": 4,
    "batch_size": 4,
    "train_steps": 4,
    "test_every": 2,
    "seeds": 2,
}
ONE = FEW | {"seeds": 1}
SWEEP = {"length": "12", "hidden_size": "4", "seeds": 2, "gain": "0.5,1"}
RUNS = {
    "sine": (sine.run, sine.SineConfig(train_steps=4, log_every=2, hidden_size=4)),
    "sine_seeds": (sine.run_seeds, sine.SineConfig(train_steps=4, hidden_size=4, seeds=2)),
    "memory": (memory.run, memory.MemoryConfig(length="8", cures="none,zoneout", **FEW)),
    "digits": (digits.run, digits.DigitsConfig(**FEW)),
    "series": (series.run, series.SeriesConfig(length=24, season=12, **FEW)),
    "sweep": (
        gradient_sweep.run,
        gradient_sweep.SweepConfig(train_steps=4, cell="elman,leaky", **SWEEP),
    ),
    "untrained": (gradient_sweep.run, gradient_sweep.SweepConfig(**SWEEP)),
    "flow": (gradient_flow.run, gradient_flow.FlowConfig(hidden_size=4, length=12)),
}
TRAINED = ("sine_seeds", "memory", "digits", "series", "sweep")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a run of each experiment, made when it is first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            run, config = RUNS[name]
            made[name] = tmp_path_factory.mktemp("runs") / name
            run(dataclasses.replace(config, workdir=str(made[name])))
        return made[name]

    return folder


def said_of(capsys, folder, **settings):
    capsys.readouterr()
    diagnose.main(diagnose.DiagnoseConfig(run=str(folder), **settings))
    return capsys.readouterr().out


def growth_rate(text):
    return float(re.search(r"growth rate ([-+][\d.]+)", text)[1])


@pytest.mark.parametrize("name", TRAINED)
def test_every_network_keeps_its_parameters_at_start_and_end(folder_of, name):
    folder = folder_of(name)
    rows = parts.load_rows(folder)
    for row in rows:
        start, end = (parameters.load(folder, stage, row["network"]) for stage in ("start", "end"))
        assert start.keys() == end.keys() >= {"readout.V", "readout.c"}
        assert any(not np.array_equal(start[leaf], end[leaf]) for leaf in start)
    first, other = (parameters.load(folder, "start", n)["readout.V"] for n in (0, 1))
    assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match=f"no parameters of network {len(rows)}"):
        parameters.load(folder, "end", len(rows))
    assert not list(folder.rglob("parts"))


def test_what_is_kept_at_the_start_is_what_training_starts_from(folder_of):
    """Drawn here as `memory` says: from fold_in(key(seed of the run), own seed)."""
    row = parts.load_rows(folder_of("memory"))[3]
    assert (row["cure"], row["seed"]) == ("zoneout", 1)
    group = memory.groups_of(RUNS["memory"][1])[1]
    assert group.settings["cure"] == "zoneout"
    key = jax.random.fold_in(jax.random.key(0), 1)
    state = group.program.algorithm.init({"learning_rate": np.float32(0.001)}, key)
    kept = parameters.load_tree(folder_of("memory"), "start", row["network"], state.params)
    for found, wanted in zip(jax.tree.leaves(kept), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("memory", "start"), *((name, "end") for name in ("memory", "digits", "series", "sweep"))],
)
def test_a_network_is_diagnosed_as_its_run_measured_it(folder_of, capsys, name, stage):
    """On the run's own data: growth rate and verdict are those of its line in networks.jsonl."""
    folder = folder_of(name)
    row = parts.load_rows(folder)[-1]
    said = said_of(capsys, folder, at=stage, network=str(row["network"]))
    assert f"gradient: {row[f'verdict_{stage}']}" in said
    # Four digits are printed; float32 adds up in another order alone than side by side.
    assert growth_rate(said) == pytest.approx(row[f"slope_{stage}"], abs=2e-3)
    assert ("without memory" in said) == (stage == "end")
    horizon = row[f"horizon_{stage}"]
    words = "unlimited" if horizon is None else f"{horizon:.0f} steps until it has fallen to 1/1000"
    assert f"horizon     {words}" in said
    if stage == "end":
        assert f"loss {row['test_loss']:.2g};" in said


@pytest.mark.parametrize("name", ["sine", "sine_seeds", "memory"])
def test_start_and_end_are_set_side_by_side(folder_of, capsys, name):
    said = said_of(capsys, folder_of(name))
    start, end = said.split("--- end of training ---")
    assert "--- start of training ---" in start
    assert "without memory" in end
    assert "from start to end: " in end
    assert ("network 0: " in said) == (name != "sine")


def test_a_network_without_training_is_diagnosed_as_it_was_measured(folder_of, capsys):
    rows = parts.load_rows(folder_of("untrained"))
    said = said_of(capsys, folder_of("untrained"), network="gain=1,seed=1")
    (row,) = [row for row in rows if (row["gain"], row["seed"]) == (1, 1)]
    assert growth_rate(said) == pytest.approx(row["slope"], abs=2e-3)
    assert "end of training" not in said
    with pytest.raises(UsageError, match="did not train; give --at=start"):
        said_of(capsys, folder_of("untrained"), at="end")


def test_a_fresh_network_keeps_its_parameters_and_is_diagnosed(folder_of, capsys, tmp_path):
    folder = folder_of("flow")
    assert parameters.load(folder, "start")["cell.W"].shape == (4, 4)
    first = said_of(capsys, folder)
    assert "end of training" not in first
    # What is kept is what is looked at.
    copy = shutil.copytree(folder, tmp_path / "copy")
    kept = parameters.load(copy, "start")
    parameters.save(copy, "start", kept | {"cell.W": 0 * kept["cell.W"]})
    assert growth_rate(first) != 0
    assert "gradient: dead" in said_of(capsys, copy)


@pytest.mark.parametrize("name", ["memory", "sine_seeds", "series", "sweep"])
def test_gradient_flow_looks_at_a_network_of_a_run(folder_of, tmp_path, name):
    config = gradient_flow.FlowConfig(
        run=str(folder_of(name)), network="1", workdir=str(tmp_path / "flow")
    )
    network = gradient_flow.network_of(config)
    kept = parameters.load(folder_of(name), "end", 1)
    np.testing.assert_array_equal(network.params.W, kept["cell.W"])


@pytest.mark.slow
def test_gradient_flow_draws_a_network_of_a_run(folder_of, tmp_path):
    config = gradient_flow.FlowConfig(
        run=str(folder_of("memory")), network="1", workdir=str(tmp_path / "flow")
    )
    assert gradient_flow.run(config).measured.log_norms.shape == (8, 4)


def test_runs_of_every_experiment_are_compared(folder_of, tmp_path, capsys):
    """Values of the table are recomputed from networks.jsonl and the arrays of the runs."""
    names = ("sine", "sine_seeds", "digits", "series", "untrained", "flow")
    config = compare.CompareConfig(
        runs=tuple(str(folder_of(name)) for name in names), workdir=str(tmp_path / "all")
    )
    capsys.readouterr()  # What a run prints that is made here.
    compare.main(config)
    assert (tmp_path / "all" / "compare.png").stat().st_size > 20000
    said = capsys.readouterr().out
    lines = said.splitlines()[2:-1]
    assert len(lines) == len(names) + 1  # The untrained sweep has two gains.
    assert all(str(folder_of(name)) in said for name in names)
    (line,) = [line for line in lines if str(folder_of("digits")) in line]
    loss = records.load_array(folder_of("digits"), "loss_0000")
    assert loss.shape == (2, 2)  # Networks and chunks of two iterations.
    assert f"| 4 | {np.median(loss, axis=0).mean():.2e} |" in line
    solved = sum(row["solved"] for row in parts.load_rows(folder_of("digits")))
    assert f"| {solved} of 2 |" in line


def test_the_networks_of_one_run_are_compared(folder_of, capsys, tmp_path):
    folder = str(folder_of("memory"))
    runs = compare.load_runs([folder])
    assert compare.labels_of(runs) == ["cure=none", "cure=zoneout"]
    assert [run.networks for run in runs] == [2, 2]
    traces = records.load_array(folder, "traces_0001")
    np.testing.assert_allclose(runs[1].trace, np.median(traces, axis=0))
    (chosen, _) = compare.load_runs([folder, folder], "cure=zoneout,seed=1")
    np.testing.assert_array_equal(chosen.trace, traces[1])
    with pytest.raises(UsageError, match="no such network; there are --network=0 to 3"):
        compare.load_runs([folder], "cure=lstm")
    with pytest.raises(UsageError, match=r"14 kinds of network, and 12 .*--network=cure=zoneout"):
        compare.load_runs([folder] * 7)
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / "arrays" / "traces_0001.npy").unlink()
    with pytest.raises(ValueError, match="torn holds no training run that can be compared"):
        compare.load_runs([str(torn), folder])


def test_networks_are_named_by_number_or_settings_and_listed(folder_of, capsys):
    folder = folder_of("memory")
    said = said_of(capsys, folder, at="end", network="cure=zoneout,length=8,seed=1")
    assert said.startswith(
        "network 3: task adding, cure zoneout, length 8, learning_rate 0.001, seed"
    )
    for wrong in ("cure=lstm", "4", "test_loss=1"):
        with pytest.raises(UsageError) as raised:
            said_of(capsys, folder, network=wrong)
        assert f"--network={wrong}" in str(raised.value)
        assert "--network=0 to 3, or by task=adding; cure=none, zoneout; length=8;" in str(
            raised.value
        )
    with pytest.raises(UsageError, match="neither a number nor a setting"):
        said_of(capsys, folder, network="zoneout")
    with pytest.raises(UsageError, match="single network"):
        said_of(capsys, folder_of("sine"), network="1")


def test_a_group_keeps_as_many_networks_as_its_file_holds(tmp_path, monkeypatch):
    """Batches come out of order, and the file has room for three networks of 12 numbers."""
    folder = records.open_run(tmp_path / "run", {})
    (folder / parts.PARTS).mkdir()
    monkeypatch.setattr(parameters, "MOST_BYTES", 3 * 12 * 4 + 5)
    weights = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    for indices in ([4, 5], [2, 3], [0, 1]):
        rows = [{"network": index, "seed": index} for index in indices]
        arrays = [{"loss": np.zeros(2)}] * 2
        params = {"end": {"cell": {"W": weights[indices]}}}
        parts.write_part(folder, 0, np.array(indices), rows, arrays, params)
    parts.gather_parts(folder, 1, 6)
    for network in range(3):
        found = parameters.load(folder, "end", network)
        np.testing.assert_array_equal(found["cell.W"], weights[network])
    with pytest.raises(ValueError, match="keeps no parameters of network 3 at the end"):
        parameters.load(folder, "end", 3)
    assert not parameters.is_kept(folder, "start")


@pytest.mark.survival
def test_code_that_a_folder_names_is_not_run_unless_the_user_names_it(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "somebodys.py").write_text(
        "import rnn_jax\nprint('imported')\n"
        "def cell(hidden_size):\n    return rnn_jax.elman(hidden_size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    memory.run(
        memory.MemoryConfig(
            cell="somebodys:cell",
            length="8",
            workdir=str(folder),
            **ONE,
        )
    )
    monkeypatch.delitem(__import__("sys").modules, "somebodys")
    for given in ("", "elman", "somebodys:other"):
        with pytest.raises(UsageError, match=r"cell of somebody's own.*give --cell="):
            said_of(capsys, folder, cell=given)
    assert "imported" not in capsys.readouterr().out
    assert "gradient: " in said_of(capsys, folder, cell="somebodys:cell", at="end")


@pytest.mark.survival
def test_folders_of_which_nothing_can_be_said_are_refused_in_one_line(
    folder_of, tmp_path, capsys, monkeypatch
):
    def copied(name, source="memory"):
        return shutil.copytree(folder_of(source), tmp_path / name)

    old = copied("old")
    for path in old.glob("arrays/params_*"):
        path.unlink()
    unfinished = copied("unfinished")
    (unfinished / "networks.jsonl").unlink()
    other = copied("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 5}))
    strange = copied("strange")
    (strange / "config.json").write_text(json.dumps(config | {"experiment": "benchmark"}))
    torn = copied("torn")
    (torn / "arrays" / "params_end_0000.npz").write_bytes(b"PK")
    rows = (folder_of("memory") / "networks.jsonl").read_text()
    uncured = copied("uncured")
    (uncured / "networks.jsonl").write_text(rows.replace('"none"', '"charm"'))
    picture = copied("picture", "flow")
    config = json.loads((picture / "config.json").read_text())
    (picture / "config.json").write_text(json.dumps(config | {"run": "runs/sine"}))
    for folder, message in (
        (tmp_path / "nowhere", "nowhere is not the folder of a run"),
        (old, "no parameters of the start of training: .*version that did not keep them.*--overwr"),
        (unfinished, "unfinished has not come to its end"),
        (other, r"cell\.U is float32 \(2, 4\), but float32 \(2, 5\) is wanted"),
        (strange, "a run of 'benchmark', .*name one of sine, memory, digits"),
        (torn, "params_end_0000.npz is no archive"),
        (uncured, "cure is 'charm', but the run has none, zoneout"),
        (picture, "shows the network of the run 'runs/sine'; diagnose that one"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            said_of(capsys, folder)
        assert "\n" not in str(raised.value)


def test_a_series_that_was_changed_is_said(folder_of, tmp_path, capsys):
    copy = shutil.copytree(folder_of("series"), tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"values": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="was changed since"):
        said_of(capsys, copy)


def test_a_single_run_is_loaded_in_two_lines(folder_of):
    found = parameters.load(folder_of("sine"), "end")
    like = rnn_jax.sequence_model(rnn_jax.elman(4), 1).init(jax.random.key(0), 1)
    tree = parameters.load_tree(folder_of("sine"), "end", None, like)
    np.testing.assert_array_equal(tree.cell.W, found["cell.W"])
    assert not parameters.is_kept(records.make_folder(folder_of("sine") / "none"), "end")
