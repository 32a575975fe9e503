"""The sweep experiment: its files, its refusals, and that nothing is lost when it is killed."""

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import gradient_sweep
from experiments.cli.options import UsageError
from experiments.cli.processes import check_processes
from experiments.reports import gradient_sweep as sweep_report
from experiments.setup.sweep import SweepConfig, structures
from experiments.training import groups as network_groups
from experiments.training import parts as network_parts
from experiments.training.sweep_groups import groups_of
from rnn_jax import gradflow
from rnn_jax.io import records

SMALL = SweepConfig(
    gain="0.5,2",
    input_std="0.1,0.5,1",
    cell="elman,lstm",
    activation="tanh",
    hidden_size="6",
    length="20",
    seeds=3,
    batch_size=2,
    input_size=2,
    width=2,
    batch_networks=8,
)
FILES = ("networks.jsonl", "config.json", "arrays/profile_0000.npy", "arrays/profile_0001.npy")
ROOT = Path(__file__).parents[1]


def run_in(folder, **changes):
    return gradient_sweep.run(dataclasses.replace(SMALL, **{"workdir": str(folder), **changes}))


def contents(folder):
    return {name: (Path(folder) / name).read_bytes() for name in FILES}


def flags_of(config, **changes):
    settings = dataclasses.asdict(dataclasses.replace(config, **changes))
    return [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
    ]


def start(folder, cache, *flags):
    command = [sys.executable, "-m", "experiments.gradient_sweep", *flags_of(SMALL)]
    return subprocess.Popen(
        [*command, f"--workdir={folder}", "--cpu_devices=2", "--batch_networks=4", *flags],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "XLA_FLAGS": "", "NPROC": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return folder, run_in(folder)


def test_one_line_a_network_with_its_settings_and_numbers(finished):
    folder, rows = finished
    assert len(rows) == 2 * 2 * 3 * 3
    assert [row["network"] for row in rows] == list(range(36))
    lines = [json.loads(line) for line in (folder / "networks.jsonl").read_text().splitlines()]
    assert lines == rows
    points = {(row["cell"], row["gain"], row["input_std"], row["seed"]) for row in rows}
    assert len(points) == 36
    for row in rows:
        assert {"slope", "slope_error", "horizon", "verdict", "log_ratio", "exponent"} <= set(row)
        assert ("activation" in row) == (row["cell"] == "elman")
        assert (row["predicted_slope"] is None) == (row["cell"] == "lstm")
    assert records.load_array(folder, "profile_0001").shape == (18, 20)
    assert not (folder / network_parts.PARTS).exists()
    for name in ("phase_diagram.png", "prediction.png"):
        assert (folder / name).stat().st_size > 5000


def test_the_summary_names_edge_choices_and_theory(finished):
    text = (finished[0] / "summary.txt").read_text()
    assert "36 networks" in text
    assert "median slope changes sign at gain of W" in text
    assert "keep a gradient for" in text or "never falls" in text
    assert "theory: off by" in text


def test_a_line_says_what_diagnose_says(finished):
    """The profile of a network, measured again by itself, has the slope of its line."""
    import jax

    group = groups_of(SMALL)[0]
    key = jax.random.fold_in(jax.random.key(SMALL.seed), 1)
    numbers = {"gain": 2.0, "bias_std": 0.0, "input_std": 0.5}
    alone = jax.jit(group.program)({k: np.float32(v) for k, v in numbers.items()}, key)
    (row,) = (
        row
        for row in finished[1]
        if row["cell"] == "elman"
        and row["seed"] == 1
        and row["gain"] == 2
        and row["input_std"] == 0.5
    )
    logs = np.asarray(alone["log_norms"], np.float64)
    middle = np.median(logs[::-1] - logs[-1], axis=1)
    slope = np.polyfit(np.arange(2, 20), middle[2:], 1)[0]
    assert row["slope"] == pytest.approx(slope, abs=1e-4)
    assert row["exponent"] == pytest.approx(float(alone["exponent"]), abs=1e-5)
    assert row["verdict"] in gradflow.Diagnosis.__doc__


@pytest.mark.slow
def test_other_batches_and_one_device_give_the_same_bytes(finished, tmp_path):
    run_in(tmp_path / "a", batch_networks=16)
    assert contents(tmp_path / "a") == contents(finished[0])


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_ends_in_the_same_bytes(finished, tmp_path, monkeypatch):
    real, count = network_groups.write_part, [0]

    def stops(*arguments):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(network_groups, "write_part", stops)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path)
    parts = sorted((tmp_path / network_parts.PARTS).glob("*.jsonl"))
    assert len(parts) == 3
    # A part cut short is as good as none.
    parts[1].with_suffix(".npz").write_bytes(b"PK")
    monkeypatch.setattr(network_groups, "write_part", real)
    run_in(tmp_path, batch_networks=8)
    assert contents(tmp_path) == contents(finished[0])


