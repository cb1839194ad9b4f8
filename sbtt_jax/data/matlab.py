"""MATLAB files as named arrays, with their axes as MATLAB shows them.

Version 7.3 files are HDF5 files in which all axes are reversed; `mat5` reads older ones. A cell
array of matrices is a list of trials, one of vectors is trial x neuron; fields of structs are
named as in "session/spikes". What has no such meaning, as an object of a class, is refused where it
is needed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data import labels, mat5, padding
from sbtt_jax.data.arrays import Array, size

CLASS = "MATLAB_class"
OTHER = "an object, or structs or cells in cells; expected matrices or texts (as of cellstr)"
TIMES = "its cells hold rising numbers, as times of spikes; count them first (sbtt_jax.bin_spikes)"
ROWS = "its cells hold rows of numbers, as long as each other, of trials, bins or neurons; "
ROWS += "expected a matrix for each trial, bin x neuron"


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
            yield prefix + key, mat5.Cells((_value(path, cell) for cell in cells), item.shape[::-1])
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
    """Texts, and cells of texts, numbers, vectors or matrices, each as one array. Empty arrays are
    left out, as MATLAB has them where there is nothing."""
    made = {}
    for key, value in found.items():
        if isinstance(value, mat5.Cells):
            made[key] = _of_cells(value, mask=key.endswith("mask"))
        elif isinstance(value, str):
            made[key] = Array(np.array([value]))
        else:
            made[key] = value if isinstance(value, Array) else _unfit(OTHER)
    return {key: array for key, array in made.items() if 0 not in array.shape}


def _of_cells(cells: mat5.Cells, *, mask: bool) -> Array:
    """Texts or numbers as one array; vectors or matrices as the trials of one."""
    is_grid = sum(length > 1 for length in cells.shape) > 1
    shape = cells.shape if is_grid else (-1,)
    if all(isinstance(cell, str) for cell in cells):
        return Array(np.array(cells, str).reshape(shape, order="F"))
    if any(not isinstance(cell, Array) or cell.unfit for cell in cells):
        return _unfit(OTHER)
    if all(math.prod(cell.shape) == 1 for cell in cells):
        values = np.array([cell.whole().item() for cell in cells])
        return Array(values.reshape(shape, order="F"))
    if any(len(cell.shape) != 2 for cell in cells):
        return _unfit("its cells hold arrays of three axes; expected a matrix for each trial")
    if _rise(cells):
        return _unfit(TIMES)
    if not is_grid and len({cell.shape for cell in cells}) == 1 and cells[0].shape[0] == 1:
        return _unfit(ROWS)
    try:
        turned, how = _of_vectors(cells) if is_grid else padding.bins_first(cells)
        array = Array(padding.Padded(turned, mask=mask))
    except ValueError as error:
        return _unfit(str(error))
    array.note = how if is_grid else f"each cell is taken as {how}"
    return array


def _rise(cells: list[Array]) -> bool:
    """Whether all are vectors of rising numbers, such as times of spikes; counts fall again."""
    real = [cell for cell in cells if cell.is_real]
    if any(min(cell.shape) > 1 for cell in cells):
        return False
    if sum(math.prod(cell.shape) for cell in real) <= len(cells):
        return False
    # One after the other, and none after the first that falls: they may be large, and never needed.
    return all((np.diff(cell.whole().ravel().astype(float)) > 0).all() for cell in real)


def _of_vectors(cells: mat5.Cells) -> tuple[list[Array], str]:
    """Trials, bin x neuron each, of vectors in cells, and how these were taken, in words: trial x
    neuron, unless only vectors in the same column are as long as each other, as those of a trial.

    Raises ValueError if they are not two axes of vectors, or neither is so.
    """
    expected = (
        "expected a matrix for each trial, or trial x neuron cells of vectors as long as each "
    )
    expected += "other in a trial"
    if len(cells.shape) > 2 or any(min(cell.shape) > 1 for cell in cells):
        raise ValueError(f"a cell array of {size(cells.shape)} of matrices; {expected}")
    vectors = np.empty(cells.shape, object)
    vectors.T.flat = cells
    lengths = np.vectorize(lambda cell: math.prod(cell.shape), otypes=[int])(vectors)
    if (lengths == lengths[:, :1]).all():
        order = "trial x neuron"
    elif (lengths == lengths[0]).all():
        vectors, order = vectors.T, "neuron x trial, since lengths differ between columns alone"
    else:
        raise ValueError(f"cells of {size(cells.shape)} vectors differ in length; {expected}")
    return [Array(_Side(row)) for row in vectors.tolist()], f"its cells are taken as {order}"


class _Side:
    """Vectors of the neurons of a trial, side by side: bin x neuron, read as they are needed."""

    def __init__(self, vectors: Sequence[Array]):
        self.shape = math.prod(vectors[0].shape), len(vectors)
        self.dtype = np.result_type(*(vector.dtype for vector in vectors))
        self._vectors = vectors

    def __getitem__(self, index: Any) -> np.ndarray:
        whole = [vector.whole().ravel() for vector in self._vectors]
        return np.stack(whole, axis=1).astype(self.dtype)[index]
