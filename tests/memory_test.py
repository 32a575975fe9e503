"""The memory experiment: its files and refusals, and the loop by which networks learn together."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from experiments import memory
from experiments.memory import MemoryConfig, groups_of
from experiments.reports import memory as memory_report
from experiments.setup.method import Method, cell_of, check_method
from experiments.setup.presets import PRESETS
from experiments.setup.tasks import task_named
from experiments.training import groups as network_groups
from experiments.training import loop
from experiments.training.algorithm import Algorithm, FirstNonFinite
from experiments.training.groups import Group, Training, Work
from experiments.training.loop import Schedule
from experiments.training.outcome import describe_training
from experiments.training.parts import NETWORKS
from experiments.training.programs import Layout
from experiments.training.store import CheckpointOptions
from rnn_jax import objectives, sharding, training
from rnn_jax.cells.registry import CELLS
from rnn_jax.io import records
from rnn_jax.training import optim

SMALL = MemoryConfig(
    task="adding",
    cures="none,orthogonal",
    length="8",
    hidden_size=5,
    batch_size=4,
    train_steps=6,
    test_every=3,
    seeds=2,
    learning_rate="0.01,0.03",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "whole"
    return folder, memory.run(dataclasses.replace(SMALL, workdir=str(folder)))


def test_one_line_a_network_and_the_files_that_the_help_promises(finished):
    folder, rows = finished
    assert len(rows) == 2 * 2 * 2
    points = {(r["cure"], r["length"], r["learning_rate"], r["seed"]) for r in rows}
    assert len(points) == 8
    for row in rows:
        assert row["steps"] == 6 or row["solved"]
        assert row["solved"] == (row["wrong"] <= 0.01)
        assert {"slope_start", "slope_end", "horizon_end", "verdict_end"} <= set(row)
    for name in ("learning_curves", "gradient_profiles", "success"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    table = (folder / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table] == [
        "| cure",
        "|---|---|",
        "| none",
        "| orthogonal",
    ]
    assert "orthogonal, T = 8: " in (folder / "summary.txt").read_text()
    assert records.load_array(folder, "test_loss_0001").shape == (4, 2)
    assert records.load_array(folder, "traces_0001").shape == (4, 2, 8)


def test_a_stopped_experiment_goes_on_and_ends_in_the_same_lines(finished, tmp_path, monkeypatch):
    """The first process ends after its first group; the second does not train that again."""
    folder = tmp_path / "stopped"
    config = dataclasses.replace(SMALL, workdir=str(folder))
    taught = []

    def stops(work, layout):
        if len(taught) == 1:
            raise KeyboardInterrupt
        taught.append(work.group.settings)
        return trained(work, layout)

    trained = network_groups.trained
    monkeypatch.setattr(network_groups, "trained", stops)
    with pytest.raises(KeyboardInterrupt):
        memory.run(config)
    taught.clear()
    monkeypatch.setattr(network_groups, "trained", lambda *work: taught.append(1) or trained(*work))
    memory.run(config)
    assert len(taught) == 1
    assert (folder / NETWORKS).read_bytes() == (finished[0] / NETWORKS).read_bytes()


def test_a_network_learns_as_it_would_alone(finished):
    """Its losses are those of `train_chunk` on the same keys."""
    folder, rows = finished
    (index,) = (
        n
        for n, row in enumerate(rows)
        if (row["cure"], row["length"], row["learning_rate"], row["seed"])
        == ("orthogonal", 8, 0.03, 1)
    )
    settings = memory.apply_preset(SMALL, "orthogonal")
    task = task_named("adding", 8, 4)
    model = rnn_jax.last_only(cell_of(settings, 8), task.output_size)
    optimizer = optim.recorded(optax.adam(0.03))
    init_key, data_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 3)
    state = training.init_state(model, optimizer, init_key, 2, 4)
    objective = objectives.task_objective(model, task)
    _, metrics = training.train_chunk(objective, optimizer, task.sample, state, data_key, 6)
    group = [row["cure"] == "orthogonal" and row["length"] == 8 for row in rows]
    lane = index - int(np.argmax(group))
    found = records.load_array(folder, "loss_0001")[lane]
    wanted = np.asarray(metrics.loss).reshape(2, 3).mean(axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def counting_work(ends, num_steps=12, test_every=3):
    """Networks whose state counts their steps; each solves its task, or diverges, when told."""

    def init(hparams, key):
        del key
        return training.TrainState(jnp.zeros(()), {"solves": hparams["solves"]}, (), ())

    def train_chunk(hparams, state, key, size):
        del key
        steps = state.step + 1 + jnp.arange(size)
        broken = steps == hparams["breaks"]
        loss = jnp.where(broken, jnp.nan, 1 / steps)
        at = jnp.where(jnp.any(broken), 1 + jnp.argmax(broken), 0)
        where = FirstNonFinite(at, 0 * at, 2 * jnp.sign(at))
        metrics = {
            "loss": jnp.mean(loss, keepdims=True),
            "gradient_norm": jnp.ones(1),
            "worst_norm": jnp.ones(1),
            "traces": jnp.full((1, 5), steps[-1]),
        }
        return state.replace(step=steps[-1]), metrics, where

    def evaluate(state, key):
        del key
        wrong = jnp.where(state.step >= state.params["solves"], 0.0, 1.0)
        return {"test_loss": 1 / state.step, "wrong": wrong}

    def measure(state, key):
        del key
        return {"log_norms": jnp.full((5, 2), state.step), "exponent": state.step}

    schedule = Schedule(
        num_steps, test_every, is_solved=lambda results: results["wrong"][:, -1] <= 0.01
    )
    program = Training(Algorithm(init, train_chunk, evaluate, measure), schedule)
    hparams = {name: np.array(values, np.float32) for name, values in ends.items()}
    count = len(hparams["solves"])
    describe = describe_training(0.01, (loop.START, loop.END))
    group = Group({}, hparams, np.arange(count), program, describe)
    news = []
    work = Work(
        group, 0, np.arange(count), Path("no checkpoints"), CheckpointOptions(), bool, news.append
    )
    return work, news


def test_a_network_stays_as_it_was_when_it_solved_its_task_or_diverged():
    """Tests are at 3, 6, 9 and 12 steps: one solves it at 5, one breaks at 8, one does neither."""
    work, news = counting_work({"solves": [5, 99, 99], "breaks": [99, 8, 99]})
    layout = Layout(2, 4, sharding.lanes_mesh(jax.devices()[:2]))
    (batch,) = network_groups.trained(work, layout)
    found = batch.results
    np.testing.assert_array_equal(found["steps"], [6, 9, 12])
    np.testing.assert_array_equal(found["exponent_end"], [6, 6, 12])
    np.testing.assert_array_equal(found["exponent_start"], [0, 0, 0])
    np.testing.assert_array_equal(batch.params["end"]["solves"], [5, 99, 99])
    np.testing.assert_array_equal(found["diverged_step"], [0, 8, 0])
    np.testing.assert_array_equal(found["diverged_time_step"], [0, 2, 0])
    np.testing.assert_allclose(found["test_loss"][0], 1 / np.array([3, 6, 6, 6]))
    np.testing.assert_allclose(found["test_loss"][2], 1 / np.array([3, 6, 9, 12]))
    assert np.isnan(found["loss"][1]).tolist() == [False, False, True, True]
    lines = [
        work.group.describe({}, {name: values[lane] for name, values in found.items()})[0]
        for lane in range(3)
    ]
    assert [line["solved"] for line in lines] == [True, False, False]
    assert [line["diverged_step"] for line in lines] == [None, 8, None]
    assert news[-1].startswith("iteration 12 of 12")
    assert news[-1].endswith("1 of 3 solved")


def test_training_ends_when_nobody_is_left():
    work, news = counting_work({"solves": [2, 4], "breaks": [99, 99]})
    layout = Layout(2, 4, sharding.lanes_mesh(jax.devices()[:2]))
    (batch,) = network_groups.trained(work, layout)
    assert news[-1].startswith("iteration 6 of 12")
    # Curves keep their length, for networks of other groups to stand beside.
    np.testing.assert_allclose(batch.results["test_loss"], [[1 / 3] * 4, [1 / 3] + [1 / 6] * 3])


@pytest.mark.parametrize("cure", PRESETS)
def test_every_cure_trains(cure):
    """Its programs can be traced, and training gives back a state like the one it got."""
    config = MemoryConfig(
        cures=f"{cure}", length="60", hidden_size=20, floss_burn_in=2, floss_length=5, test_every=2
    )
    names = {field.name for field in dataclasses.fields(Method)}
    assert set(PRESETS[cure].settings) <= names
    algorithm, schedule = groups_of(config)[0].program
    hparams = {"learning_rate": jnp.float32(0.1)}
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, hparams, key)
    new, _, _ = jax.eval_shape(lambda s: algorithm.train_chunk(hparams, s, key, 2), state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    # A sweep gathers the state, and a checkpoint holds it, as plain numbers.
    leaves = jax.tree.leaves(state)
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    assert jax.eval_shape(algorithm.evaluate, state, key)["wrong"].shape == ()
    assert (algorithm.intervene is not None) == cure.startswith("floss")
    if algorithm.intervene is not None:
        assert 0 in schedule.intervene_at
        flossed = jax.eval_shape(algorithm.intervene, state, key)
        assert jax.tree.structure(flossed) == jax.tree.structure(state)


NEW_CELLS = sorted(CELLS.keys() - {"elman", "leaky", "layer_norm", "lstm", "gru"})


def test_every_cell_of_the_literature_is_a_cure():
    assert [name for name in NEW_CELLS if PRESETS[name].settings["cell"] != name] == []


@pytest.mark.parametrize(
    "cures", ["lru,noise", pytest.param(",".join(NEW_CELLS), marks=pytest.mark.slow)]
)
def test_cures_of_the_literature_are_trained_and_compared(tmp_path, cures):
    rows = memory.run(
        dataclasses.replace(SMALL, cures=cures, learning_rate="0.01", workdir=str(tmp_path / "run"))
    )
    assert {row["cure"] for row in rows} == set(cures.split(","))
    assert all(math.isfinite(row["test_loss"]) for row in rows)
    summary = (tmp_path / "run" / "summary.txt").read_text()
    assert all(cure.replace("_", " ") in summary for cure in cures.split(","))


def program_of(cure):
    """All that a cure's networks run, as text, without the addresses of functions."""
    config = MemoryConfig(
        cures=cure, length="60", hidden_size=20, floss_burn_in=2, floss_length=5, test_every=2
    )
    algorithm = groups_of(config)[0].program.algorithm
    hparams = {"learning_rate": jnp.float32(0.1)}
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, hparams, key)
    programs = [jax.make_jaxpr(algorithm.init)(hparams, key)]
    programs.append(jax.make_jaxpr(lambda s: algorithm.train_chunk(hparams, s, key, 2))(state))
    if algorithm.intervene is not None:
        programs.append(jax.make_jaxpr(algorithm.intervene)(state, key))
    return re.sub("0x[0-9a-f]+", "", "".join(map(str, programs)))


