"""CSV files of a time series: what is in them comes back; what is wrong is named by its place."""

import csv
import gzip
import io
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rnn_jax.io.tables import Table, numbers, place, read_table

pytestmark = pytest.mark.survival

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=5000)


def write(folder, text):
    path = folder / "series.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_columns_come_back_as_text_and_as_numbers_with_their_lines(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 2)) * 10.0 ** rng.integers(-30, 30, size=(5, 2))
    body = "".join(f"day {i},{a!r}, {b!r}\n" for i, (a, b) in enumerate(values.tolist()))
    path = write(tmp_path, "\n" + "when, flow ,rain\r\n" + body.replace("\n", "\n\n", 1))
    table = read_table(path)
    assert table._replace(columns={}) == Table(
        path, ("when", "flow", "rain"), {}, first_line=2, lines=[3, 5, 6, 7, 8]
    )
    assert table.columns["when"] == [f"day {i}" for i in range(5)]
    np.testing.assert_array_equal(numbers(table, "flow"), values[:, 0])
    np.testing.assert_array_equal(numbers(table, "rain"), values[:, 1])
    packed = write(tmp_path, gzip.compress(path.read_bytes()))
    assert read_table(packed) == table


def test_a_quoted_cell_of_two_lines_moves_the_line_numbers(tmp_path):
    table = read_table(write(tmp_path, '\ufeffa,b\n"one\ntwo",1\nx,2\ny,bad\n'))
    assert table.lines == [2, 4, 5]
    with pytest.raises(ValueError, match=r"series\.csv, line 5, column 'b': 'bad' is no number"):
        numbers(table, "b")


def test_missing_numbers_are_refused_or_marked(tmp_path):
    table = read_table(write(tmp_path, "t,x\n0,1\n1,\n2,NaN\n3,7\n4, NA \n5,3\n"))
    with pytest.raises(ValueError, match=r"line 3, column 'x': the number is missing"):
        numbers(table, "x")
    np.testing.assert_array_equal(numbers(table, "x", "nan"), [1, np.nan, np.nan, 7, np.nan, 3])
    assert place(table, 1, "x").endswith("series.csv, line 3, column 'x'")
    with pytest.raises(ValueError, match=r"give 'error', or 'nan'.*\.fill_gaps"):
        numbers(table, "x", "interpolate")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("1,2\n3,4\n", "line 1: numbers, where the names"),
        ("a,b,a\n1,2,3\n", "line 1: 2 columns are called 'a'"),
        ("a,,c\n1,2,3\n", "line 1: column 2 has no name"),
        ("a,b\n1,2\n\n3\n", "line 4: 1 cells, but line 1 names 2"),
        ('a,b\n1,"2\n3,4\n', "line 2: not CSV"),
        ('a,b\n1,"2"x\n', "line 2: not CSV"),
        ("a,b\n1," + "2" * 200_000, "line 2: not CSV"),
        (b"a,b\n1,2\n3,\xff\n", "line 3: not UTF-8"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-6], "cannot be unpacked"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0) + b"rest", "cannot be unpacked"),
        (b"\x1f\x8bnot", "cannot be unpacked"),
    ],
)
def test_what_is_no_table_is_refused_and_the_place_named(text, said, tmp_path):
    with pytest.raises(ValueError, match=said) as raised:
        read_table(write(tmp_path, text))
    assert str(tmp_path / "series.csv") in str(raised.value)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1e999", "not finite"),
        ("-inf", "not finite"),
        ("9" * 5000, "not finite"),
        ("1_000", "no number"),
        ("0x1f", "no number"),
        ("٣", "no number"),
        ("1;2", "no number"),
        ("\x1b[31m", r"'\\x1b\[31m' is no number"),
    ],
)
def test_a_cell_that_is_no_finite_number(cell, said, tmp_path):
    table = read_table(write(tmp_path, f"x,y\n1,1\n{cell},2\n"))
    with pytest.raises(ValueError, match=rf"line 3, column 'x': .*{said}") as raised:
        numbers(table, "x", "nan")
    assert len(str(raised.value).replace(str(tmp_path), "")) < 300


def test_an_unknown_column_and_too_few_rows(tmp_path):
    table = read_table(write(tmp_path, "flow,rain\n1,2\n"))
    with pytest.raises(ValueError, match=r"no column 'snow'; there are 'flow', 'rain'"):
        numbers(table, "snow")
    with pytest.raises(ValueError, match="1 rows below its names; give at least 2"):
        numbers(table, "flow")
    with pytest.raises(ValueError, match="give 'error', or 'nan'"):
        numbers(table, "flow", "drop")


def test_sizes_are_refused_before_reading(tmp_path):
    sparse = tmp_path / "sparse.csv"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes"):
        read_table(sparse)
    bomb = write(tmp_path, gzip.compress(b"x\n" + b"1\n" * 500_000))
    assert bomb.stat().st_size < 3000
    with pytest.raises(ValueError, match="unpacks to more than the 100,000 bytes"):
        read_table(bomb, max_bytes=100_000)
    with pytest.raises(ValueError, match="but at most 1,000"):
        read_table(bomb, max_bytes=1000)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, said in (
        ("pipe", "no file"),
        (".", "Is a directory"),
        ("device", "no file"),
        ("loop", "symbolic links"),
        ("absent", "No such file"),
    ):
        with pytest.raises(ValueError, match=said):
            read_table(tmp_path / name)


def check_whole_or_refused(path):
    """Whatever the bytes: a table whose parts fit, or one line that names the file."""
    message = str(path)
    try:
        table = read_table(path)
        assert {len(cells) for cells in table.columns.values()} == {len(table.lines)}
        for name in table.names:
            assert not np.isinf(numbers(table, name, "nan")).any()
    except ValueError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


PIECES = st.sampled_from(
    [b"a", b",", b"\n", b"\r", b'"', b"1", b"-2.5", b"NaN", b"1e999", b"\x00", b"\xff", b" "]
)


def pieces_are_whole_or_refused(tmp_path, pieces):
    check_whole_or_refused(write(tmp_path, b"".join(pieces)))


def flipped_bytes_are_whole_or_refused(tmp_path, packed, flips, length):
    text = io.StringIO()
    csv.writer(text).writerows([["a", "b"], [1, "x\ny"], [2.5, ""], [-3, 4]])
    content = text.getvalue().encode()
    content = bytearray(gzip.compress(content, mtime=0) if packed else content)
    for where, value in flips:
        content[where % len(content)] ^= value
    check_whole_or_refused(write(tmp_path, bytes(content[: len(content) - length])))


FLIPS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), max_size=3)


@FEW
@given(st.lists(PIECES, max_size=25))
@example([b"a", b"\n", b"1", b"\n", b"\r", b"1"])
def test_pieces_of_tables(tmp_path, pieces):
    pieces_are_whole_or_refused(tmp_path, pieces)


@FEW
@given(st.booleans(), FLIPS, st.integers(0, 30))
def test_flipped_and_missing_bytes(tmp_path, packed, flips, length):
    flipped_bytes_are_whole_or_refused(tmp_path, packed, flips, length)


@pytest.mark.slow
@MANY
@given(st.lists(PIECES, max_size=60))
def test_many_pieces_of_tables(tmp_path, pieces):
    pieces_are_whole_or_refused(tmp_path, pieces)


@pytest.mark.slow
@MANY
@given(st.booleans(), FLIPS, st.integers(0, 60))
def test_many_flipped_and_missing_bytes(tmp_path, packed, flips, length):
    flipped_bytes_are_whole_or_refused(tmp_path, packed, flips, length)
