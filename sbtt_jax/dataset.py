"""Spike counts of trials, which of them were observed, and how they are split.

A NaN in counts handed in means not observed. Inside, counts are small integers beside a mask.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt

from sbtt_jax import array_file, lorenz
from sbtt_jax.array_file import Array
from sbtt_jax.errors import InputError

SPLITS = ("train", "valid")

# True rates and counts may disagree in their mean by this share, or by two standard errors of the
# number of spikes where that is more.
RATE_TOLERANCE = 0.2


@dataclass(frozen=True)
class Dataset:
    """All trials of one recording, in file order.

    counts: spikes in each bin; 0 where `observed` is false.
    observed: false where the recording itself has no sample.
    train, valid: indices of the trials of each split.
    bin_width: seconds.
    rates: true rates in expected counts per bin, where they are known; 0 beyond a trial's end.
    trial_index: each trial's number in the recording, where it is not simply its place here.
    neuron_index: likewise for neurons.
    dropped_trials, dropped_neurons: numbers of those that were left out.
    notes: what was assumed in reading it, a sentence each.
    """

    counts: UInt[np.ndarray, "trial bin neuron"]
    observed: Bool[np.ndarray, "trial bin neuron"]
    train: Int[np.ndarray, " train_trial"]
    valid: Int[np.ndarray, " valid_trial"]
    bin_width: float
    rates: Float[np.ndarray, "trial bin neuron"] | None = None
    trial_index: Int[np.ndarray, " trial"] | None = None
    neuron_index: Int[np.ndarray, " neuron"] | None = None
    dropped_trials: tuple[int, ...] = ()
    dropped_neurons: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def neurons(self) -> int:
        return self.counts.shape[2]

    @cached_property
    def lengths(self) -> Int[np.ndarray, " trial"] | None:
        """Bins of each trial, as `lengths_of` has them; what is behind them is padding."""
        return lengths_of(self.observed)

    @property
    def real(self) -> Bool[np.ndarray, "trial bin 1"]:
        """False in the padding behind a trial's end."""
        return _before(_lengths(self.observed), self.counts.shape[1])


def _lengths(observed: np.ndarray) -> np.ndarray:
    sampled = observed.any(2)
    beyond = np.argmax(sampled[:, ::-1], axis=1)
    return np.where(sampled.any(1), sampled.shape[1] - beyond, 0).astype(np.int32)


def _before(lengths: np.ndarray, bins: int) -> np.ndarray:
    return (np.arange(bins) < lengths[:, None])[..., None]


def from_lorenz(
    seed: int = 0, valid_fraction: float = 0.2, bin_width: float = 0.02, **sizes: int
) -> Dataset:
    """A generated Lorenz set, every point observed; `sizes` as in `lorenz.generate`.

    Raises:
      InputError: a size or width that no set can have.
    """
    _check_memory("Lorenz set: asked for are", tuple(sizes.values()))
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


def read(path: str | Path, *, bin_width: float, **how: Any) -> Dataset:
    """A recording from an HDF5 or NPZ file, whose arrays are `trial x bin x neuron`.

    Counts, NaN where not observed, are `train_data` and `valid_data`, or `train_encod_data` and
    `valid_encod_data` (`..._recon_data` beside them must hold the same), or one array `spikes`,
    which is split here, each `condition` (an array with a number a trial) equally. A boolean array
    named after them, such as `train_mask` or `spikes_mask`, says where they were observed. True
    rates, if known, are `train_truth` and `valid_truth`, or `rates`, NaN behind a trial's end
    allowed; they are expected counts per bin times the scalar `conversion_factor`. `train_inds`
    and `valid_inds` number the trials in the recording, and put them in that order. A scalar
    `bin_width` (seconds) in the file counts before the one given here.

    The other arguments are those of `assemble`.

    Raises:
      InputError: naming the file, the key and what was expected of it.
    """
    with array_file.opened(path) as arrays:
        return assemble(str(path), arrays, bin_width=bin_width, **how)


def from_arrays(
    spikes: Shaped[np.ndarray, "..."],
    *,
    bin_width: float,
    condition: Shaped[np.ndarray, "..."] | None = None,
    **how: Any,
) -> Dataset:
    """A recording from an array of counts, NaN where not observed, as `read` has it from a file.

    Raises:
      InputError: naming the array and what was expected of it.
    """
    arrays = {"spikes": Array(spikes)}
    if condition is not None:
        arrays["condition"] = Array(condition)
    return assemble("array", arrays, bin_width=bin_width, **how)


