"""Files, and folders of some, as named arrays, read in blocks of rows.

Nothing that a pickle names is imported or called. `READERS` lists the formats; to add one, write a
context manager that yields arrays by name, and a row.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sbtt_jax.data import labels, matlab, nwb, storage, suite2p
from sbtt_jax.data.arrays import Array, Arrays, Asked, npy_header, size
from sbtt_jax.errors import InputError


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
def hdf5(path: Path, asked: Asked) -> Iterator[Mapping[str, Array]]:
    """The arrays of an HDF5 file, by their paths, such as "session/spikes"."""
    with h5py.File(path) as file:
        yield dict(_datasets(file))


class _Texts(Array):
    """Texts of an HDF5 file."""

    def __init__(self, rows: h5py.Dataset, *said: Any):
        super().__init__(rows, *said)
        self.dtype = np.dtype(str)

    def whole(self):
        return np.array(self._rows.asstr(errors="replace")[()], str)


class _Named(Array):
    """An enumeration of an HDF5 file: its names, and in blocks, as masks are read, its numbers."""

    def whole(self):
        names = {number: name for name, number in h5py.check_enum_dtype(self.dtype).items()}
        values = self._rows[()]
        texts = [names.get(one, str(one)) for one in values.ravel().tolist()]
        return np.array(texts, str).reshape(values.shape)


def _datasets(
    group: h5py.Group, prefix: str = "", above: tuple[h5py.Group, ...] = ()
) -> Iterator[tuple[str, Array]]:
    said, above = labels.plain(group.attrs), (*above, group)
    if "OCTAVE_NEW_FORMAT" in said:
        raise ValueError(f"{prefix[:-1]} is as Octave writes HDF5, axes reversed; save it with -v7")
    if "bin_width" in said:
        units = {"units": said.get("bin_width_unit", said.get("bin_width_units"))}
        yield f"{prefix}bin_width", Array(np.asarray(said["bin_width"]), units)
    for key, item in group.items():
        if item is None:
            raise ValueError(f"{prefix}{key} is a link to what is not there; mend or remove it")
        if isinstance(item, h5py.Group) and item not in above:
            yield from _datasets(item, f"{prefix}{key}/", above)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            array = _array(item)
            if key == "bin_width" and key in said:
                array.unfit = array.unfit or _other_width(said[key], units, array)
            yield prefix + key, array


def _other_width(said: Any, units: Mapping[str, Any], array: Array) -> str | None:
    """What is wrong if an attribute and an array of that name differ; None if they do not."""
    one, other = (
        Arrays("", {"bin_width": width}) for width in (Array(np.asarray(said), units), array)
    )
    with suppress(InputError):  # what is no width is refused where it is needed
        one, other = labels.bin_width(one), labels.bin_width(other)
        if not labels.same_width(one, other):
            return f"is {other:g} s, and the attribute of that name is {one:g} s; leave one out"
    return None


def _array(item: h5py.Dataset) -> Array:
    kind = Array
    if h5py.check_string_dtype(item.dtype) is not None:
        kind = _Texts
    elif h5py.check_enum_dtype(item.dtype) is not None:
        kind = _Named
    says = labels.plain(item.attrs)
    if (fill := storage.fill(item)) is not None:
        says.setdefault(labels.FILLS[0], fill)
    array = kind(item, says, _axes(item, says))
    array.unfit = storage.lacking(item)
    if "axes" in says and _names(says["axes"]) is None:
        rule = "expected their names, such as trial, bin, neuron"
        array.unfit = f"its attribute axes is {says['axes']}; {rule}"
    return array


def _axes(item: h5py.Dataset, says: Mapping[str, Any]) -> list[str] | None:
    """Names of the axes: labels, names of dimension scales, or an attribute that has them."""
    for name in "axes", "dims", "_ARRAY_DIMENSIONS":
        if name in says and (names := _names(says[name])) is not None:
            return names
    if not {"DIMENSION_LABELS", "DIMENSION_LIST"} & item.attrs.keys():
        return None
    names = [axis.label or (axis[0].name.split("/")[-1] if len(axis) else "") for axis in item.dims]
    return names if any(names) else None


def _names(said: Any) -> list[str] | None:
    """Names in one text or a list of texts; None if it is something else."""
    texts = labels.texts(said)
    if texts.dtype.kind != "U":
        return None
    if texts.ndim:
        return [text.strip() for text in texts.ravel().tolist()]
    return re.findall(r"[^\s,;()\[\]'\"]+", texts.item())


@contextmanager
def npz(path: Path, asked: Asked) -> Iterator[Mapping[str, Array]]:
    """The arrays of an NPZ file."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        yield {m.filename.removesuffix(".npy"): _InNPZ(archive, m) for m in members}


