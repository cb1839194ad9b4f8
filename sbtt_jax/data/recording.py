"""From named arrays to a `Dataset`, with every check on what a user hands in.

Each error says which array of which source is wrong, where, and what would be right.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Num, Shaped

from sbtt_jax.data import readers
from sbtt_jax.data.dataset import SPLITS, Dataset, check_memory, split
from sbtt_jax.data.readers import Array, size
from sbtt_jax.errors import InputError
from sbtt_jax.observations import POISSON, Observation

# The means of true rates and counts may differ by this fraction, or by two standard errors of the
# number of spikes if that is more.
RATE_TOLERANCE = 0.2

Arrays = Mapping[str, Array]


def read(path: str | Path, *, bin_width: float, **how: Any) -> Dataset:
    """A recording from a file whose arrays are `trial x bin x neuron`.

    Counts, NaN where not observed, are `train_data` and `valid_data`, or `train_encod_data` and
    `valid_encod_data` (`..._recon_data` beside them must hold the same), or one array `spikes`,
    which is split here, with the same share of each `condition` (one number per trial). A boolean
    array named after them, such as `train_mask` or `spikes_mask`, says where they were observed.
    True rates, if known, are `train_truth` and `valid_truth`, or `rates`; NaN is allowed after a
    trial's end. They are expected counts per bin times the scalar `conversion_factor`. `train_inds`
    and `valid_inds` number the trials in the recording and put them in that order. A scalar
    `bin_width` (seconds) in the file takes precedence over the argument.

    The other arguments are those of `assemble`.

    Raises:
      InputError: naming the file, the key and what was expected of it.
    """
    with readers.opened(path) as arrays:
        return assemble(str(path), arrays, bin_width=bin_width, **how)


def from_arrays(
    spikes: Shaped[np.ndarray, "..."],
    *,
    condition: Shaped[np.ndarray, "..."] | None = None,
    **how: Any,
) -> Dataset:
    """A recording from an array of counts, NaN where not observed; other arguments as `assemble`.

    Raises:
      InputError: naming the array and what was expected of it.
    """
    arrays = {"spikes": Array(spikes)}
    if condition is not None:
        arrays["condition"] = Array(condition)
    return assemble("array", arrays, **how)


def counts_of(
    spikes: Shaped[np.ndarray, "..."], observation: Observation = POISSON
) -> tuple[Num[np.ndarray, "trial bin neuron"], Bool[np.ndarray, "trial bin neuron"]]:
    """An array of counts, NaN where not observed, as values and a mask.

    Raises:
      InputError: it is not an array of valid values, trial x bin x neuron.
    """
    return _read_counts("array", {"spikes": Array(spikes)}, "spikes", observation)


def assemble(
    source: str,
    arrays: Arrays,
    *,
    bin_width: float,
    rates_unit: str | None = None,
    valid_fraction: float = 0.2,
    seed: int = 0,
    drop_neurons: Sequence[int] = (),
    drop_unobserved_trials: bool = False,
    observation: Observation = POISSON,
) -> Dataset:
    """A recording from its arrays by name, as `read` describes them.

    source: names the recording in errors.
    bin_width: seconds.
    rates_unit: unit of the true rates if there is no conversion_factor; None assumes the unit that
      fits the counts best.
    valid_fraction, seed: of the split, if the arrays are not split already.
    drop_neurons: numbers of neurons to leave out.
    drop_unobserved_trials: leave out trials without a sample.
    observation: says which values are valid.

    Raises:
      InputError: naming the source, the array and what was expected of it.
    """
    layout = _layout(source, arrays)
    bin_width = _positive(source, arrays, "bin_width", bin_width)
    parts = [_read_counts(source, arrays, key, observation) for key in layout]
    shapes = [counts.shape for counts, _ in parts]
    if len({shape[1:] for shape in shapes}) > 1:
        names = " and ".join(f"{k} is {size(s)}" for k, s in zip(layout, shapes, strict=True))
        raise InputError(f"{source}: {names}; bins and neurons must agree")
    counts = np.concatenate([c for c, _ in parts])
    observed = np.concatenate([o for _, o in parts])
    del parts  # a second copy of everything
    if not counts.any():
        raise InputError(
            f"{source}: not one spike among the observed points; nothing to learn from"
        )
    train, valid = _split(source, arrays, shapes, valid_fraction, seed)
    data = Dataset(counts, observed, train, valid, bin_width)
    data = _with_rates(source, arrays, list(layout.values()), data, rates_unit)
    data = _in_recorded_order(source, arrays, data)
    data = _without_neurons(source, data, drop_neurons)
    return _without_unobserved_trials(source, data) if drop_unobserved_trials else data


def _layout(source: str, arrays: Arrays) -> dict[str, str]:
    """The key of each split's counts, with that of its true rates."""
    if "spikes" in arrays:
        layout = {"spikes": "rates" if "rates" in arrays else "truth"}
    else:
        layout = {}
        for name in SPLITS:
            keys = [f"{name}_{kind}" for kind in ("data", "encod_data", "recon_data")]
            key = next((key for key in keys if key in arrays), None)
            if key is None:
                raise InputError(
                    f"{source}: no {name}_data; expected train_data and valid_data, or spikes "
                    f"(the file holds {', '.join(sorted(arrays)) or 'nothing'})"
                )
            layout[key] = f"{name}_truth"
    used = {mask for key in layout for mask in _mask_keys(key)}
    # Ignoring a mask would turn what was not observed into silence.
    unused = sorted(key for key in arrays if key.split("_")[-1] == "mask" and key not in used)
    if unused:
        raise InputError(
            f"{source}: {unused[0]} belongs to none of {', '.join(layout)}; expected "
            f"{next(iter(layout))}_mask"
        )
    return layout