def test_a_finished_sweep_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(network_groups, "_run_missing", None)
    assert run_in(finished[0]) == finished[1]


def test_other_settings_in_the_same_folder_are_refused(finished):
    with pytest.raises(ValueError, match="seeds was 3, now 4"):
        run_in(finished[0], seeds=4)
    assert len(network_parts.load_rows(finished[0])) == 36


def test_overwrite_starts_afresh(tmp_path):
    run_in(tmp_path, cell="elman", seeds=1)
    rows = run_in(tmp_path, cell="elman", seeds=2, overwrite=True)
    assert len(rows) == 12


def test_two_processes_in_one_folder(tmp_path):
    with records.held(tmp_path), pytest.raises(ValueError, match="another process is at work"):
        run_in(tmp_path)


def test_a_full_disk_is_said_in_one_line_and_loses_nothing(tmp_path, monkeypatch):
    real, count = records.write_atomically, [0]

    def full(path, content):
        if path.suffix == ".jsonl":
            count[0] += 1
            if count[0] == 3:
                raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(records, "write_atomically", full)
    with pytest.raises(ValueError, match=r"No space left on device.*the same command goes on"):
        run_in(tmp_path, cell="elman")
    monkeypatch.setattr(records, "write_atomically", real)
    assert network_parts.finished(tmp_path, 18).sum() == 16


@pytest.mark.slow
def test_learning_is_told_from_start_to_end_and_divergence_is_a_result(tmp_path):
    rows = run_in(
        tmp_path,
        cell="elman",
        gain="1",
        learning_rate="0.01,1e30",
        train_steps=60,
        task="adding",
        optimizer="sgd",
        seeds=2,
    )
    calm, wild = rows[:2], rows[2:]
    for row in calm:
        assert row["diverged_step"] is None
        assert row["final_loss"] < 1
        assert np.isfinite([row["slope_start"], row["slope_half"], row["slope_end"]]).all()
        assert row["slope_start"] != row["slope_end"]
    for row in wild:
        assert row["diverged_step"] in (2, 3)
        assert row["verdict_start"] == "vanishing" or row["verdict_start"] == "healthy"
        assert row["verdict_end"] == "non-finite"
        assert row["solved"] is False
    loss = records.load_array(tmp_path, "loss_0000")
    assert loss.shape == (4, 60)
    assert np.isfinite(loss[:2]).all()
    assert np.isnan(loss[2:, -1]).all()
    assert records.load_array(tmp_path, "traces_0000").shape == (4, 2, 20)
    assert (tmp_path / "success.png").exists()


