"""MATLAB files of version 5 (-v6, -v7), read without trusting them: SciPy's reader ends the process
on a damaged one.

A file is a row of elements, each of a type and a length; a matrix is an element of elements.
MathWorks, "MAT-File Format", chapter 1.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sbtt_jax.data.arrays import Array, check_bytes, check_memory

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8"}
NUMBERS |= {13: "u8", 16: "u1", 17: "u2", 18: "u4"}
COMPRESSED, UTF8 = 15, 16  # types
CELL, STRUCT, CHAR, SPARSE, OPAQUE = 1, 2, 4, 5, 17  # classes
NUMERIC = range(6, 16)  # from double to uint64
LOGICAL, COMPLEX = 1 << 9, 1 << 11  # flags


class Cells(list):
    """What is in the cells of a cell array of some shape, or in a field of a struct array, one
    column after the other."""

    def __init__(self, cells: Iterable[Any], shape: tuple[int, ...]):
        super().__init__(cells)
        self.shape = shape


def variables(path: Path) -> Iterator[tuple[str, Any]]:
    """Names and values: an array, a text, `Cells` for a cell array, a dictionary for a struct and
    one of `Cells` for a struct array, and None for anything else.

    Raises InputError if they need more than this machine's memory, and other exceptions if the file
    is damaged.
    """
    content = memoryview(np.memmap(path, np.uint8, "r"))
    order = ">" if bytes(content[126:128]) == b"MI" else "<"
    elements, needed = _Elements(content[128:], order, path), 0
    while elements.rest:
        kind, part = elements.next()
        if kind == COMPRESSED:
            unpack = zlib.decompressobj()
            head = unpack.decompress(part, 8)
            length = int(np.frombuffer(head[4:], f"{order}u4")[0])
            needed += length
            check_bytes(f"{path}: its variables are", needed)
            part = memoryview(unpack.decompress(unpack.unconsumed_tail, length + 8))
            if len(part) < length or not unpack.eof:
                raise EOFError("a compressed variable is cut short")
        name, value = _matrix(part, elements)
        if name:  # others are MATLAB's own
            yield name, value


class _Elements:
    """The elements of some bytes, one after the other; EOFError where one goes on after the end."""

    def __init__(self, content: memoryview, order: str, path: Path):
        self._content, self._at, self.order, self.path = content, 0, order, path

    @property
    def rest(self) -> int:
        return len(self._content) - self._at

    def next(self) -> tuple[int, memoryview]:
        tag = np.frombuffer(self._content[self._at : self._at + 8], f"{self.order}u4")
        kind, length = (int(number) for number in tag)
        start, step = self._at + 8, -(-length // 8) * 8
        if kind >> 16:  # both numbers are in one, and the other is the content
            kind, length, start, step = kind & 0xFFFF, kind >> 16, self._at + 4, 0
        elif kind == COMPRESSED:
            step = length
        self._at = max(start, self._at + 8) + step
        part = self._content[start : start + length]
        if len(part) < length:
            raise EOFError("cut short")
        return kind, part

    def numbers(self) -> np.ndarray:
        kind, part = self.next()
        return np.frombuffer(part, self.order + NUMBERS[kind])

    def text(self) -> str:
        return bytes(self.next()[1]).decode("latin1")

    def letters(self) -> list[str]:
        kind, part = self.next()
        if kind == UTF8:
            return list(bytes(part).decode(errors="replace"))
        return [chr(code) for code in np.frombuffer(part, self.order + NUMBERS[kind]).tolist()]


def _matrix(content: memoryview, outer: _Elements) -> tuple[str, Any]:
    """The name and the value of a matrix."""
    parts = _Elements(content, outer.order, outer.path)
    if not parts.rest:  # as the content of a cell
        return "", Array(np.empty((0, 0)))
    flags = int(parts.numbers()[0])
    kind = flags & 0xFF
    if kind == OPAQUE:
        return parts.text(), None
    shape = tuple(parts.numbers().tolist())
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"a matrix of shape {shape}")
    name = parts.text()
    known = kind in (CELL, STRUCT, CHAR, SPARSE, *NUMERIC)
    return name, _value(parts, kind, shape, flags) if known else None


def _value(parts: _Elements, kind: int, shape: tuple[int, ...], flags: int) -> Any:
    if kind == CELL:
        return Cells((_matrix(parts.next()[1], parts)[1] for _ in range(math.prod(shape))), shape)
    if kind == STRUCT:
        return _struct(parts, shape)
    if kind == CHAR:
        letters = parts.letters()
        if shape[0] < 2:
            return "".join(letters)
        rows = np.reshape(np.array(letters, "U1"), shape, order="F")
        return Array(np.array(["".join(row) for row in rows], str))
    at = [parts.numbers() for _ in range(2)] if kind == SPARSE else []
    if kind == SPARSE and flags & LOGICAL:  # whose values may be of another type than they say
        return dense(parts.path, shape, np.ones(len(at[0]), bool), *at)
    values = parts.numbers()
    if flags & COMPLEX:
        values = values + 1j * parts.numbers()
    if kind == SPARSE:
        return dense(parts.path, shape, values, *at)
    values = values.reshape(shape, order="F")
    return Array(values.astype(bool) if flags & LOGICAL else values)


def _struct(parts: _Elements, shape: tuple[int, ...]) -> dict[str, Any]:
    (length,) = parts.numbers()
    letters = parts.text()
    names = [letters[i : i + length].split("\0")[0] for i in range(0, len(letters), length)]
    if not names:
        return {}
    each = [[_matrix(parts.next()[1], parts)[1] for _ in names] for _ in range(math.prod(shape))]
    if len(each) == 1:
        return dict(zip(names, each[0], strict=True))
    return {name: Cells((one[i] for one in each), shape) for i, name in enumerate(names)}


def dense(path: Path, shape: tuple[int, ...], values: Any, rows: Any, columns: Any) -> Array:
    """A sparse matrix with all its zeros. columns: where each begins among the rows and values."""
    from scipy.sparse import csc_matrix

    check_memory(f"{path}: a sparse matrix declares", shape)
    count = int(columns[-1])
    matrix = csc_matrix((values[:count], rows[:count].astype(int), columns.astype(int)), shape)
    matrix.check_format()  # where damaged indices lead, nothing else looks
    return Array(matrix.toarray())