def counts_of(
    spikes: Shaped[np.ndarray, "..."],
) -> tuple[UInt[np.ndarray, "trial bin neuron"], Bool[np.ndarray, "trial bin neuron"]]:
    """An array of counts, NaN where not observed, as small integers and a mask.

    Raises:
      InputError: it is not an array of whole spike counts, trial x bin x neuron.
    """
    return _read_counts("array", {"spikes": Array(spikes)}, ("spikes",))


def lengths_of(observed: Bool[np.ndarray, "trial bin neuron"]) -> Int[np.ndarray, " trial"] | None:
    """Bins of each trial, up to the last one with any sample; None where all are full.

    What lies between samples is never padding.
    """
    lengths = _lengths(observed)
    return None if (lengths == observed.shape[1]).all() else lengths


def assemble(
    source: str,
    arrays: Mapping[str, Array],
    *,
    bin_width: float,
    rates_unit: str | None = None,
    valid_fraction: float = 0.2,
    seed: int = 0,
    drop_neurons: Sequence[int] = (),
    drop_unobserved_trials: bool = False,
) -> Dataset:
    """A recording from its arrays by name; `source` names it in errors.

    rates_unit: unit of the true rates, where there is no conversion_factor; where neither is
      given, the unit that suits the counts best.
    valid_fraction, seed: of the split, where the arrays are not split already.
    drop_neurons: numbers of neurons to leave out.
    drop_unobserved_trials: leave out trials without a sample.

    Raises:
      InputError: naming the source, the array and what was expected of it.
    """
    layout = _layout(source, arrays)
    bin_width = _scalar(source, arrays, "bin_width", bin_width)
    parts = [_read_counts(source, arrays, keys) for keys in layout]
    shapes = [counts.shape for counts, _ in parts]
    if len({shape[1:] for shape in shapes}) > 1:
        names = " and ".join(
            f"{keys[0]} is {_size(shape)}" for keys, shape in zip(layout, shapes, strict=True)
        )
        raise InputError(f"{source}: {names}; bins and neurons must agree")
    counts = np.concatenate([c for c, _ in parts])
    observed = np.concatenate([o for _, o in parts])
    parts = None  # a second copy of everything
    if not counts.any():
        raise InputError(
            f"{source}: not one spike among the observed points; nothing to learn from"
        )

    train, valid = _split(source, arrays, shapes, valid_fraction, seed)
    rates, notes = _read_rates(
        source, arrays, [keys[-1] for keys in layout], counts, observed, rates_unit, bin_width
    )
    data = Dataset(counts, observed, train, valid, bin_width, rates, notes=notes)
    data = _in_recorded_order(source, arrays, data)
    return _without_unobserved_trials(
        source, _without_neurons(source, data, drop_neurons), drop_unobserved_trials
    )


