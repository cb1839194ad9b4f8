"""MATLAB files as named arrays, with their axes as MATLAB shows them.

Version 7.3 files are HDF5 files in which all axes are reversed; older ones are read by SciPy. A
cell array of matrices is a list of trials; fields of structs are named as in "session/spikes".
What has no such meaning, as an object of a class, is refused where it is needed.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data import labels, trials
from sbtt_jax.data.arrays import Array
from sbtt_jax.data.dataset import check_memory, memory
from sbtt_jax.errors import InputError

CLASS = "MATLAB_class"
COMPRESSED = 15  # the type of an element of an older file
OTHER = "an object, or structs or cells in cells; expected matrices or texts (as of cellstr)"


def recognizes(path: Path) -> bool:
    """Whether a file is one, of version 5 or newer: by its first words, or the class of a variable
    in a file without them."""
    with path.open("rb") as file:
        if file.read(7) == b"MATLAB ":
            return True
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return any(item is not None and CLASS in item.attrs for item in file.values())


@contextmanager
def matlab(path: Path, asked: Any) -> Iterator[Mapping[str, Array]]:
    """The arrays of a MATLAB file."""
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            variables = {key: item for key, item in file.items() if not key.startswith("#")}
            yield _arrays(dict(_in_hdf5(path, variables)))
    else:
        yield _arrays(dict(_in_memory(path, _loaded(path))))


def _loaded(path: Path) -> dict[str, Any]:
    """The variables of an older file; ValueError if it is damaged."""
    from scipy.io import loadmat

    if (declared := sum(_declared(path))) > memory():
        needs, has = (f"{number / 2**30:.0f} GiB" for number in (declared, memory()))
        raise InputError(f"{path}: its variables are {needs}; this machine's memory is {has}")
    try:
        variables = loadmat(path, chars_as_strings=True)
    except Exception as error:  # SciPy raises almost anything on a damaged file
        raise ValueError(str(error) or type(error).__name__) from None
    return {key: value for key, value in variables.items() if not key.startswith("__")}


def _declared(path: Path) -> Iterator[int]:
    """Bytes of each variable of an older file, unpacked, as its header has them."""
    with path.open("rb") as file:
        header = file.read(128)
        order = ">" if header[126:128] == b"MI" else "<"
        while len(tag := file.read(8)) == 8:
            kind, length = np.frombuffer(tag, f"{order}u4").tolist()
            start = file.tell()
            if kind == COMPRESSED:
                inner = zlib.decompressobj().decompress(file.read(min(length, 64)), 8)
                yield from np.frombuffer(inner[4:8], f"{order}u4").tolist()
            else:
                yield length
            file.seek(start + length)


def _in_hdf5(path: Path, items: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
    for key, item in items.items():
        if item is None:
            raise ValueError(f"{prefix}{key} is a link to what is not there; mend or remove it")
        is_sparse = "MATLAB_sparse" in item.attrs
        if isinstance(item, h5py.Group) and CLASS in item.attrs and not is_sparse:
            yield from _in_hdf5(path, item, f"{prefix}{key}/")
        elif h5py.check_ref_dtype(getattr(item, "dtype", None) or np.dtype(int)):
            # A cell array, or a field of a struct array.
            cells = [item.file[reference] for reference in np.ravel(item[()])]
            yield prefix + key, [_value(path, cell) for cell in cells]
        else:
            yield prefix + key, _value(path, item)


def _value(path: Path, item: Any) -> Any:
    """A text, or an array."""
    kind = item.attrs.get(CLASS, b"")
    if "MATLAB_sparse" in item.attrs:
        from scipy.sparse import csc_matrix

        parts = [item[name][()] if name in item else [] for name in ("data", "ir", "jc")]
        shape = int(item.attrs["MATLAB_sparse"]), len(parts[2]) - 1
        return _dense(path, csc_matrix(tuple(parts), shape))
    is_plain = isinstance(item, h5py.Dataset) and not h5py.check_ref_dtype(item.dtype)
    if "MATLAB_object_decode" in item.attrs or not is_plain:
        return _unfit(OTHER)
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == b"char" else Array(np.empty(item[()].astype(int)))
    if kind == b"char":
        rows = ["".join(map(chr, row)) for row in item[()].T]
        return rows[0] if len(rows) == 1 else Array(np.array(rows))
    array = Array(item, labels.plain(item.attrs)).transposed(range(item.ndim)[::-1])
    array.dtype = np.dtype(bool) if kind == b"logical" else array.dtype
    return array


def _in_memory(path: Path, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
    from scipy.io.matlab import MatlabFunction, MatlabOpaque

    for key, value in values.items():
        names = getattr(getattr(value, "dtype", None), "names", None)
        if isinstance(value, MatlabFunction | MatlabOpaque):
            yield prefix + key, _unfit(OTHER)
        elif names and value.size == 1:
            fields = {name: value[name].flat[0] for name in names}
            yield from _in_memory(path, fields, f"{prefix}{key}/")
        elif names:  # a struct array: each field is a list
            for name in names:
                cells = value[name].ravel(order="F")
                yield f"{prefix}{key}/{name}", [_cell(path, cell) for cell in cells]
        elif isinstance(value, np.ndarray) and value.dtype.hasobject:
            yield prefix + key, [_cell(path, cell) for cell in value.ravel(order="F")]
        else:
            yield prefix + key, _cell(path, value)


def _cell(path: Path, value: Any) -> Any:
    """A text, or an array."""
    if hasattr(value, "toarray"):
        return _dense(path, value)
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        return _unfit(OTHER)
    if value.dtype.kind == "U" and value.size < 2:
        return str(value.item()) if value.size else ""
    return Array(value)


def _dense(path: Path, sparse: Any) -> Array:
    check_memory(f"{path}: a sparse matrix declares", sparse.shape)
    return Array(sparse.toarray())


def _unfit(why: str) -> Array:
    array = Array(np.empty(1, object))
    array.unfit = why
    return array


def _arrays(found: Mapping[str, Any]) -> dict[str, Array]:
    """Texts, and lists of texts, numbers or matrices, each as one array. Empty arrays are left out,
    as MATLAB has them where there is nothing."""
    made = {}
    for key, value in found.items():
        given = value if isinstance(value, list) else [value]
        if all(isinstance(cell, str) for cell in given):
            made[key] = Array(np.array(given, str))
        elif isinstance(value, list):
            made[key] = _of_cells(value, mask=key.endswith("mask"))
        else:
            made[key] = value
    return {key: array for key, array in made.items() if 0 not in array.shape}


def _of_cells(cells: list[Any], *, mask: bool) -> Array:
    """Numbers as one array; matrices as the trials of one."""
    if any(isinstance(cell, str) or cell.unfit for cell in cells):
        return _unfit(OTHER)
    if all(math.prod(cell.shape) == 1 for cell in cells):
        return Array(np.array([cell.whole().item() for cell in cells]))
    if any(len(cell.shape) != 2 for cell in cells):
        return _unfit("its cells hold arrays of three axes; expected a matrix for each trial")
    turned, how = trials.bins_first(cells)
    try:
        array = Array(trials.Padded(turned, mask=mask))
    except ValueError as error:
        return _unfit(str(error))
    array.note = f"each cell is taken as {how}"
    return array
