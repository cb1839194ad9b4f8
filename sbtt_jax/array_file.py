"""HDF5 and NPZ files as arrays by name, read in blocks of rows.

A recording is large as floating-point numbers and small as counts, so a whole array is never held
as it stands in the file. Nothing here is unpickled.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.lib import format as npy

from sbtt_jax.errors import InputError

# Bytes of a block as it stands in the file.
BLOCK_SIZE = 2**24


class Array:
    """One array, wherever it lies: its shape, its type, and its rows in blocks.

    `rows` is anything with a shape and a dtype that is sliced along its first axis, such as a
    NumPy array.
    """

    def __init__(self, rows):
        self.shape, self.dtype = tuple(rows.shape), np.dtype(rows.dtype)
        self._rows = rows

    @property
    def row_bytes(self) -> int:
        return max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Which rows, and the rows themselves, from first to last; a scalar has none."""
        step = max(1, BLOCK_SIZE // self.row_bytes)
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            yield rows, self._rows[rows]

    def whole(self) -> np.ndarray:
        """The array at once, for one that is small."""
        return np.asarray(self._rows[()])


class _InHDF5(Array):
    def blocks(self):
        # In steps of whole chunks: a chunk is decompressed for every read that touches it.
        chunk = self._rows.chunks[0] if self._rows.chunks else 1
        step = max(1, BLOCK_SIZE // self.row_bytes // chunk) * chunk
        for start in range(0, self.shape[0], step):
            for rows, block in Array(self._rows[start : start + step]).blocks():
                yield slice(start + rows.start, start + rows.stop), block


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
        declared = math.prod(self.shape) * self.dtype.itemsize
        held = member.file_size - self._start
        if not self.dtype.hasobject and declared != held:
            size = " x ".join(map(str, self.shape))
            raise ValueError(
                f"{member.filename} declares {size} {self.dtype}, which is {declared} bytes, and "
                f"holds {held}"
            )

    def blocks(self):
        if self._by_column:
            yield from Array(self.whole()).blocks()
            return
        step = max(1, BLOCK_SIZE // self.row_bytes)
        with self._archive.open(self._member) as file:
            self._read(file, self._start)
            for start in range(0, self.shape[0], step):
                stop = min(start + step, self.shape[0])
                size = (stop - start) * math.prod(self.shape[1:]) * self.dtype.itemsize
                block = np.frombuffer(self._read(file, size), self.dtype)
                yield slice(start, stop), block.reshape(stop - start, *self.shape[1:])

    def whole(self):
        if self.dtype.hasobject:
            raise ValueError(
                f"{self._member.filename} holds Python objects, which are never loaded"
            )
        with self._archive.open(self._member) as file:
            self._read(file, self._start)
            content = self._read(file, math.prod(self.shape) * self.dtype.itemsize)
        order = "F" if self._by_column else "C"
        return np.frombuffer(content, self.dtype).reshape(self.shape, order=order)

    def _read(self, file, size: int) -> bytes:
        content = file.read(size)
        if len(content) < size:
            raise EOFError(f"{self._member.filename} is cut short")
        return content


@contextmanager
def opened(path: str | Path) -> Iterator[Mapping[str, Array]]:
    """The arrays at the top level of an HDF5 or NPZ file by name, as long as the file is open.

    Raises:
      InputError: the file is not there, is neither, is cut short or cannot be read; also where
        that shows only while its arrays are read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an HDF5 or NPZ recording")
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                items = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
                yield {key: _InHDF5(item) for key, item in items.items() if item.shape is not None}
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield {
                    member.filename.removesuffix(".npy"): _InNPZ(archive, member)
                    for member in archive.infolist()
                    if member.filename.endswith(".npy")
                }
        else:
            raise InputError(f"{path}: neither HDF5 nor NPZ, or cut short")
    except InputError:
        raise
    except (
        OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def memory() -> int:
    """Bytes of this machine's main memory; where the system does not tell, a great many."""
    if not hasattr(os, "sysconf"):
        return 2**40
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