def write(path: str | Path, dataset: Dataset) -> None:
    """An HDF5 file that `read` reads back: NaN where not observed, true rates in counts/bin."""
    counts = np.where(dataset.observed, dataset.counts, np.float32(np.nan)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for split in SPLITS:
            trials = getattr(dataset, split)
            file.create_dataset(f"{split}_data", data=counts[trials], compression="gzip")
            if dataset.rates is not None:
                rates = dataset.rates[trials]
                file.create_dataset(f"{split}_truth", data=rates, compression="gzip")
        if dataset.rates is not None:
            file["conversion_factor"] = 1.0
        file["bin_width"] = dataset.bin_width


def unobserved(
    observed: Bool[np.ndarray, "trial bin neuron"], train: Int[np.ndarray, " train_trial"]
) -> tuple[list[int], list[int]]:
    """Trials without any sample, and neurons without one in the training trials."""
    trials = np.flatnonzero(~observed.any((1, 2)))
    seen = np.zeros(observed.shape[2], bool)
    for trial in train:  # not observed[train], which would be a copy of it
        seen |= observed[trial].any(0)
    return trials.tolist(), np.flatnonzero(~seen).tolist()


def _layout(source: str, arrays: Mapping[str, Array]) -> list[tuple[str, ...]]:
    """For each split, the keys of its counts, of the mask, and of the true rates."""
    if "spikes" in arrays:
        layout = [("spikes", "rates" if "rates" in arrays else "truth")]
    else:
        layout = []
        for split in SPLITS:
            names = [f"{split}_{kind}" for kind in ("data", "encod_data", "recon_data")]
            key = next((name for name in names if name in arrays), None)
            if key is None:
                found = ", ".join(sorted(arrays)) or "nothing"
                raise InputError(
                    f"{source}: no {split}_data; expected train_data and valid_data, or spikes "
                    f"(the file holds {found})"
                )
            layout.append((key, f"{split}_truth"))
    used = {mask for key, _ in layout for mask in _mask_keys(key)}
    # A mask that is passed over would let what was not observed through as silence.
    unused = sorted(key for key in arrays if key.split("_")[-1] == "mask" and key not in used)
    if unused:
        raise InputError(
            f"{source}: {unused[0]} belongs to none of {', '.join(key for key, _ in layout)}; "
            f"expected {layout[0][0]}_mask"
        )
    return layout


def _mask_keys(key: str) -> list[str]:
    if key == "spikes":
        return ["spikes_mask", "mask"]
    return [f"{key}_mask", f"{key.split('_')[0]}_mask"]


def _read_counts(
    source: str, arrays: Mapping[str, Array], keys: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The counts of one split as small integers, and where they were observed."""
    key = keys[0]
    array = arrays[key]
    if len(array.shape) != 3:
        raise InputError(f"{source}: {key} is {_size(array.shape)}; expected trial x bin x neuron")
    if 0 in array.shape:
        raise InputError(f"{source}: {key} is {_size(array.shape)}; no size may be 0")
    if not _is_real(array):
        raise InputError(f"{source}: {key} holds {array.dtype}; expected spike counts")
    _check_memory(f"{source}: {key} declares", array.shape)

    observed = _read_mask(source, arrays, key)
    counts = np.zeros(array.shape, np.uint8)
    for rows, block in array.blocks():
        if block.dtype.kind == "f":
            observed[rows] &= ~np.isnan(block)
        values = np.where(observed[rows], block, 0)
        _check_counts(source, key, values, rows.start)
        if counts.dtype == np.uint8 and values.max() > 255:
            counts = counts.astype(np.uint16)
        counts[rows] = values

    recon = key.replace("encod", "recon")
    if recon != key and recon in arrays:
        _check_recon(source, arrays, key, recon, counts, observed)
    return counts, observed


def _check_memory(claim: str, shape: tuple[int, ...]) -> None:
    """Refuse what cannot be held before any of it is made room for."""
    needed = 2 * math.prod(shape)  # a byte for the count and one for the mask, at least
    if needed > array_file.memory():
        raise InputError(
            f"{claim} {_size(shape)} counts, {needed / 2**30:.0f} GiB as small integers; this "
            f"machine's memory is {array_file.memory() / 2**30:.0f} GiB"
        )


def _read_mask(source: str, arrays: Mapping[str, Array], key: str) -> np.ndarray:
    """Where the file's mask says that counts were observed; everywhere where it has none."""
    shape = arrays[key].shape
    mask_key = next((name for name in _mask_keys(key) if name in arrays), None)
    if mask_key is None:
        return np.ones(shape, bool)
    mask = arrays[mask_key]
    if mask.shape != shape:
        raise InputError(
            f"{source}: {mask_key} is {_size(mask.shape)} and {key} {_size(shape)}; a mask has "
            "the shape of its counts"
        )
    if mask.dtype.kind not in "biu":
        raise InputError(
            f"{source}: {mask_key} holds {mask.dtype}; expected booleans, true where observed"
        )
    observed = np.empty(shape, bool)
    for rows, block in mask.blocks():
        if not ((block == 0) | (block == 1)).all():
            raise InputError(
                f"{source}: {mask_key} holds other values than 0 and 1; expected booleans, true "
                "where observed"
            )
        observed[rows] = block
    return observed


def _check_counts(source: str, key: str, values: np.ndarray, first_trial: int) -> None:
    for what, bad in (
        ("an infinity", ~np.isfinite(values)),
        ("a negative count", values < 0),
        ("a fractional count", values != np.round(values)),
        ("a count above 65535", values > 65535),
    ):
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            value = values[at]
            at = (at[0] + first_trial, *at[1:])
            raise InputError(
                f"{source}: {key} holds {what}, {value:g} at trial, bin, neuron {at}; expected "
                "whole spike counts, NaN where not observed"
            )


def _check_recon(source, arrays, key: str, recon: str, counts, observed) -> None:
    """Refuse targets that are not the inputs: here a model reconstructs what it is given."""
    shape = arrays[recon].shape
    same = shape == counts.shape
    if same:
        others, seen = _read_counts(source, arrays, (recon,))
        same = np.array_equal(others, counts) and np.array_equal(seen, observed)
    if not same:
        raise InputError(
            f"{source}: {recon} ({_size(shape)}) differs from {key} ({_size(counts.shape)}); "
            "points that are reconstructed and never given as input are not supported: keep "
            "one of the two, for training and validation alike"
        )


def _split(source, arrays, shapes, valid_fraction: float, seed: int):
    """Trials of training and of validation, in the order of the arrays."""
    if len(shapes) == 2:
        return np.split(np.arange(shapes[0][0] + shapes[1][0]), [shapes[0][0]])
    trials = shapes[0][0]
    if trials < 2:
        raise InputError(f"{source}: spikes has {trials} trial; at least 2 are needed to split")
    condition = np.zeros(trials, int)
    if "condition" in arrays:
        given = arrays["condition"]
        if given.shape != (trials,) or given.dtype.hasobject:
            raise InputError(
                f"{source}: condition is {_size(given.shape)} of {given.dtype}; expected a number "
                f"for each of {trials} trials"
            )
        condition = np.unique(given.whole(), return_inverse=True)[1]
    return lorenz.split(condition, valid_fraction, seed)


def _read_rates(
    source, arrays, keys: list[str], counts, observed, rates_unit: str | None, bin_width: float
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """True rates as expected counts per bin, and what was assumed of their unit."""
    present = [key in arrays for key in keys]
    if not any(present):
        return None, ()
    if not all(present):
        missing = keys[present.index(False)]
        raise InputError(f"{source}: no {missing}; true rates are needed for all trials or none")
    shapes = [arrays[key].shape for key in keys]
    together = (sum(shape[0] for shape in shapes if shape), *shapes[0][1:])
    if together != counts.shape or len({shape[1:] for shape in shapes}) > 1:
        raise InputError(
            f"{source}: true rates are {_size(together)}; counts are {_size(counts.shape)}"
        )
    rates = np.empty(counts.shape, np.float32)
    start = 0
    for key in keys:
        if not _is_real(arrays[key]):
            raise InputError(f"{source}: {key} holds {arrays[key].dtype}; expected rates")
        for rows, block in arrays[key].blocks():
            rates[start + rows.start : start + rows.stop] = block
        start += arrays[key].shape[0]
    np.copyto(rates, 0, where=~_before(_lengths(observed), rates.shape[1]))
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise InputError(f"{source}: true rates hold negative or non-finite values")

    points = observed.sum()
    mean_count = counts.sum(dtype=np.float64) / points
    mean_rate = rates.sum(where=observed, dtype=np.float64) / points
    if mean_rate == 0:
        raise InputError(f"{source}: true rates are 0 at all observed points, and counts are not")
    ratio = mean_rate / mean_count
    factor, said, notes = _conversion_factor(source, arrays, rates_unit, bin_width, ratio)
    tolerance = max(RATE_TOLERANCE, 2 / np.sqrt(mean_count * points))
    if abs(ratio / factor - 1) > tolerance:
        raise InputError(
            f"{source}: true rates are {ratio / factor:.3g} times the counts in the mean, with "
            f"{said}; a conversion_factor of {ratio:.4g} would fit (bins of {bin_width:g} s: "
            f"{', '.join(f'{unit} {f:.4g}' for unit, f in _units(bin_width).items())})"
        )
    rates /= factor
    return rates, notes


def _units(bin_width: float) -> dict[str, float]:
    """What expected counts per bin are multiplied by to give each unit."""
    return {"counts/bin": 1.0, "spikes/s": 1 / bin_width, "spikes/ms": 1e-3 / bin_width}


def _conversion_factor(
    source, arrays, rates_unit: str | None, bin_width: float, ratio: float
) -> tuple[float, str, tuple[str, ...]]:
    """What expected counts per bin were multiplied by to give the true rates; who says so."""
    if "conversion_factor" in arrays:
        factor = _scalar(source, arrays, "conversion_factor", 1.0)
        return factor, f"the file's conversion_factor {factor:g}", ()
    units = _units(bin_width)
    if rates_unit is not None:
        return units[rates_unit], f"data.rates_unit {rates_unit}", ()
    unit = min(units, key=lambda unit: abs(math.log(ratio / units[unit])))
    note = (
        f"true rates are taken for {unit}: {ratio:.3g} times the counts in the mean, where "
        f"{unit} would be {units[unit]:.3g} times (set data.rates_unit if that is wrong)"
    )
    return units[unit], f"the unit assumed, {unit}", (note,)


def _in_recorded_order(source, arrays, data: Dataset) -> Dataset:
    """Trials by the numbers that the arrays give them, if they do."""
    keys = [f"{split}_inds" for split in SPLITS if f"{split}_inds" in arrays]
    if not keys or "spikes" in arrays:
        return data
    if len(keys) == 1:
        raise InputError(f"{source}: has {keys[0]} alone; expected train_inds and valid_inds")
    numbers = []
    for key, trials in zip(keys, (data.train, data.valid), strict=True):
        array = arrays[key]
        if array.shape != trials.shape or array.dtype.kind not in "iu":
            raise InputError(
                f"{source}: {key} is {_size(array.shape)} of {array.dtype}; expected a whole "
                f"number for each of {len(trials)} trials"
            )
        numbers.append(array.whole())
    index = np.concatenate(numbers).astype(np.int64)
    order = np.argsort(index)
    if (np.diff(index[order]) == 0).any():
        raise InputError(f"{source}: train_inds and valid_inds name a trial twice")
    is_train = (np.arange(len(index)) < len(data.train))[order]
    return replace(
        data,
        counts=data.counts[order],
        observed=data.observed[order],
        train=np.flatnonzero(is_train),
        valid=np.flatnonzero(~is_train),
        rates=None if data.rates is None else data.rates[order],
        trial_index=index[order],
    )


def _without_neurons(source, data: Dataset, dropped: Sequence[int]) -> Dataset:
    if not dropped:
        return data
    if max(dropped) >= data.neurons:
        raise InputError(
            f"{source}: data.drop_neurons has {max(dropped)}; neurons are numbered from 0 to "
            f"{data.neurons - 1}"
        )
    kept = np.setdiff1d(np.arange(data.neurons), dropped)
    if not kept.size:
        raise InputError(f"{source}: data.drop_neurons leaves no neuron")
    return replace(
        data,
        counts=data.counts[..., kept],
        observed=data.observed[..., kept],
        rates=None if data.rates is None else data.rates[..., kept],
        neuron_index=kept,
        dropped_neurons=tuple(sorted(set(dropped))),
    )


def _without_unobserved_trials(source, data: Dataset, drop: bool) -> Dataset:
    kept = data.observed.any((1, 2))
    if not drop or kept.all():
        return data
    place = np.cumsum(kept) - 1
    train, valid = (place[t[kept[t]]] for t in (data.train, data.valid))
    if not (train.size and valid.size):
        raise InputError(
            f"{source}: {train.size} training and {valid.size} validation trials are left "
            "without the unobserved ones; both need some"
        )
    index = np.arange(len(kept)) if data.trial_index is None else data.trial_index
    return replace(
        data,
        counts=data.counts[kept],
        observed=data.observed[kept],
        train=train,
        valid=valid,
        rates=None if data.rates is None else data.rates[kept],
        trial_index=index[kept],
        dropped_trials=tuple(index[~kept].tolist()),
    )


def _scalar(source, arrays: Mapping[str, Array], key: str, otherwise: float) -> float:
    """A positive number of the file's, or the one otherwise taken."""
    if key not in arrays:
        return otherwise
    array = arrays[key]
    if math.prod(array.shape) != 1 or not _is_real(array):
        raise InputError(
            f"{source}: {key} is {_size(array.shape)} of {array.dtype}; expected one positive "
            "number"
        )
    value = float(array.whole().item())
    if not 0 < value < math.inf:
        raise InputError(f"{source}: {key} is {value:g}; expected one positive number")
    return value


def _is_real(array: Array) -> bool:
    return array.dtype.kind in "iuf"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
