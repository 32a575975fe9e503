"""NumPy's .npy and .npz files as NumPy writes them for plain numbers, and no other.

An array's header is matched against the one form that `numpy.save` writes, so nothing in it is
evaluated: no Python objects, no structured types, no shape that the bytes after it do not fill.
Entries of a .npz are stored as they are, which is what `numpy.savez` does: one that is compressed
could unpack to any size, and is refused.
"""

import contextlib
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rnn_jax.io.reading import opened, read_bytes, shown

MAX_BYTES = 2**33
PREFIX = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18},)?|\d{1,18}(?:, \d{1,18})+)\), \} *\n"
)

Shapes = Mapping[str, tuple[int, ...]]


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        ValueError: there is no such file, it is too large, or not a whole array of plain numbers.
    """
    return _array(read_bytes(path, MAX_BYTES), str(path))


def read_npz(path: str | Path, wanted: Shapes | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by name.

    Args:
        path: the file.
        wanted: name -> shape of the arrays to read, in this order; all that are there unless given.

    Raises:
        ValueError: there is no such file, it is too large, not a whole archive of whole arrays of
            plain numbers, or compressed; an array that is wanted is missing or of another shape,
            and the message names the first such array.
    """
    arrays = {}
    with opened(path, MAX_BYTES) as file:
        with _zip_errors(path):
            archive = zipfile.ZipFile(file)
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        # Entries that overlap would unpack to more than the file holds.
        if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path} unpacks to more than it holds; save it with numpy.savez")
        for name in entries if wanted is None else wanted:
            if name not in entries:
                raise _misfit(path, name, "missing", wanted)
            if entries[name].compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{path}, {shown(name)} is compressed; save it with numpy.savez")
            with _zip_errors(path):
                content = archive.read(entries[name])
            arrays[name] = _array(content, f"{path}, {shown(name)}")
            if wanted is not None and arrays[name].shape != wanted[name]:
                raise _misfit(path, name, arrays[name].shape, wanted)
    return arrays


def _misfit(path: str | Path, name: str, found: object, wanted: Shapes | None) -> ValueError:
    assert wanted is not None
    return ValueError(f"{path}: {name} is {found}, but {wanted[name]} is wanted")


@contextlib.contextmanager
def _zip_errors(path: str | Path) -> Iterator[None]:
    """What `zipfile` may raise over bytes that are no archive, as one error."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        struct.error,
        ArithmeticError,
        EOFError,
        LookupError,
        NotImplementedError,  # of a newer format
        OSError,  # a place before the beginning
        RuntimeError,  # encrypted
        ValueError,
    ) as error:
        raise ValueError(f"{path} is no archive of arrays: {error}") from None


def _array(content: bytes, where: str) -> np.ndarray:
    """The array that the bytes of a .npy file are."""
    body = len(PREFIX) + 2
    if not content.startswith(PREFIX) or len(content) < body:
        raise ValueError(f"{where} is no array as numpy.save writes it (.npy, version 1.0)")
    start = body + int.from_bytes(content[body - 2 : body], "little")
    header = HEADER.fullmatch(content[body:start])
    if header is None:
        raise ValueError(
            f"{where} is no array of plain numbers: its header is "
            f"{shown(content[body:start].decode('latin-1'))}"
        )
    name, fortran, axes = (text.decode() for text in header.groups())
    shape = tuple(int(size) for size in axes.split(",") if size)
    try:
        dtype = np.dtype(name)
        # By Python's numbers: NumPy's would overflow, and 0 elements fit any shape.
        if dtype.itemsize * math.prod(shape) != len(content) - start:
            raise ValueError(f"{shape} is not the shape of the bytes after its header")
        flat = np.frombuffer(content, dtype, offset=start)
        return flat.reshape(shape, order="F" if fortran == "True" else "C").copy(order="K")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is no whole array of numbers: {error}") from None
