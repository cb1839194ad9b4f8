"""Spike counts of trials, which of them were observed, and how they are split.

A NaN in counts handed in means not observed. Inside, counts are small integers beside a mask.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from sbtt_jax import lorenz
from sbtt_jax.errors import InputError

# Keys of the field's files, by split: (counts, true rates).
SPLITS = {"train": ("train_data", "train_truth"), "valid": ("valid_data", "valid_truth")}


@dataclass(frozen=True)
class Dataset:
    """All trials of one recording, in file order.

    counts: spikes in each bin; 0 where `observed` is false.
    observed: false where the recording itself has no sample.
    train, valid: indices of the trials of each split.
    bin_width: seconds.
    rates: true rates in expected counts per bin, where they are known.
    """

    counts: UInt[np.ndarray, "trial bin neuron"]
    observed: Bool[np.ndarray, "trial bin neuron"]
    train: Int[np.ndarray, " train_trial"]
    valid: Int[np.ndarray, " valid_trial"]
    bin_width: float
    rates: Float[np.ndarray, "trial bin neuron"] | None = None

    @property
    def neurons(self) -> int:
        return self.counts.shape[2]


def from_lorenz(
    seed: int = 0, valid_fraction: float = 0.2, bin_width: float = 0.02, **sizes: int
) -> Dataset:
    """A generated Lorenz set, every point observed; `sizes` as in `lorenz.generate`.

    Raises:
      InputError: a size or width that no set can have.
    """
    try:
        generated = lorenz.generate(seed, bin_width=bin_width, **sizes)
        train, valid = lorenz.split(generated.condition, valid_fraction, seed)
    except ValueError as error:
        raise InputError(f"Lorenz set: {error}") from None
    return Dataset(
        counts=generated.counts,
        observed=np.ones(generated.counts.shape, bool),
        train=train,
        valid=valid,
        bin_width=bin_width,
        rates=generated.rates[generated.condition],
    )


def read(
    path: str | Path,
    *,
    bin_width: float,
    rates_unit: str | None = None,
    valid_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """A recording from an HDF5 or NPZ file, whose arrays are `trial x bin x neuron`.

    Keys: `train_data` and `valid_data` (counts, NaN where not observed) with `train_truth` and
    `valid_truth` (true rates) if known, or one array `spikes` (with `rates`), which is split here
    by `valid_fraction` and `seed`. A scalar `conversion_factor` says that true rates are expected
    counts per bin times it; otherwise `rates_unit` gives their unit. `bin_width` is in seconds.

    Raises:
      InputError: naming the file, the key and what was expected of it.
    """
    arrays = _arrays(Path(path))
    if "spikes" in arrays:
        counts = [_counts(path, "spikes", arrays["spikes"])]
        truths = ["rates"]
    else:
        for key in ("train_data", "valid_data"):
            if key not in arrays:
                found = ", ".join(sorted(arrays)) or "nothing"
                raise InputError(
                    f"{path}: no {key}; expected train_data and valid_data, or spikes "
                    f"(the file holds {found})"
                )
        counts = [_counts(path, key, arrays[key]) for key, _ in SPLITS.values()]
        truths = [truth for _, truth in SPLITS.values()]
        shapes = [c.shape for c, _ in counts]
        if shapes[0][1:] != shapes[1][1:]:
            raise InputError(
                f"{path}: train_data is {_size(shapes[0])} and valid_data {_size(shapes[1])}; "
                "bins and neurons must agree"
            )
    values = np.concatenate([c for c, _ in counts])
    observed = np.concatenate([o for _, o in counts])
    if not values[observed].any():
        raise InputError(f"{path}: not one spike among the observed points; nothing to learn from")

    trials = len(values)
    if "spikes" in arrays:
        if trials < 2:
            raise InputError(f"{path}: spikes has {trials} trial; at least 2 are needed to split")
        train, valid = lorenz.split(np.zeros(trials, int), valid_fraction, seed)
    else:
        train, valid = np.split(np.arange(trials), [len(counts[0][0])])

    rates = None
    present = [key in arrays for key in truths]
    if any(present):
        if not all(present):
            missing = truths[present.index(False)]
            raise InputError(f"{path}: no {missing}; true rates are needed for all trials or none")
        for key in truths:
            if arrays[key].shape[1:] != values.shape[1:] or arrays[key].dtype.kind not in "iuf":
                raise InputError(
                    f"{path}: {key} is {_size(arrays[key].shape)} {arrays[key].dtype}; expected "
                    f"rates, trials x {_size(values.shape[1:])} as the counts"
                )
        rates = np.concatenate([np.asarray(arrays[key], np.float32) for key in truths])
        if rates.shape != values.shape:
            raise InputError(
                f"{path}: true rates are {_size(rates.shape)}; counts are {_size(values.shape)}"
            )
        rates = rates / _conversion_factor(path, arrays, rates_unit, bin_width)
        if not (np.isfinite(rates).all() and (rates >= 0).all()):
            raise InputError(f"{path}: true rates hold negative or non-finite values")
    return Dataset(values, observed, train, valid, bin_width, rates)


def write(path: str | Path, dataset: Dataset) -> None:
    """An HDF5 file that `read` reads back: NaN where not observed, true rates in counts/bin."""
    counts = np.where(dataset.observed, dataset.counts, np.float32(np.nan)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for split, (key, truth) in SPLITS.items():
            trials = getattr(dataset, split)
            file.create_dataset(key, data=counts[trials], compression="gzip")
            if dataset.rates is not None:
                file.create_dataset(truth, data=dataset.rates[trials], compression="gzip")
        if dataset.rates is not None:
            file["conversion_factor"] = 1.0


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The file's top-level arrays by name."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an HDF5 or NPZ recording")
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                items = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
                return {key: np.asarray(item[()]) for key, item in items.items()}
        if zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
    except (
        OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError,
        NotImplementedError, TypeError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    raise InputError(f"{path}: neither HDF5 nor NPZ, or cut short")


def _counts(path, key: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts as small integers, and where they were observed."""
    if array.ndim != 3:
        raise InputError(f"{path}: {key} is {_size(array.shape)}; expected trial x bin x neuron")
    if 0 in array.shape:
        raise InputError(f"{path}: {key} is {_size(array.shape)}; no size may be 0")
    if not (np.issubdtype(array.dtype, np.number) and not np.iscomplexobj(array)):
        raise InputError(f"{path}: {key} holds {array.dtype}; expected spike counts")
    observed = ~np.isnan(array)
    values = np.where(observed, array, 0)
    for what, bad in (
        ("an infinity", ~np.isfinite(values)),
        ("a negative count", values < 0),
        ("a fractional count", values != np.round(values)),
        ("a count above 65535", values > 65535),
    ):
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"{path}: {key} holds {what}, {values[at]:g} at trial, bin, neuron {at}; expected "
                "whole spike counts, NaN where not observed"
            )
    return values.astype(np.uint8 if values.max() < 256 else np.uint16), observed


def _conversion_factor(path, arrays, rates_unit: str | None, bin_width: float) -> float:
    """What expected counts per bin were multiplied by to give the file's true rates."""
    if "conversion_factor" in arrays:
        factor = arrays["conversion_factor"]
        if factor.size != 1 or factor.dtype.kind not in "iuf" or not factor.item() > 0:
            raise InputError(f"{path}: conversion_factor is {factor}; expected one positive number")
        return float(factor.item())
    units = {"counts/bin": 1.0, "spikes/s": 1 / bin_width, "spikes/ms": 1e-3 / bin_width}
    if rates_unit is None:
        raise InputError(
            f"{path}: holds true rates but no conversion_factor; set data.rates_unit to one of "
            + ", ".join(units)
        )
    return units[rates_unit]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
