"""Folders of Suite2p (Pachitariu et al. 2017), one imaging plane each, as named arrays.

`stat.npy` and `ops.npy` are pickles. They are decoded here without NumPy's or any other code that a
pickle could call: arrays stay as they are stored until they are needed, and whatever is neither a
plain value nor an array is refused.
"""

import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sbtt_jax.data.arrays import Array, Asked
from sbtt_jax.data.npz import npy_header
from sbtt_jax.errors import InputError

# Several regions in a frame, and planes in the order 0 1 2 2 1 0.
IRREGULAR = "lines", "mesoscan", "bruker_bidirectional"
TRACES = {"spikes": "spks", "F": "F", "Fneu": "Fneu"}  # the first has to be there


def recognizes(path: Path) -> bool:
    """Whether it is a folder that Suite2p wrote for a plane."""
    return all((path / name).is_file() for name in ("stat.npy", "spks.npy"))


@contextmanager
def suite2p(path: Path, asked: Asked) -> Iterator[Mapping[str, Array]]:
    """The cells of a plane: `spikes`, deconvolved events, frame x neuron, NaN in bad frames;
    `frame_times` and `sample_offsets` (seconds); `unit_id`, each neuron's number among the ROIs;
    and fluorescence, `F` and `Fneu`, if it is there.

    Raises InputError if it is of several planes, there are no cells, a file does not fit the
    others, or a pickle holds other than plain values and arrays.
    """
    ops, stat = unpickled(path / "ops.npy"), unpickled(path / "stat.npy").ravel()
    planes = {int(array_of(roi["iplane"])) for roi in stat if "iplane" in roi}
    if path.resolve().name == "combined" or len(planes) > 1:
        rule = "whose rows and times are not those of a frame; give one plane, such as"
        raise InputError(f"{path}: all planes as one mosaic, {rule} suite2p/plane0 or plane1")
    files = {key: path / f"{name}.npy" for key, name in TRACES.items()}
    traces = {key: _mapped(file) for key, file in files.items() if key == "spikes" or file.exists()}
    rois, frames = traces["spikes"].shape
    is_cell = _mapped(path / "iscell.npy")[:, 0] > 0
    sizes = {f"{TRACES[key]}.npy": len(trace) for key, trace in traces.items()}
    for name, count in (sizes | {"stat.npy": len(stat), "iscell.npy": len(is_cell)}).items():
        if count != rois:
            raise InputError(f"{path}: {name} is of {count} ROIs and spks.npy of {rois}")
    if not is_cell.any():
        raise InputError(f"{path}: iscell.npy says that none of {rois} ROIs is a cell")
    cells = np.flatnonzero(is_cell)
    bad = _bad(path, ops.item().get("badframes"), frames)
    if bad.any():
        asked.notes.append(f"{bad.sum()} of {frames} frames are bad (badframes) and not observed")
    rate, offsets = _scan(path, ops.item(), stat[cells], asked)
    yield {
        **{key: Array(_Cells(trace, cells, bad)) for key, trace in traces.items()},
        "frame_times": Array(np.arange(frames) / rate),
        "sample_offsets": Array(offsets),
        "unit_id": Array(cells),
    }


def _bad(path: Path, given: Any, frames: int) -> Bool[np.ndarray, " frame"]:
    """Which frames are bad, by `badframes`: a boolean for each, or the numbers of those."""
    bad = np.zeros(frames, bool)
    if given is None:
        return bad
    values = array_of(given).ravel()
    if values.size == frames and values.dtype.kind in "biuf" and np.isin(values, (0, 1)).all():
        return values.astype(bool)
    is_number = values.dtype.kind in "iu" or not values.size
    if is_number and len(set(values.tolist()) & set(range(frames))) == values.size:
        bad[values.astype(int)] = True
        return bad
    rule = f"expected {frames} booleans, or the numbers of bad frames from 0 to {frames - 1}"
    raise InputError(f"{path}: ops.npy has badframes, {values.size} of {values.dtype}; {rule}")


