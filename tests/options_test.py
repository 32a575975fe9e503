"""Settings: one definition for flags, checks and Python."""

import dataclasses
import re
import subprocess
import sys

import pytest

from experiments.cli.options import UsageError, check
from experiments.gradient_flow import FlowConfig, gains_of
from experiments.sine import SineConfig


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("train_steps", 0, "at least 1"),
        ("hidden_size", -1, "at least 1"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", 0.0, "above 0"),
        ("clip_norm", float("inf"), "finite"),
        ("gain", 1e-320, "float32 holds"),
        ("learning_rate", 1e39, "float32 holds"),
        ("phases", "complex", "integer, real"),
        ("batch_size", 1.5, "whole number"),
    ],
)
def test_a_nonsensical_setting_names_flag_value_and_what_is_wanted(setting, value, wanted):
    config = dataclasses.replace(SineConfig(), **{setting: value})
    with pytest.raises(UsageError, match=f"--{setting}={re.escape(str(value))}.*{wanted}"):
        check(config)


def test_the_defaults_are_sound():
    check(SineConfig())
    check(FlowConfig())


@pytest.mark.parametrize("text", ["a,b", "1,-2", "0", "nan", "inf"])
def test_gains_that_are_no_positive_numbers(text):
    with pytest.raises(UsageError, match="compare_gains"):
        gains_of(FlowConfig(compare_gains=text))


def _launch(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train_steps=0"], "--train_steps=0: give a number of at least 1"),
        (["--num_steps=9"], "--num_steps is now --train_steps"),
        pytest.param(["--wurst=3"], "Unknown command line flag 'wurst'", marks=pytest.mark.slow),
        pytest.param(["--hidden_size=many"], "--hidden_size=many", marks=pytest.mark.slow),
        pytest.param(["stray"], "'stray' is not a flag", marks=pytest.mark.slow),
        (["--workdir=/dev/null/run"], "--workdir=/dev/null/run cannot be made: /dev/null is not"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line_and_a_nonzero_code(flags, said):
    ended = _launch("experiments.sine", *flags)
    assert ended.returncode != 0
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert ended.stdout == ""


def test_help_lists_every_setting_and_what_the_experiment_does():
    text = _launch("experiments.sine", "--help").stdout
    for field in dataclasses.fields(SineConfig):
        assert f"{field.name}:" in text
    assert "runs free" in text
    assert "experiments/flags/sine.flags" in text
