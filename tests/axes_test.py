"""Axes of a sweep, as they are written on a command line."""

import numpy as np
import pytest

from experiments.cli import axes
from experiments.cli.options import UsageError


def test_a_range_has_both_its_ends():
    values = axes.numbers("gain", "0.1:3.0:30")
    np.testing.assert_allclose(values, np.arange(1, 31) / 10, rtol=1e-12)
    assert values[2] == 0.3


def test_lists_and_ranges_mix():
    assert axes.numbers("gain", "5, 0:1:3,-2") == [5, 0, 0.5, 1, -2]
    assert axes.numbers("gain", "2:1:2") == [2, 1]
    assert axes.numbers("gain", "2:2:1") == [2]
    assert axes.whole_numbers("length", "20,50:100:2", minimum=1) == [20, 50, 100]
    assert axes.words("cell", "lstm,elman", ("elman", "lstm")) == ["lstm", "elman"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a:b", "start:stop:count"),
        ("a:b:3", "'a' is not a finite number"),
        ("1,,2", "there is a comma, but no number beside it"),
        ("1,", "there is a comma, but no number beside it"),
        ("1e-320", "9.99989e-321 is too small; float32 holds sizes of 1.2e-38 to 3.4e"),
        ("-1e39", "too large; float32"),
        ("0:1:0", "count is 0"),
        ("0:1:-3", "count is -3"),
        ("0:1:2.5", "count is 2.5"),
        ("0:1:1", "no room for both ends"),
        ("0:1:1e9", "count is 1e9"),
        ("1,1", "twice"),
        ("nan", "not a finite"),
        ("0:inf:3", "'inf' is not a finite"),
    ],
)
def test_an_axis_that_cannot_be_read_names_flag_and_text(text, said):
    with pytest.raises(UsageError, match=f"--gain=.*{said}"):
        axes.numbers("gain", text)


def test_limits():
    with pytest.raises(UsageError, match="--gain=0,1: 0 is not above 0"):
        axes.numbers("gain", "0,1", above=0)
    with pytest.raises(UsageError, match="-1 is not at least 0"):
        axes.numbers("std", "0,-1", minimum=0)
    with pytest.raises(UsageError, match=r"2\.5 is not a whole number"):
        axes.whole_numbers("length", "2.5", minimum=1)
    with pytest.raises(UsageError, match="above 2147483647"):
        axes.whole_numbers("length", "2147483648", minimum=1)
    with pytest.raises(UsageError, match="take some of elman, lstm"):
        axes.words("cell", "elman,rnn", ("elman", "lstm"))
    with pytest.raises(UsageError, match="twice"):
        axes.words("cell", "elman,elman", ("elman", "lstm"))