def _scan(
    path: Path, ops: Mapping[str, Any], stat: np.ndarray, asked: Asked
) -> tuple[float, Float[np.ndarray, " neuron"]]:
    """Frames per second, and when in a frame the scan meets the median row of each neuron."""
    rate, planes, rows = (_number(path, ops, name) for name in ("fs", "nplanes", "Ly"))
    said = (ops.get("io") or {}) | ops
    if irregular := [name for name in IRREGULAR if array_of(said.get(name)).any()]:
        raise InputError(f"{path}: ops.npy has {irregular[0]}, a scan whose times are not known")
    asked.notes.append(
        f"frames are taken to begin every {1000 / rate:.4g} ms without a pause, and the {rows:g} "
        f"rows of the plane to be scanned evenly over {1000 / rate / planes:.4g} ms (fs, nplanes)"
    )
    median = np.array([np.median(array_of(roi["ypix"])) for roi in stat])
    if not ((median >= 0) & (median < rows)).all():
        raise InputError(f"{path}: stat.npy has ROIs beyond the {rows:g} rows (Ly) of ops.npy")
    return rate, median / rows / rate / planes


def _number(path: Path, ops: Mapping[str, Any], name: str) -> float:
    value = array_of(ops.get(name))
    if value.size != 1 or value.dtype.kind not in "iuf" or not 0 < value.item() < math.inf:
        raise InputError(f"{path}: ops.npy has no {name}; expected a positive number")
    return float(value.item())


def _mapped(path: Path) -> np.ndarray:
    """A matrix, whose content stays on disk until it is read."""
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.ndim != 2:
        raise ValueError(f"{path.name} has {values.ndim} axes; expected ROIs first, of two")
    return values


class _Cells:
    """Traces of the cells, frame x neuron, NaN in bad frames, read as they are needed."""

    def __init__(
        self,
        traces: np.ndarray,
        cells: Int[np.ndarray, " neuron"],
        bad: Bool[np.ndarray, " frame"],
    ):
        self.shape, self.dtype = (traces.shape[1], len(cells)), np.dtype(np.float32)
        self._traces, self._cells, self._bad = traces, cells, bad

    def __getitem__(self, index: Any) -> np.ndarray:
        frames = index if isinstance(index, slice) else slice(None)
        values = self._traces[:, frames][self._cells].T.astype(np.float32)
        values[self._bad[frames]] = np.nan
        return values


def unpickled(path: Path) -> np.ndarray:
    """The array of objects in an NPY file: dicts and lists of plain values, and of arrays, of which
    `array_of` makes NumPy's.

    Raises InputError, with nothing executed, if the pickle holds anything else.
    """
    with path.open("rb") as file:
        shape, _, dtype = npy_header(file, path.name)
        if not dtype.hasobject:
            raise InputError(f"{path}: is {dtype}; expected what Suite2p writes, Python objects")
        return array_of(_Decoder(path, file).load()).reshape(shape)


def array_of(value: Any) -> np.ndarray:
    """A decoded value as an array; one of object dtype holds decoded values in turn."""
    if not isinstance(value, _Stored):
        return np.asarray(value)
    dtype, content = value.dtype.numpy(), value.content
    if isinstance(content, list) != dtype.hasobject:
        raise ValueError("an array of objects is damaged")
    if dtype.hasobject:
        values = np.empty(len(content), object)
        for i, one in enumerate(content):
            values[i] = one
    else:
        values = np.frombuffer(content, dtype)
    return values.reshape(value.shape, order="F" if value.by_column else "C")


class _Stored:
    """An array as a pickle has it."""

    def __init__(self, *_: Any):
        """What a pickle says first is said again in the state."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.by_column, self.content = state


class _Type:
    """A dtype as a pickle has it: the kind, and then the order of bytes."""

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if not re.fullmatch(r"[biufcSU]\d+|O8?", self.name):
            raise ValueError(f"an array of {self.name}; expected numbers, texts or objects")
        return np.dtype(self.name).newbyteorder(self.order.replace("|", "="))


def _scalar(dtype: _Type, content: Any) -> _Stored:
    scalar = _Stored()
    scalar.__setstate__((1, (), dtype, False, content))
    return scalar


def _nothing(*_: Any) -> None:
    """Dates and paths, which are not needed."""


# What a pickle may name, and what stands for it. None of it is what it names.
ALLOWED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy._core.multiarray", "_reconstruct"): _Stored,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    **{("datetime", name): _nothing for name in ("datetime", "timedelta", "timezone")},
    **{("pathlib", f"{kind}Path"): _nothing for kind in ("", "Posix", "Windows")},
}


class _Decoder(pickle.Unpickler):
    """Reads a pickle without importing or calling anything that it names."""

    def __init__(self, path: Path, file: Any):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        usual = module.replace("numpy.core", "numpy._core").removesuffix("._local")
        if (usual, name) not in ALLOWED:
            rule = "expected plain values and arrays alone; nothing was executed"
            raise InputError(f"{self._path}: holds a {module}.{name}; {rule}")
        return ALLOWED[usual, name]
