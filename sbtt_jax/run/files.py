"""Files that appear whole or not at all, and tables in them."""

import csv
import errno
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py

from sbtt_jax.errors import SaveError

Row = Mapping[str, Any]  # a table's row: column to value


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which replaces `path` once all is on the disk.

    Raises SaveError if that fails.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with saving(path):
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn an OSError into a SaveError that names the file, or `path` if the error names none."""
    try:
        yield
    except OSError as error:
        raise SaveError(f"{error.filename or path}: {error.strerror or error}") from error


class _Sink(io.FileIO):
    """A file that keeps what the disk does not take, so that it can be read again.

    error: Why the disk did not take it.
    """

    error: OSError | None = None

    def __init__(self, path: Path, mode: str):
        super().__init__(path, mode)
        self.kept: list[tuple[int, bytes]] = []  # in the order of writing, each with its place

    def write(self, data: Any) -> int:
        start, size = self.tell(), memoryview(data).nbytes
        with self._noted():
            if self.error is None and super().write(data) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.error is not None:
            self.kept.append((start, bytes(data)))
            self.seek(start + size)
        return size

    def readinto(self, buffer: Any) -> int:
        start, view = self.tell(), memoryview(buffer).cast("B")
        size, end = view.nbytes, start + view.nbytes
        read = super().readinto(view)
        view[read:] = bytes(size - read)  # there is nothing else in a hole, or after the end
        for at, piece in self.kept:
            low, high = max(start, at), min(end, at + len(piece))
            if low < high:
                view[low - start : high - start] = piece[low - at : high - at]
        self.seek(end)
        return size

    def truncate(self, size: int | None = None) -> int:
        with self._noted():
            super().truncate(size)
        return self.tell() if size is None else size

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


@contextmanager
def hdf5(path: Path, mode: Literal["w", "r+"]) -> Iterator[h5py.File]:
    """An HDF5 file to write to. Raises OSError at the end if the disk did not take all of it.

    HDF5 itself crashes when it closes a file that it could not write, or reads other bytes than it
    wrote (of text, it does so while it writes).
    """
    with _Sink(path, {"w": "w+"}.get(mode, mode)) as sink:
        try:
            with h5py.File(sink, mode) as file:
                yield file
        finally:
            if sink.error is not None:
                raise sink.error


def check_writable(folder: Path) -> None:
    """Make the folder, with those above it; SaveError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SaveError(f"{folder}: {error.strerror or error}") from error


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """A table with a header; the columns are those of the first row unless given."""
    with atomic_write(path) as part:
        part.write_bytes(_lines([list(columns or rows[0]), *(row.values() for row in rows)]))


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    """Rows as lines of CSV; NaN, which stands for unknown, is left empty."""

    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return "" if value != value else f"{value:.6g}"

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return text.getvalue().encode()


class GrowingCSV:
    """A table that grows row by row. Rows that the disk does not take are kept and tried again.

    rows: what the table begins with.
    """

    def __init__(self, path: Path, rows: Sequence[Row], columns: Sequence[str]):
        with saving(path):
            write_csv(path, rows, columns)
            self.path, self.file = path, path.open("ab", buffering=0)
        self.waiting = b""

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows, after those that may still be waiting.

        Raises SaveError if they could not be written; they wait and leave no trace in the file.
        """
        self.waiting += _lines(row.values() for row in rows)
        size = self.file.seek(0, os.SEEK_END)
        with saving(self.path):
            try:
                if self.file.write(self.waiting) < len(self.waiting):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self.file.truncate(size)
                raise
        self.waiting = b""