def test_axes_that_a_cell_does_not_have_are_left_out():
    config = dataclasses.replace(SMALL, activation="tanh,relu", leak="0.1,0.2", cell="elman,gru")
    assert [s.get("activation") for s in structures(config)] == ["tanh", "relu", None]
    sizes = [len(group.seeds) for group in groups_of(config)]
    assert sizes == [18, 18, 18]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gain": "a:b"}, "--gain=a:b: a range is start:stop:count"),
        ({"gain": ""}, "--gain= is empty"),
        ({"gain": "0:1:0"}, "count is 0"),
        ({"gain": "0,1"}, "0 is not above 0"),
        ({"cell": "rnn"}, "--cell=rnn"),
        ({"leak": "2"}, "--leak=2"),
        ({"hidden_size": "1.5"}, "--hidden_size=1.5"),
        ({"batch_networks": 3}, "--batch_networks=3"),
        ({"memory_mb": 1, "hidden_size": "400"}, "--memory_mb=1: one network"),
        ({"seeds": 2**31 - 1}, r"GB are free: lower --seeds, or .*: 25,769,803,764 networks"),
        ({"gain": "0.1:1:100000", "input_std": "0:1:100000"}, r"GB are free: lower --seeds, or"),
        ({"hidden_size": "1:10000:10000", "length": "1:9:9"}, "asks for 180,000 programs"),
        ({"hidden_size": "100000"}, "GB are free: lower --hidden_size"),
        ({"width": 2**31 - 1}, "GB are free: lower .*--width"),
        ({"hidden_size": "64,3", "recurrent_init": "sparse"}, "--hidden_size=3: a sparse W has 15"),
        ({"gain": "1e-320"}, "--gain=1e-320: .* is too small; float32"),
        ({"gain": "1,"}, "--gain=1,: there is a comma, but no number beside it"),
        ({"workdir": ""}, "--workdir=: give a folder a name"),
        ({"cpu_devices": 1000}, "--cpu_devices=1000: give a number of at most 256"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        run_in("run", **changes)
    assert not list(tmp_path.iterdir())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "count", "number", "said"),
    [
        ("", 0, 0, "--process_id=0: --coordinator_address and --num_processes must be given too"),
        ("", 2, -1, "--num_processes=2: --coordinator_address and --process_id must be given too"),
        ("host:1", 0, -1, "--coordinator_address=host:1: --num_processes and --process_id must"),
        ("host:1", 2, 2, "--process_id=2: processes are numbered from 0, and there are"),
        ("host", 2, 0, "--coordinator_address=host: give the host of process 0 and a port"),
        ("host:99999", 2, 0, "give the host of process 0 and a port, such as host0:9876"),
    ],
)
def test_processes_that_do_not_say_which_they_are_are_refused(address, count, number, said):
    """Without an address each would believe itself alone, and all write to one folder."""
    with pytest.raises(UsageError, match=said):
        gradient_sweep.main(
            SweepConfig(coordinator_address=address, num_processes=count, process_id=number)
        )


def test_processes_that_do_may_start():
    check_processes("", 0, -1)
    check_processes("host:9876", 2, 1)
    check_processes("[::1]:9876", 1, 0)


@pytest.mark.slow
def test_memory_bounds_the_width():
    config = dataclasses.replace(SMALL, cell="elman", hidden_size="200", width=16, batch_networks=0)
    groups = groups_of(config)
    free = gradient_sweep.layout_of(config, groups)
    bounded = gradient_sweep.layout_of(dataclasses.replace(config, memory_mb=54), groups)
    assert free.width == 16
    assert bounded.width < 16


