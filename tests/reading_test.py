"""A run's folder from a stranger: read as it is, or refused in one line that names the file."""

import io
import json
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.training import parts
from rnn_jax.io import records

pytestmark = pytest.mark.survival

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=4000)


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def refused(load, *args):
    """What is said of a file that is refused, in one line; None where it is read."""
    said = None
    try:
        load(*args)
    except ValueError as error:
        said = str(error)
    assert said is None or said.isprintable()
    return said


@pytest.fixture
def folder(tmp_path):
    return records.open_run(tmp_path / "run", {"seed": 1})


def npy(array, **kwargs):
    content = io.BytesIO()
    np.save(content, array, **kwargs)
    return content.getvalue()


def npy_of(header, body=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


# What is written is what is read.

ARRAYS = [
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.float64(3.5),
    np.zeros((0, 4), np.float16),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array([1, 2], dtype=">i8"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_plain_arrays_come_back_equal_and_writable(array, folder):
    (folder / records.ARRAYS / "a.npy").write_bytes(npy(array))
    found = records.load_array(folder, "a")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert found.flags.writeable


# Arrays that are refused.


def headers():
    plain = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
    return {
        "1e18 elements": npy_of(plain % 10**18),
        "1e5000 elements": npy_of(plain % ("9" * 5000)),
        "negative": npy_of(plain % "-1"),
        "too short": npy_of(plain % 3, b"\0" * 23),
        "too long": npy_of(plain % 3, b"\0" * 25),
        "zero times 1e18": npy_of(plain % f"{10**17}, 0, {10**17}", b"1"),
        "no such type": npy_of((plain % 1).replace("f8", "f7"), b"\0" * 7),
        "nested": npy_of("(" * 60_000),
        "code": npy_of((plain % 1).replace("False", "print(1)")),
        "structured": npy(np.zeros(2, [("a", "<f8"), ("b", "<i4")])),
        "text": npy(np.array(["a", "b"])),
        "void": npy(np.zeros(2, "V8")),
        "dates": npy(np.zeros(2, "M8[s]")),
        "newer version": b"\x93NUMPY\x03\x00" + npy(np.zeros(2))[8:],
        "empty": b"",
        "half a header": npy(np.zeros(2))[:40],
    }


@pytest.mark.parametrize("name", headers())
def test_what_is_no_whole_array_of_numbers(name, folder):
    path = folder / records.ARRAYS / "a.npy"
    path.write_bytes(headers()[name])
    assert str(path) in refused(records.load_array, folder, "a")


def test_objects_are_not_unpickled(folder, tmp_path):
    mark = tmp_path / "mark"
    objects = npy(np.array([Trap(mark)], dtype=object), allow_pickle=True)
    for content in (objects, pickle.dumps(Trap(mark))):
        (folder / records.ARRAYS / "a.npy").write_bytes(content)
        assert "a.npy" in refused(records.load_array, folder, "a")
        with zipfile.ZipFile(folder / records.ARRAYS / "a.npz", "w") as archive:
            archive.writestr("x.npy", content)
        assert "a.npz" in refused(records.load_tree, folder, "a", {"x": np.zeros(1)})
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()


# Archives.


def test_archives_that_unpack_to_more_than_they_hold(folder):
    path = folder / records.ARRAYS / "a.npz"
    zeros = np.zeros(10**7)
    np.savez_compressed(path, x=zeros)
    assert path.stat().st_size < 10**5
    assert "unpacks to more than it holds" in refused(records.load_tree, folder, "a", {"x": zeros})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        # Packed, and yet no smaller: nothing that numpy.savez writes.
        archive.writestr("x.npy", npy(np.random.default_rng(0).normal(size=3)))
        archive.writestr("padding", os.urandom(100), zipfile.ZIP_STORED)
    assert refused(records.load_tree, folder, "a", {"x": np.zeros(3)})


def test_trees_of_other_leaves(folder):
    records.save_tree(folder, "a", {"x": np.zeros(3, np.int32)})
    said = refused(records.load_tree, folder, "a", {"x": np.zeros(3, np.float32)})
    assert said.endswith("a.npz: x is int32, but float32 is wanted")
    assert "y is missing" in refused(records.load_tree, folder, "a", {"y": np.zeros(3)})
    assert "No such file" in refused(records.load_tree, folder, "b", {"y": np.zeros(3)})


# JSON.

BAD_JSON = {
    "infinite": b'{"a": 1e999}',
    "literal": b'{"a": NaN}',
    "other literal": b'{"a": -Infinity}',
    "long": b'{"a": 1' + b"0" * 5000 + b"}",
    "65 bits": b'{"a": 9223372036854775808}',
    "deep": b'{"a":' * 100_000 + b"}" * 100_000,
    "deep list": b"[" * 200_000,
    "twice": b'{"a": 1, "a": 2}',
    "latin": '{"ä": 1}'.encode("latin-1"),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "list": b"[1]",
    "number": b"1",
    "null": b"null",
    "cut": b'{"a": ',
    "empty": b"",
    "more": b'{"a": 1} {"b": 2}',
    "yaml": b"a: !!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_no_object_of_finite_numbers(name, folder):
    (folder / records.CONFIG).write_bytes(BAD_JSON[name])
    assert str(folder / records.CONFIG) in refused(records.load_config, folder)
    good = b'{"network": 0}\n'
    for file, load in (
        (records.METRICS, records.load_metrics),
        (parts.NETWORKS, parts.load_rows),
    ):
        (folder / file).write_bytes(good + BAD_JSON[name] + b"\n" + good)
        assert f"{folder / file}, line 2" in refused(load, folder)


def test_escapes_are_not_repeated(folder):
    text = json.dumps({"\x1b[2J": 1, "seed": "\x1b]0;x\x07"})
    (folder / records.CONFIG).write_text(text)
    assert "x1b[2J" in refused(records.open_run, folder, {"seed": 1})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"network": 1}', "line 1: network is 1, but 0 is wanted"),
        ('{"network": true}', "line 1: network is True"),
        ('{"network": 0}\n{"gain": 2}', "line 2: network is None"),
        ('{"network": 0, "gain": [1]}', "line 1: 'gain' is a list of 1; one value"),
    ],
)
def test_lines_of_a_sweep_that_are_of_no_network(lines, said, folder):
    (folder / parts.NETWORKS).write_text(lines + "\n")
    assert said in refused(parts.load_rows, folder)


# Sizes, and what is no file.

LOADERS = {
    records.CONFIG: lambda folder: records.load_config(folder),
    records.METRICS: lambda folder: records.load_metrics(folder),
    parts.NETWORKS: lambda folder: parts.load_rows(folder),
    "arrays/a.npy": lambda folder: records.load_array(folder, "a"),
    "arrays/a.npz": lambda folder: records.load_tree(folder, "a", {"x": np.zeros(3)}),
}


@pytest.mark.parametrize("name", LOADERS)
def test_large_files_are_refused_before_they_are_read(name, folder):
    with (folder / name).open("wb") as file:
        file.truncate(2**40)
    start = time.monotonic()
    assert "1,099,511,627,776 bytes, but at most" in refused(LOADERS[name], folder)
    assert time.monotonic() - start < 0.5


def test_a_long_line_is_refused_once_it_is_too_long(folder):
    path = folder / records.METRICS
    with path.open("wb") as file:
        file.write(b'{"step": 1}\n')
        file.truncate(10**9)
    start = time.monotonic()
    assert f"{path}, line 2 has more than" in refused(records.load_metrics, folder)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_no_file_is_refused_at_once(name, folder):
    path = folder / name

    def loop():
        path.symlink_to(path)

    for make, said in (
        (path.mkdir, "Is a directory"),
        (lambda: os.mkfifo(path), "no file"),
        (lambda: path.symlink_to("/dev/zero"), "no file"),
        (loop, "symbolic links"),
        (lambda: None, ""),
    ):
        path.unlink(missing_ok=True)
        make()
        assert str(path) in refused(LOADERS[name], folder) or not said
        assert said in refused(LOADERS[name], folder)
        if path.is_dir():
            path.rmdir()


# Nothing is written elsewhere.


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", "", ".hidden", "a\0", "a\n"])
def test_names_that_lead_elsewhere_are_refused(name, folder):
    for save in (records.save_array, records.save_tree):
        with pytest.raises(ValueError, match="no name of an array"):
            save(folder, name, np.zeros(1))
    with pytest.raises(ValueError, match="no name of an array"):
        records.load_array(folder, name)
    assert sorted(path.name for path in folder.parent.rglob("*")) == [
        "arrays",
        "config.json",
        "run",
    ]


def test_links_in_a_folder_are_not_written_through(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (records.METRICS, records.LOCK):
        (folder / name).symlink_to(outside / name)
    with pytest.raises(OSError, match="symbolic links"):
        records.append_metrics(folder, [{"step": 1}])
    with pytest.raises(ValueError, match="cannot be written"), records.held(folder):
        pass
    records.clear_metrics(folder)
    records.append_metrics(folder, [{"step": 1}])
    (folder / records.ARRAYS).rmdir()
    (folder / records.ARRAYS).symlink_to(outside)
    for write in (
        lambda: records.save_array(folder, "a", np.zeros(1)),
        lambda: records.open_run(folder, {"seed": 1}),
    ):
        with pytest.raises(ValueError, match="a link to another folder"):
            write()
    assert list(outside.iterdir()) == []


# Any bytes at all.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
FLIPS = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=4)


def damaged(content, flips, cut):
    content = bytearray(content)
    for where, value in flips:
        content[where % len(content)] ^= value
    return bytes(content[: len(content) - cut])


def any_json_is_read_or_refused(folder, value, flips, cut):
    text = damaged(json.dumps(value).encode(), flips, cut)
    for file, load in (
        (records.CONFIG, records.load_config),
        (records.METRICS, records.load_metrics),
        (parts.NETWORKS, parts.load_rows),
    ):
        (folder / file).write_bytes(text)
        said = refused(load, folder)
        assert said is None or str(folder / file) in said
    if refused(records.load_config, folder) is None:
        # Nothing that is read is more than JSON can say.
        json.dumps(records.load_config(folder), allow_nan=False)


def any_array_is_read_or_refused(folder, which, flips, cut):
    path = folder / records.ARRAYS / "a.npy"
    path.write_bytes(damaged(npy(ARRAYS[which]), flips, cut))
    said = refused(records.load_array, folder, "a")
    assert said is None or str(path) in said


TREE = {"x": np.arange(3.0), "y": np.zeros((2, 2), np.float32)}


def any_archive_is_read_or_refused(folder, flips, cut):
    records.save_tree(folder, "a", TREE)
    path = folder / records.ARRAYS / "a.npz"
    path.write_bytes(damaged(path.read_bytes(), flips, cut))
    said = refused(records.load_tree, folder, "a", TREE)
    assert said is None or str(path) in said


CUT = st.integers(0, 10)


@FEW
@given(JSON, FLIPS, CUT)
def test_any_json(folder, value, flips, cut):
    any_json_is_read_or_refused(folder, value, flips, cut)


@FEW
@given(st.integers(0, len(ARRAYS) - 1), FLIPS, CUT)
def test_any_array(folder, which, flips, cut):
    any_array_is_read_or_refused(folder, which, flips, cut)


@FEW
@given(FLIPS, st.integers(0, 600))
def test_any_archive(folder, flips, cut):
    any_archive_is_read_or_refused(folder, flips, cut)


@pytest.mark.slow
@MANY
@given(JSON, FLIPS, CUT)
def test_any_json_at_length(folder, value, flips, cut):
    any_json_is_read_or_refused(folder, value, flips, cut)


@pytest.mark.slow
@MANY
@given(st.integers(0, len(ARRAYS) - 1), FLIPS, CUT)
def test_any_array_at_length(folder, which, flips, cut):
    any_array_is_read_or_refused(folder, which, flips, cut)


@pytest.mark.slow
@MANY
@given(FLIPS, st.integers(0, 600))
def test_any_archive_at_length(folder, flips, cut):
    any_archive_is_read_or_refused(folder, flips, cut)
