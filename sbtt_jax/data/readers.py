"""Files as named arrays, read in blocks of rows.

A recording is large as floating-point numbers and small as counts, so an array is never held whole
as it is in the file. Nothing is unpickled. `READERS` lists the formats; to add one, write a context
manager that yields arrays by name, and a row.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.lib import format as npy

from sbtt_jax.errors import InputError

BLOCK_BYTES = 2**24


class Array:
    """One array, wherever it is stored: its shape, its dtype, and its rows in blocks.

    rows: anything with a shape and a dtype that can be sliced along its first axis.
    """

    def __init__(self, rows):
        self.shape, self.dtype = tuple(rows.shape), np.dtype(rows.dtype)
        self._rows = rows

    @property
    def is_real(self) -> bool:
        return self.dtype.kind in "iuf"

    @property
    def rows_per_block(self) -> int:
        return max(1, BLOCK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of rows with their content, first to last."""
        for rows in self._slices(self.rows_per_block):
            yield rows, self._rows[rows]

    def _slices(self, step: int) -> Iterator[slice]:
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))

    def whole(self) -> np.ndarray:
        """The whole array at once, for small ones."""
        return np.asarray(self._rows[()])


class Arrays(dict[str, Array]):
    """The arrays of a source by name; `read` has the names of those that were asked for."""

    def __init__(self, source: str, arrays: Mapping[str, Array]):
        super().__init__(arrays)
        self.source, self.read = source, set[str]()

    def __getitem__(self, key: str) -> Array:
        self.read.add(key)
        return super().__getitem__(key)

    def error(self, text: str) -> InputError:
        return InputError(f"{self.source}: {text}")

    def check(self, key: str, sound: bool, expected: str) -> None:
        """Raise InputError, saying what the array is and should be, unless it is sound."""
        if not sound:
            shape, dtype = size(self[key].shape), self[key].dtype
            raise self.error(f"{key} is {shape} of {dtype}; expected {expected}")


class _InHDF5(Array):
    def blocks(self):
        # Read whole chunks at a time: every read that touches a chunk decompresses it.
        chunk = self._rows.chunks[0] if self._rows.chunks else 1
        for many in self._slices(max(1, self.rows_per_block // chunk) * chunk):
            for rows, block in Array(self._rows[many]).blocks():
                yield slice(many.start + rows.start, many.start + rows.stop), block


class _InNPZ(Array):
    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo):
        self._archive, self._member = archive, member
        with archive.open(member) as file:
            version = npy.read_magic(file)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"{member.filename} is of format {version}; expected 1.0 or 2.0")
            self.shape, self._by_column, self.dtype = read[version](file)
            self._start = file.tell()
        self._bytes = math.prod(self.shape) * self.dtype.itemsize
        held = member.file_size - self._start
        if not self.dtype.hasobject and held != self._bytes:
            claim = f"declares {size(self.shape)} {self.dtype}, which is {self._bytes} bytes"
            raise ValueError(f"{member.filename} {claim}, and holds {held}")

    def blocks(self):
        if self._by_column:
            yield from Array(self.whole()).blocks()
            return
        with self._archive.open(self._member) as file:
            self._read(file, self._start)
            for rows in self._slices(self.rows_per_block):
                count = rows.stop - rows.start
                content = self._read(file, self._bytes // self.shape[0] * count)
                yield rows, np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])

    def whole(self):
        if self.dtype.hasobject:
            raise ValueError(f"{self._member.filename} holds Python objects, which are not loaded")
        with self._archive.open(self._member) as file:
            self._read(file, self._start)
            content = self._read(file, self._bytes)
        order = "F" if self._by_column else "C"
        return np.frombuffer(content, self.dtype).reshape(self.shape, order=order)

    def _read(self, file, count: int) -> bytes:
        content = file.read(count)
        if len(content) < count:
            raise EOFError(f"{self._member.filename} is cut short")
        return content


@contextmanager
def hdf5(path: Path) -> Iterator[Mapping[str, Array]]:
    """The arrays at the top level of an HDF5 file."""
    with h5py.File(path) as file:
        items = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
        yield {key: _InHDF5(item) for key, item in items.items() if item.shape is not None}


@contextmanager
def npz(path: Path) -> Iterator[Mapping[str, Array]]:
    """The arrays of an NPZ file."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        yield {m.filename.removesuffix(".npy"): _InNPZ(archive, m) for m in members}


class Reader(NamedTuple):
    """A row of `READERS`: whether a file is of the format, by its content, and how to open it."""

    recognizes: Callable[[Path], bool]
    open: Callable[[Path], AbstractContextManager[Mapping[str, Array]]]


READERS = {"HDF5": Reader(h5py.is_hdf5, hdf5), "NPZ": Reader(zipfile.is_zipfile, npz)}

# What a damaged file makes the libraries raise.
DAMAGE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def opened(path: str | Path) -> Iterator[Arrays]:
    """The arrays of a file by name, for as long as it is open.

    Raises InputError if it does not exist, is of no known format, or is damaged, even if that shows
    only while arrays are read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an {' or '.join(READERS)} recording")
    reader = next((reader for reader in READERS.values() if reader.recognizes(path)), None)
    if reader is None:
        raise InputError(f"{path}: neither {' nor '.join(READERS)}, or cut short")
    try:
        with reader.open(path) as arrays:
            yield Arrays(str(path), arrays)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def size(shape: tuple[int, ...]) -> str:
    """A shape in words, such as "200 x 50 x 29"."""
    return " x ".join(map(str, shape)) or "a single number"


def memory() -> int:
    """Bytes of this machine's main memory; a large number where the system does not say."""
    if not hasattr(os, "sysconf"):
        return 2**40
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
