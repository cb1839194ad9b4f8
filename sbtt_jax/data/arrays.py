"""Arrays by name, wherever they are stored, with what their source says about them.

A recording is large as floating-point numbers and small as counts, so an array is never held whole
as it is in a file, but read in blocks of rows.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sbtt_jax.errors import InputError

BLOCK_BYTES = 2**24
ASSUMED_BIN_WIDTH = 0.02  # seconds, where neither the source nor the user says it


class Array:
    """One array, wherever it is stored: its shape, its dtype, and its rows in blocks.

    rows: anything with a shape and a dtype that can be sliced along its first axis.
    says: what the source says about it, by name, such as units or a fill value.
    axes: names of its axes, if the source gives them.
    note: what is assumed in reading it, in words. unfit: why it cannot be read, if it cannot.
    """

    says: Mapping[str, Any] = {}
    axes: tuple[str, ...] | None = None
    note: str | None = None
    unfit: str | None = None

    def __init__(
        self, rows: Any, says: Mapping[str, Any] | None = None, axes: Sequence[str] | None = None
    ):
        self.shape, self.dtype = tuple(rows.shape), np.dtype(rows.dtype)
        self._rows, self.says = rows, says or {}
        self.axes = None if axes is None else tuple(axes)

    @property
    def kind(self) -> str:
        """What it is of, in words: its dtype, or text."""
        return "text" if self.dtype.kind in "SU" else str(self.dtype)

    @property
    def is_real(self) -> bool:
        return self.dtype.kind in "biuf"

    @property
    def rows_per_block(self) -> int:
        return max(1, BLOCK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of rows with their content, first to last."""
        # Read whole chunks at a time: every read that touches a chunk decompresses it.
        chunk = (getattr(self._rows, "chunks", None) or (1,))[0]
        step = self.rows_per_block
        for many in self._slices(max(1, step // chunk) * chunk):
            block = self._rows[many]
            for start in range(0, many.stop - many.start, step):
                rows = slice(start + many.start, min(start + many.start + step, many.stop))
                yield rows, block[start : start + step]

    def _slices(self, step: int) -> Iterator[slice]:
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))

    def whole(self) -> np.ndarray:
        """The whole array at once, for small ones."""
        return np.asarray(self._rows[()])

    def transposed(self, order: Sequence[int]) -> "Array":
        """The array with its axes in another order, still read in blocks."""
        if tuple(order) == tuple(range(len(self.shape))):
            return self
        axes = None if self.axes is None else [self.axes[axis] for axis in order]
        return Array(_Transposed(self, order), self.says, axes)

    def along(self, axis: int, index: slice) -> np.ndarray:
        """A slice along one axis."""
        return np.asarray(self._rows[(*[slice(None)] * axis, index)])


class _Transposed:
    """Rows along another axis of an array."""

    def __init__(self, array: Array, order: Sequence[int]):
        self._array, self._order = array, tuple(order)
        self.shape, self.dtype = tuple(array.shape[axis] for axis in order), array.dtype
        chunks = getattr(array._rows, "chunks", None)
        self.chunks = chunks and tuple(chunks[axis] for axis in order)

    def __getitem__(self, index: Any) -> np.ndarray:
        if not isinstance(index, slice):
            return self._array.whole().transpose(self._order)[index]
        return self._array.along(self._order[0], index).transpose(self._order)


class Arrays(dict):  # str: Array; type checkers would ask for items
    """The arrays of a source by name; `read` has the names of those that were asked for.

    notes: what was assumed in reading them, one sentence each.

    Raises InputError where an array is asked for that cannot be read.
    """

    def __init__(self, source: str, arrays: Mapping[str, Array], notes: Sequence[str] = ()):
        super().__init__(arrays)
        self.source, self.read, self.notes = source, set[str](), list(notes)

    def __getitem__(self, key: str) -> Array:
        self.read.add(key)
        array = super().__getitem__(key)
        if array.unfit:
            raise self.error(f"{key}: {array.unfit}")
        if array.note and (note := f"{key}: {array.note}") not in self.notes:
            self.notes.append(note)
        return array

    def error(self, text: str) -> InputError:
        return InputError(f"{self.source}: {' '.join(text.split())}")  # one line

    def check(self, key: str, sound: bool, expected: str) -> None:
        """Raise InputError, saying what the array is and should be, unless it is sound."""
        if not sound:
            array = self[key]
            raise self.error(f"{key} is {size(array.shape)} of {array.kind}; expected {expected}")


@dataclass
class Asked:
    """What a user asks of a file; the settings of the same names, `config.DataSettings`.

    notes: what a reader assumed, one sentence each; readers add to it, and to columns.
    """

    bin_width: float | None = None  # seconds; None: `ASSUMED_BIN_WIDTH`
    align: str | None = None  # the column of the trials table that is time 0; None: start_time
    window: tuple[float, float] | None = None  # seconds around it; None: from start to stop_time
    condition: str | None = None  # a column of the trials table, or an array
    units: str | None = None  # which to keep, as COLUMN=VALUE, and several separated by commas
    chop: float | None = None  # seconds; if given, trials are ignored
    notes: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)  # of the tables that a file has

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Asked":
        """What is asked of a file, among settings by their names."""
        return cls(**{name: settings[name] for name in cls.__annotations__ if name in settings})


def size(shape: Sequence[int]) -> str:
    """A shape in words, such as "200 x 50 x 29"."""
    return " x ".join(map(str, shape)) or "a single number"


def check_memory(claim: str, shape: Sequence[int]) -> None:
    """Refuse counts that would not fit, before any of them is allocated."""
    needed = 2 * math.prod(shape)  # at least one byte for the count and one for the mask
    check_bytes(f"{claim} {size(shape)} counts,", needed, " as small integers")


def check_bytes(claim: str, needed: int, kind: str = "") -> None:
    """Raise InputError if so many bytes exceed this machine's memory."""
    if needed > memory():
        needs, has = (f"{number / 2**30:.0f} GiB" for number in (needed, memory()))
        raise InputError(f"{claim} {needs}{kind}; this machine's memory is {has}")


def memory() -> int:
    """Bytes of this machine's main memory; a large number where the system does not say."""
    if not hasattr(os, "sysconf"):
        return 2**40
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
