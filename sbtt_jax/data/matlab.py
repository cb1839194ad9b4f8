"""MATLAB files as named arrays, with their axes as MATLAB shows them.

Version 7.3 files are HDF5 files in which all axes are reversed; `mat5` reads older ones. A cell
array of matrices is a list of trials; fields of structs are named as in "session/spikes".
What has no such meaning, as an object of a class, is refused where it is needed.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data import labels, mat5, trials
from sbtt_jax.data.arrays import Array

CLASS = "MATLAB_class"
OTHER = "an object, or structs or cells in cells; expected matrices or texts (as of cellstr)"
TIMES = "its cells hold rising numbers, as times of spikes; count them first (sbtt_jax.bin_spikes)"


def recognizes(path: Path) -> bool:
    """Whether a file is one, of version 5 or newer: by its first words, or the class of a variable
    in a file without them."""
    if not path.is_file():
        return False
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
        yield _arrays(dict(_flat(dict(mat5.variables(path)))))


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
        nothing = np.zeros(0, int)
        parts = [item[name][()] if name in item else nothing for name in ("data", "ir", "jc")]
        shape = int(item.attrs["MATLAB_sparse"]), len(parts[2]) - 1
        return mat5.dense(path, shape, *parts)
    is_plain = isinstance(item, h5py.Dataset) and not h5py.check_ref_dtype(item.dtype)
    if "MATLAB_object_decode" in item.attrs or not is_plain:
        return None
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == b"char" else Array(np.empty(item[()].astype(int)))
    if kind == b"char":
        rows = ["".join(map(chr, row)) for row in item[()].T]
        return rows[0] if len(rows) == 1 else Array(np.array(rows))
    array = Array(item, labels.plain(item.attrs)).transposed(range(item.ndim)[::-1])
    array.dtype = np.dtype(bool) if kind == b"logical" else array.dtype
    return array


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


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
            made[key] = value if isinstance(value, Array) else _unfit(OTHER)
    return {key: array for key, array in made.items() if 0 not in array.shape}


def _rise(cells: list[Array]) -> bool:
    """Whether all are vectors of rising numbers, such as times of spikes; counts fall again."""
    if any(min(cell.shape) > 1 for cell in cells):
        return False
    some = [cell.whole().ravel().astype(float) for cell in cells if cell.is_real]
    return sum(map(len, some)) > len(cells) and all((np.diff(one) > 0).all() for one in some)


def _of_cells(cells: list[Any], *, mask: bool) -> Array:
    """Numbers as one array; matrices as the trials of one."""
    if any(not isinstance(cell, Array) or cell.unfit for cell in cells):
        return _unfit(OTHER)
    if all(math.prod(cell.shape) == 1 for cell in cells):
        return Array(np.array([cell.whole().item() for cell in cells]))
    if any(len(cell.shape) != 2 for cell in cells):
        return _unfit("its cells hold arrays of three axes; expected a matrix for each trial")
    if _rise(cells):
        return _unfit(TIMES)
    turned, how = trials.bins_first(cells)
    try:
        array = Array(trials.Padded(turned, mask=mask))
    except ValueError as error:
        return _unfit(str(error))
    array.note = f"each cell is taken as {how}"
    return array