def _mask_keys(key: str) -> list[str]:
    if key == "spikes":
        return ["spikes_mask", "mask"]
    return [f"{key}_mask", f"{key.split('_')[0]}_mask"]


def _read_counts(
    source: str, arrays: Arrays, key: str, observation: Observation
) -> tuple[np.ndarray, np.ndarray]:
    """The values of one split, in the smallest type that holds them, and where observed."""
    array = arrays[key]
    if len(array.shape) != 3:
        raise InputError(f"{source}: {key} is {size(array.shape)}; expected trial x bin x neuron")
    if 0 in array.shape:
        raise InputError(f"{source}: {key} is {size(array.shape)}; no size may be 0")
    if not _is_real(array):
        raise InputError(f"{source}: {key} holds {array.dtype}; expected {observation.expected}")
    check_memory(f"{source}: {key} declares", array.shape)

    observed = _read_mask(source, arrays, key)
    counts = np.zeros(array.shape, observation.dtype)
    for rows, block in array.blocks():
        if block.dtype.kind == "f":
            observed[rows] &= ~np.isnan(block)
        values = np.where(observed[rows], block, observation.fill)
        _check_values(source, key, values, rows.start, observation)
        if counts.dtype == np.uint8 and values.max() > 255:
            counts = counts.astype(np.uint16)
        counts[rows] = values

    recon = key.replace("encod", "recon")
    if recon != key and recon in arrays:
        _check_recon(source, arrays, key, recon, counts, observed, observation)
    return counts, observed


def _read_mask(source: str, arrays: Arrays, key: str) -> np.ndarray:
    """Where the mask in the file says that values were observed; everywhere if there is none."""
    shape = arrays[key].shape
    mask_key = next((name for name in _mask_keys(key) if name in arrays), None)
    if mask_key is None:
        return np.ones(shape, bool)
    mask = arrays[mask_key]
    expected = "expected booleans, true where observed"
    if mask.shape != shape:
        raise InputError(
            f"{source}: {mask_key} is {size(mask.shape)} and {key} {size(shape)}; a mask has "
            "the shape of its counts"
        )
    if mask.dtype.kind not in "biu":
        raise InputError(f"{source}: {mask_key} holds {mask.dtype}; {expected}")
    observed = np.empty(shape, bool)
    for rows, block in mask.blocks():
        if not ((block == 0) | (block == 1)).all():
            raise InputError(f"{source}: {mask_key} holds values other than 0 and 1; {expected}")
        observed[rows] = block
    return observed