MEASURE_MEMORY = """
import resource, sys
import jax
from experiments import gradient_sweep
from rnn_jax import sharding
sharding.use_cpu_devices(2)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

folder = sys.argv[1]
tiny = gradient_sweep.SweepConfig(hidden_size="8", length="5", workdir=folder + "/tiny")
gradient_sweep.run(tiny)
before = peak()
gradient_sweep.run(gradient_sweep.SweepConfig(
    gain="0.5:1:32", hidden_size="128", length="500", batch_size=16, seeds=2,
    memory_mb=int(sys.argv[2]), workdir=folder + "/large"))
print("grew by", peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [150, 400])
def test_memory_stays_within_its_bound(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, str(tmp_path), str(limit)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert 0.2 * limit < float(done.stdout.rsplit(maxsplit=1)[-1]) < 1.2 * limit


@pytest.mark.slow
def test_the_critical_gain_of_a_wide_network_without_input_is_1(tmp_path):
    rows = run_in(
        tmp_path,
        cell="elman",
        gain="0.9:1.1:5",
        input_std="0",
        hidden_size="256",
        length="60",
        seeds=8,
        width=4,
        batch_networks=8,
    )
    gains = np.array([row["gain"] for row in rows]).reshape(5, 8)[:, 0]
    slopes = np.median(np.array([row["slope"] for row in rows]).reshape(5, 8), axis=1)
    assert slopes[0] < 0 < slopes[-1]
    critical = np.interp(0, slopes, gains)
    assert critical == pytest.approx(1, rel=0.05)


@pytest.mark.slow
def test_orthogonal_networks_on_as_many_devices_as_cores_come_to_an_end(tmp_path):
    worker = start(
        tmp_path / "run", tmp_path, "--recurrent_init=orthogonal", "--hidden_size=50",
        "--cell=elman", "--width=16", "--batch_networks=32", "--length=40", "--batch_size=8",
    )  # fmt: skip
    errors = worker.communicate(timeout=100)[1]
    assert worker.returncode == 0, errors


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.survival
@pytest.mark.slow
def test_two_processes_of_two_devices_write_what_one_writes(finished, tmp_path):
    address = f"--coordinator_address=localhost:{free_port()}"
    workers = [
        start(
            tmp_path / "run",
            tmp_path,
            "--batch_networks=8",
            address,
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in (0, 1)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert contents(tmp_path / "run") == contents(finished[0])


def kill_and_resume(folder, cache, kills, seed):
    """Kills the sweep at random moments, and lets it come to its end."""
    rng = random.Random(seed)
    for _ in range(kills):
        worker = start(folder, cache)
        time.sleep(rng.uniform(0.5, 6))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    worker = start(folder, cache)
    errors = worker.communicate(timeout=240)[1]
    assert worker.returncode == 0, errors


@pytest.mark.survival
@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(finished, tmp_path):
    kill_and_resume(tmp_path / "run", tmp_path, kills=3, seed=3)
    assert contents(tmp_path / "run") == contents(finished[0])


@pytest.mark.slow
def test_the_order_of_groups_changes_nothing_but_the_order_of_lines(finished, tmp_path):
    rows = run_in(tmp_path, cell="lstm,elman")
    assert [row["cell"] for row in rows] == ["lstm"] * 18 + ["elman"] * 18

    def by_cell(rows):
        return [
            {key: value for key, value in row.items() if key != "network"}
            for row in sorted(rows, key=lambda row: row["cell"])
        ]

    assert by_cell(rows) == by_cell(finished[1])


@pytest.mark.slow
def test_a_cell_without_one_of_the_axes_is_left_out_of_the_map(tmp_path):
    config = dataclasses.replace(SMALL, input_std="0.1", bias_std="0,0.5", seeds=1)
    groups = groups_of(config)
    rows = [
        {
            **group.settings,
            **{name: float(values[lane]) for name, values in group.hparams.items()},
            "slope": float(group.hparams["gain"][lane]) - 1,
            "horizon": 10.0,
            "verdict": "healthy",
            "predicted_slope": None,
        }
        for group in groups
        for lane in range(len(group.seeds))
    ]
    text = sweep_report.save(tmp_path, rows, groups)
    assert (tmp_path / "phase_diagram.png").stat().st_size > 5000
    assert text.count("changes sign at gain of W: 1\n") == 2


def stopped_and_gone_on(folder, cache, processes, number):
    """Runs the sweep in so many processes, stops them by a signal after a while, and again."""
    codes = []
    for wait in (True, False):
        address = f"--coordinator_address=localhost:{free_port()}"
        shares = [
            (address, f"--num_processes={processes}", f"--process_id={index}")
            for index in range(processes)
        ]
        workers = [
            start(folder, cache, "--batch_networks=8", *(share if processes > 1 else ()))
            for share in shares
        ]
        if wait:
            # The first batch is done, so that there is something to go on from.
            deadline = time.monotonic() + 100
            while not list(folder.glob("parts/*.jsonl")) and time.monotonic() < deadline:
                time.sleep(0.05)
            for worker in workers if number == signal.SIGKILL else workers[-1:]:
                worker.send_signal(number)
        said = [worker.communicate(timeout=240) for worker in workers]
        codes.append([worker.returncode for worker in workers])
    return codes, said


@pytest.mark.survival
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_stopped_by_a_signal_it_goes_on_with_the_same_command(
    finished, tmp_path, processes, number, code
):
    """SIGTERM to one of two processes stops both, together."""
    codes, said = stopped_and_gone_on(tmp_path / "run", tmp_path, processes, number)
    assert codes == [[code] * processes, [0] * processes], said
    assert contents(tmp_path / "run") == contents(finished[0])