class Reader(NamedTuple):
    """A row of `READERS`: whether a file, or a folder, is of the format, by its content, and how
    to open it."""

    recognizes: Callable[[Path], bool]
    open: Callable[[Path, Asked], AbstractContextManager[Mapping[str, Array]]]
    answers: tuple[str, ...] = ()  # what it can be asked beside what all can


# The first that recognizes a file reads it. NWB and newer MATLAB files are HDF5 files too.
READERS = {
    "NWB": Reader(nwb.recognizes, nwb.nwb, ("align", "window", "units")),
    "MATLAB": Reader(matlab.recognizes, matlab.matlab),
    "HDF5": Reader(h5py.is_hdf5, hdf5),
    "NPZ": Reader(zipfile.is_zipfile, npz),
    "Suite2p": Reader(suite2p.recognizes, suite2p.suite2p),
}
FORMATS = ", ".join(list(READERS)[:-1]) + f" or {list(READERS)[-1]}"


def _plane(*folders: Path) -> str:
    """What to give instead if one of these folders is of Suite2p."""
    found = next((one for one in folders if suite2p.recognizes(one)), None)
    return "" if found is None else f"; of Suite2p, give the folder of a plane, {found}"


# What a damaged file makes the libraries raise while arrays are read; while it is opened, anything.
DAMAGE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def opened(path: str | Path, asked: Asked | None = None) -> Iterator[Arrays]:
    """The arrays of a file, or a folder that is a recording, by name, for as long as it is open.

    Raises InputError if it does not exist, is of no known format, is damaged, even if that shows
    only while arrays are read, or cannot have what is asked of it.
    """
    path, asked = Path(path), asked or Asked()
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: no such file; give an {FORMATS} recording")
    expected: tuple[type[Exception], ...] = (Exception,)
    try:
        name = next((name for name, reader in READERS.items() if reader.recognizes(path)), None)
        if name is None and path.is_dir():
            remedy = _plane(*sorted(path.glob("plane*")), *sorted(path.glob("suite2p/plane*")))
            raise InputError(f"{path}: a folder; give an {FORMATS} recording{remedy}")
        if name is None:
            with path.open("rb") as file:
                is_old = file.read(3) == b"CDF"
            if is_old:
                remedy = "write it as netCDF-4, as by to_netcdf(..., engine='h5netcdf')"
                raise InputError(f"{path}: is netCDF-3, which is not read; {remedy}")
            remedy = ""
            if path.suffix in (".npy", ".csv", ".txt"):
                remedy = "; an array is written by numpy.savez(FILE, spikes=array)"
            remedy = _plane(path.parent) or remedy
            raise InputError(f"{path}: neither {' nor '.join(READERS)}, or cut short{remedy}")
        for other, reader in READERS.items():
            for option in reader.answers:
                if getattr(asked, option) is not None and option not in READERS[name].answers:
                    rule = f"data.{option} is for {other} files, and this is {name}"
                    raise InputError(f"{path}: {rule}")
        with READERS[name].open(path, asked) as arrays:
            expected = DAMAGE  # beyond the libraries, others are bugs
            yield Arrays(str(path), arrays, asked.notes)
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, expected):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}") from None