def _check_values(
    source: str, key: str, values: np.ndarray, first_trial: int, observation: Observation
) -> None:
    for what, bad in observation.invalid(values):
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            value = values[at]
            at = (at[0] + first_trial, *at[1:])
            raise InputError(
                f"{source}: {key} holds {what}, {value:g} at trial, bin, neuron {at}; expected "
                f"{observation.expected}"
            )


def _check_recon(source, arrays, key, recon, counts, observed, observation) -> None:
    """Refuse targets that differ from the inputs: here a model reconstructs what it is given."""
    shape = arrays[recon].shape
    same = shape == counts.shape
    if same:
        others, seen = _read_counts(source, arrays, recon, observation)
        same = np.array_equal(others, counts) and np.array_equal(seen, observed)
    if not same:
        raise InputError(
            f"{source}: {recon} ({size(shape)}) differs from {key} ({size(counts.shape)}); "
            "points that are reconstructed but never given as input are not supported: keep "
            "one of the two, for training and validation alike"
        )


def _split(source, arrays: Arrays, shapes, valid_fraction: float, seed: int):
    """Training and validation trials, in the order of the arrays."""
    trials = shapes[0][0]
    if len(shapes) == 2:
        return np.split(np.arange(trials + shapes[1][0]), [trials])
    if trials < 2:
        raise InputError(f"{source}: spikes has {trials} trial; at least 2 are needed to split")
    condition = np.zeros(trials, int)
    if "condition" in arrays:
        given = arrays["condition"]
        if given.shape != (trials,) or given.dtype.hasobject:
            raise InputError(
                f"{source}: condition is {size(given.shape)} of {given.dtype}; expected a number "
                f"for each of {trials} trials"
            )
        condition = np.unique(given.whole(), return_inverse=True)[1]
    return split(condition, valid_fraction, seed)


def _with_rates(
    source, arrays: Arrays, keys: list[str], data: Dataset, rates_unit: str | None
) -> Dataset:
    """The data with the true rates of the arrays, if any, in expected counts per bin."""
    present = [key in arrays for key in keys]
    if not any(present):
        return data
    if not all(present):
        missing = keys[present.index(False)]
        raise InputError(f"{source}: no {missing}; true rates are needed for all trials or none")
    shapes = [arrays[key].shape for key in keys]
    together = (sum(shape[0] for shape in shapes if shape), *shapes[0][1:])
    if together != data.counts.shape or len({shape[1:] for shape in shapes}) > 1:
        raise InputError(
            f"{source}: true rates are {size(together)}; counts are {size(data.counts.shape)}"
        )
    rates = np.empty(data.counts.shape, np.float32)
    start = 0
    for key in keys:
        if not _is_real(arrays[key]):
            raise InputError(f"{source}: {key} holds {arrays[key].dtype}; expected rates")
        for rows, block in arrays[key].blocks():
            rates[start + rows.start : start + rows.stop] = block
        start += arrays[key].shape[0]
    np.copyto(rates, 0, where=~data.inside)
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise InputError(f"{source}: true rates hold negative or non-finite values")

    points = data.observed.sum()
    mean_count = data.counts.sum(dtype=np.float64) / points
    mean_rate = rates.sum(where=data.observed, dtype=np.float64) / points
    if mean_rate == 0:
        raise InputError(f"{source}: true rates are 0 at all observed points, and counts are not")
    ratio = mean_rate / mean_count
    factor, by, notes = _conversion_factor(source, arrays, rates_unit, data.bin_width, ratio)
    tolerance = max(RATE_TOLERANCE, 2 / np.sqrt(mean_count * points))
    if abs(ratio / factor - 1) > tolerance:
        units = ", ".join(f"{unit} {f:.4g}" for unit, f in _units(data.bin_width).items())
        raise InputError(
            f"{source}: true rates are {ratio / factor:.3g} times the counts on average, with "
            f"{by}; a conversion_factor of {ratio:.4g} would fit (bins of {data.bin_width:g} s: "
            f"{units})"
        )
    rates /= factor
    return replace(data, rates=rates, notes=notes)


