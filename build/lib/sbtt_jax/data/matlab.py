"""MATLAB files as named arrays, with their axes as MATLAB shows them.

Version 7.3 files are HDF5 files in which all axes are reversed; older ones are read by SciPy. A
cell array of matrices is a list of trials; fields of structs are named as in "session/spikes".
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data import trials
from sbtt_jax.data.arrays import Array
from sbtt_jax.errors import InputError

CLASS = "MATLAB_class"


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
    """The arrays of a MATLAB file; `asked.notes` tells how cell arrays were taken."""
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            variables = {key: item for key, item in file.items() if key != "#refs#"}
            yield _arrays(path, dict(_in_hdf5(file, variables)), asked.notes)
    else:
        yield _arrays(path, dict(_in_memory(_loaded(path))), asked.notes)


def _loaded(path: Path) -> dict[str, Any]:
    """The variables of an older file; ValueError if it is damaged."""
    from scipy.io import loadmat

    try:
        variables = loadmat(path, struct_as_record=True, chars_as_strings=True)
    except Exception as error:  # SciPy raises almost anything on a damaged file
        raise ValueError(str(error) or type(error).__name__) from None
    return {key: value for key, value in variables.items() if not key.startswith("__")}


def _in_hdf5(file: h5py.File, items: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
    for key, item in items.items():
        if isinstance(item, h5py.Group):
            yield from _in_hdf5(file, item, f"{prefix}{key}/")
        elif item.attrs.get("MATLAB_empty", 0):
            continue
        elif h5py.check_ref_dtype(item.dtype):  # a cell array, or a field of a struct array
            cells = [_value(file[reference]) for reference in np.ravel(item[()])]
            yield prefix + key, cells
        elif item.attrs.get(CLASS) == b"char":
            yield prefix + key, _value(item)
        else:
            kind = {} if item.attrs.get(CLASS) != b"logical" else {"dtype": np.dtype(bool)}
            array = Array(item).transposed(range(item.ndim)[::-1])
            array.dtype = kind.get("dtype", array.dtype)
            yield prefix + key, array


def _value(item: Any) -> Any:
    """A cell's content: an array, or a text."""
    if not isinstance(item, h5py.Dataset) or h5py.check_ref_dtype(item.dtype):
        raise ValueError("a cell holds cells or structs; expected matrices or texts")
    if item.attrs.get(CLASS) == b"char":
        return "".join(map(chr, np.ravel(item[()])))
    return item[()].T


def _in_memory(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
    for key, value in values.items():
        if hasattr(value, "toarray"):  # sparse
            value = value.toarray()
        if not isinstance(value, np.ndarray):
            continue
        if value.dtype.names and value.size == 1:
            fields = {name: value[name].flat[0] for name in value.dtype.names}
            yield from _in_memory(fields, f"{prefix}{key}/")
        elif value.dtype.names:  # a struct array: each field is a list
            for name in value.dtype.names:
                yield f"{prefix}{key}/{name}", list(value[name].ravel(order="F"))
        elif value.dtype == object:
            yield prefix + key, [_text(cell) for cell in value.ravel(order="F")]
        elif value.size:
            yield prefix + key, Array(value)


def _text(cell: Any) -> Any:
    is_text = isinstance(cell, np.ndarray) and cell.dtype.kind == "U" and cell.size == 1
    return str(cell.item()) if is_text else cell


def _arrays(path: Path, found: Mapping[str, Any], notes: list[str]) -> dict[str, Array]:
    """Lists of texts as one array; lists of matrices as one array of trials, and its mask."""
    arrays = {}
    for key, value in found.items():
        if isinstance(value, str):
            arrays[key] = Array(np.array([value]))
        elif not isinstance(value, list):
            arrays[key] = value
        elif all(isinstance(cell, str) for cell in value):
            arrays[key] = Array(np.array(value))
        elif all(isinstance(cell, np.ndarray) and cell.size == 1 for cell in value):
            arrays[key] = Array(np.array([cell.item() for cell in value]))
        elif all(isinstance(cell, np.ndarray) and cell.ndim == 2 for cell in value):
            turned, note = trials.bins_first(value)
            notes.append(f"{key}: each cell is taken as {note}")
            try:
                stacked, mask = trials.stack(turned)
            except ValueError as error:
                raise InputError(f"{path}: {key}: {error}") from None
            arrays[key] = Array(stacked)
            if not mask.all():
                arrays[f"{key}_mask"] = Array(mask)
    return arrays
