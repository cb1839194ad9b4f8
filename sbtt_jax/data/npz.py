"""NPZ files as named arrays, read in blocks of rows, and the headers of NPY files."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from sbtt_jax.data.arrays import Array, Asked, size


class _InNPZ(Array):
    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo):
        self._archive, self._member = archive, member
        with archive.open(member) as file:
            self.shape, self._by_column, self.dtype = npy_header(file, member.filename)
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
def npz(path: Path, asked: Asked) -> Iterator[Mapping[str, Array]]:
    """The arrays of an NPZ file."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        yield {m.filename.removesuffix(".npy"): _InNPZ(archive, m) for m in members}


def npy_header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype of an NPY file that is open at its beginning.

    Raises ValueError, naming the file, if it is of another version than 1.0 and 2.0.
    """
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"{name} is of format {version}; expected 1.0 or 2.0")
    return read[version](file)