def _units(bin_width: float) -> dict[str, float]:
    """What expected counts per bin are multiplied by to give each unit."""
    return {"counts/bin": 1.0, "spikes/s": 1 / bin_width, "spikes/ms": 1e-3 / bin_width}


def _conversion_factor(
    source, arrays: Arrays, rates_unit: str | None, bin_width: float, ratio: float
) -> tuple[float, str, tuple[str, ...]]:
    """True rates per expected count, what says so, and a note if it was assumed."""
    if "conversion_factor" in arrays:
        factor = _positive(source, arrays, "conversion_factor", 1.0)
        return factor, f"the file's conversion_factor {factor:g}", ()
    units = _units(bin_width)
    if rates_unit is not None:
        return units[rates_unit], f"data.rates_unit {rates_unit}", ()
    unit = min(units, key=lambda unit: abs(math.log(ratio / units[unit])))
    note = (
        f"true rates are assumed to be in {unit}: they are {ratio:.3g} times the counts on "
        f"average, where {unit} would be {units[unit]:.3g} times (set data.rates_unit if that is "
        "wrong)"
    )
    return units[unit], f"the unit assumed, {unit}", (note,)


def _in_recorded_order(source, arrays: Arrays, data: Dataset) -> Dataset:
    """Trials ordered by the numbers that the arrays give them, if they do."""
    keys = [f"{name}_inds" for name in SPLITS if f"{name}_inds" in arrays]
    if not keys or "spikes" in arrays:
        return data
    if len(keys) == 1:
        raise InputError(f"{source}: has {keys[0]} alone; expected train_inds and valid_inds")
    numbers = []
    for key, trials in zip(keys, (data.train, data.valid), strict=True):
        array = arrays[key]
        if array.shape != trials.shape or array.dtype.kind not in "iu":
            raise InputError(
                f"{source}: {key} is {size(array.shape)} of {array.dtype}; expected a whole "
                f"number for each of {len(trials)} trials"
            )
        numbers.append(array.whole())
    index = np.concatenate(numbers).astype(np.int64)
    order = np.argsort(index)
    if (np.diff(index[order]) == 0).any():
        raise InputError(f"{source}: train_inds and valid_inds name a trial twice")
    is_train = (np.arange(len(index)) < len(data.train))[order]
    numbered = replace(data, trial_index=index)
    return numbered.take_trials(order, np.flatnonzero(is_train), np.flatnonzero(~is_train))


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
    return replace(data.take_neurons(kept), dropped_neurons=tuple(sorted(set(dropped))))


def _without_unobserved_trials(source, data: Dataset) -> Dataset:
    kept = data.observed.any((1, 2))
    if kept.all():
        return data
    place = np.cumsum(kept) - 1
    train, valid = (place[t[kept[t]]] for t in (data.train, data.valid))
    if not (train.size and valid.size):
        raise InputError(
            f"{source}: {train.size} training and {valid.size} validation trials are left "
            "without the unobserved ones; both need some"
        )
    dropped = tuple(data.trial_numbers[~kept].tolist())
    return replace(data.take_trials(np.flatnonzero(kept), train, valid), dropped_trials=dropped)


def _positive(source, arrays: Arrays, key: str, default: float) -> float:
    """A positive number from the arrays, or the default if they have none by that name."""
    if key not in arrays:
        return default
    array = arrays[key]
    if math.prod(array.shape) != 1 or not _is_real(array):
        raise InputError(
            f"{source}: {key} is {size(array.shape)} of {array.dtype}; expected one positive number"
        )
    value = float(array.whole().item())
    if not 0 < value < math.inf:
        raise InputError(f"{source}: {key} is {value:g}; expected one positive number")
    return value


def _is_real(array: Array) -> bool:
    return array.dtype.kind in "iuf"