def test_every_cure_changes_what_is_run():
    """A setting that nobody reads would leave its program that of an untreated network."""
    untreated = program_of("none")
    assert program_of("none") == untreated
    same = [cure for cure in PRESETS if cure != "none" and program_of(cure) == untreated]
    assert same == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cures": "none,prayer"}, "--cures=none,prayer: take some of none, clip"),
        ({"train_steps": 7}, "--train_steps=7 is not a multiple of --test_every=3"),
        ({"length": "1"}, "--task=adding --length=1: length is 1"),
        ({"learning_rate": "0"}, "--learning_rate=0: 0 is not above 0"),
        ({"window": 5, "stride": 6}, "--stride=6: --window=5"),
        ({"floss_at": "soon"}, "--floss_at=soon: 'soon' is not a finite number"),
        ({"floss_at": "0,4", "floss_length": 5, "floss_burn_in": 2}, "4 is not a multiple of"),
        ({"floss_burn_in": 60}, "--floss_burn_in=60: --floss_length=55"),
        ({"floss_exponents": 6}, "--floss_exponents=6: 5 units"),
        ({"leak": 1.5, "cell": "leaky"}, "--leak=1.5: above 1"),
        ({"gains": "-1"}, "--gains=-1"),
        ({"auxiliary": 1.0, "window": 3}, "--auxiliary=1: it goes with full BPTT"),
        ({"zoneout": 1.0}, "--zoneout=1: no unit would ever change"),
        ({"detach": 1.5}, "--detach=1.5 is a probability"),
        ({"detach": 0.5, "cell": "lem"}, "--detach=0.5: this cell does not say where"),
        ({"floss_at": "0", "floss_length": 9, "floss_burn_in": 2}, "--floss_length=9"),
        ({"workdir": ""}, "--workdir=: give a folder a name"),
        ({"seeds": 2**31 - 1}, "GB are free: lower --seeds: 2,147,483,647 networks"),
        ({"seeds": 10**8}, "GB are free: lower --seeds"),
        ({"learning_rate": "0.1:1:100000", "gains": "1:2:9999"}, "lower --seeds, or give fewer of"),
        ({"length": "3:20000:19998"}, "asks for 39,996 programs, each compiled"),
        ({"cures": "none,sparse"}, "--hidden_size=5: a sparse W has 15 entries"),
        ({"train_steps": 3 * 10**8}, "GB are free: lower"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        memory.run(dataclasses.replace(SMALL, **{"workdir": "run", **changes}))
    assert not list(tmp_path.iterdir())


def test_what_is_foretold_is_the_length_over_which_a_gradient_keeps_a_thousandth():
    def trained(slope, solved):
        rows = [{"slope_start": slope, "test_loss": 1.0}] * 2
        learned = memory_report.Learned(
            *(np.zeros((2, 1)),), np.array(solved), *(np.zeros((2, 4)),) * 2
        )
        return memory_report.Trained("kind", "cure", 10, 0.1, rows, learned, 1.0)

    grid = {
        ("slow", 10): trained(-0.1, [True, True]),
        ("slow", 20): trained(-0.1, [True, False]),
        ("slow", 40): trained(-0.1, [False, False]),
        ("quick", 10): trained(-1.0, [False, False]),
        ("quick", 20): trained(-1.0, [False, False]),
        ("quick", 40): trained(-1.0, [False, False]),
    }
    predicted, found = memory_report.foretold(["slow", "quick"], [10, 20, 40], grid)
    np.testing.assert_array_equal(predicted, np.floor(math.log(1e3) / np.array([0.1, 1.0])))
    np.testing.assert_array_equal(found, [20, 0])


def test_the_best_learning_rate_is_told(finished):
    folder, rows = finished
    config = dataclasses.replace(SMALL, workdir=str(folder))
    cells = memory_report.best_cells(folder, rows, groups_of(config), [1.0] * 2)
    assert len(cells) == 2
    for cell in cells:
        mine = [r for r in rows if (r["cure"], r["length"]) == (cell.cure, cell.length)]
        medians = {
            rate: np.median([r["test_loss"] for r in mine if r["learning_rate"] == rate])
            for rate in (0.01, 0.03)
        }
        assert cell.learning_rate == min(medians, key=medians.get)
        assert len(cell.rows) == 2


def test_methods_that_go_together_are_let_through():
    check_method(Method())
