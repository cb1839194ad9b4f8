"""From named arrays to a `Dataset`, with every check on what a user hands in.

Each error says which array of which source is wrong, where, and what would be right.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Num, Shaped

from sbtt_jax.data import readers
from sbtt_jax.data.dataset import SPLITS, Dataset, Mask, check_memory, split
from sbtt_jax.data.readers import Array, Arrays, size
from sbtt_jax.observations import POISSON, Observation

# The means of true rates and counts may differ by this fraction, or by two standard errors of the
# number of spikes if that is more.
RATE_TOLERANCE = 0.2

Given = Shaped[np.ndarray, "..."]
Counts = Num[np.ndarray, "trial bin neuron"]


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

    Other arguments and errors are those of `assemble`.
    """
    with readers.opened(path) as arrays:
        return assemble(arrays, bin_width=bin_width, **how)


def from_arrays(spikes: Given, *, condition: Given | None = None, **how: Any) -> Dataset:
    """A recording from counts, NaN where not observed; other arguments and errors as `assemble`."""
    arrays = {"spikes": Array(spikes)}
    if condition is not None:
        arrays["condition"] = Array(condition)
    return assemble(Arrays("array", arrays), **how)


def counts_of(spikes: Given, observation: Observation = POISSON) -> tuple[Counts, Mask]:
    """Counts, NaN where not observed, as values and a mask; InputError if some are not valid."""
    return _read_counts(Arrays("array", {"spikes": Array(spikes)}), "spikes", observation)


def assemble(
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

    bin_width: seconds. observation: says which values are valid. The other arguments are the
    settings of the same names, `config.DataSettings`.

    Raises InputError, naming the source, the array and what was expected of it.
    """
    keys = _layout(arrays)
    bin_width = _positive(arrays, "bin_width", bin_width)
    parts = [_read_counts(arrays, key, observation) for key in keys]
    shapes = {key: counts.shape for key, (counts, _) in zip(keys, parts, strict=True)}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        sizes = " and ".join(f"{key} is {size(shape)}" for key, shape in shapes.items())
        raise arrays.error(f"{sizes}; bins and neurons must agree")
    counts, observed = (np.concatenate(part) for part in zip(*parts, strict=True))
    del parts  # a second copy of everything
    if not counts.any():
        raise arrays.error("not one spike among the observed points; nothing to learn from")
    trials = [shape[0] for shape in shapes.values()]
    condition = _condition(arrays, sum(trials))
    if len(trials) == 2:
        train, valid = np.split(np.arange(sum(trials)), trials[:1])
    elif sum(trials) < 2:
        raise arrays.error(f"spikes has {sum(trials)} trial; at least 2 are needed to split")
    else:
        groups = np.zeros(sum(trials), int) if condition is None else condition
        train, valid = split(groups, valid_fraction, seed)
    data = Dataset(counts, observed, train, valid, bin_width, condition=condition)
    data = _with_rates(arrays, {keys[key]: shapes[key] for key in keys}, data, rates_unit)
    data = _without_neurons(arrays, _in_recorded_order(arrays, data), drop_neurons)
    return _without_unobserved_trials(arrays, data) if drop_unobserved_trials else data


def _layout(arrays: Arrays) -> dict[str, str]:
    """The key of each split's counts, with that of its true rates."""
    layout = {}
    if "spikes" in arrays:
        layout["spikes"] = "rates" if "rates" in arrays else "truth"
    for name in SPLITS if not layout else ():
        keys = [f"{name}_{kind}" for kind in ("data", "encod_data", "recon_data")]
        key = next((key for key in keys if key in arrays), None)
        if key is None:
            raise arrays.error(
                f"no {name}_data; expected train_data and valid_data, or spikes (the file holds "
                f"{', '.join(sorted(arrays)) or 'nothing'})"
            )
        layout[key] = f"{name}_truth"
    # Ignoring a mask would turn what was not observed into silence.
    masks = {key for key in arrays if key.split("_")[-1] == "mask"}
    if unused := sorted(masks.difference(*map(_mask_keys, layout))):
        first, names = next(iter(layout)), ", ".join(layout)
        raise arrays.error(f"{unused[0]} belongs to none of {names}; expected {first}_mask")
    return layout


def _mask_keys(key: str) -> list[str]:
    return [f"{key}_mask", "mask" if key == "spikes" else f"{key.split('_')[0]}_mask"]


def _read_counts(arrays: Arrays, key: str, observation: Observation) -> tuple[Counts, Mask]:
    """The values of one split, in the smallest type that holds them, and where observed."""
    array = arrays[key]
    if len(array.shape) != 3 or 0 in array.shape:
        shape = size(array.shape)
        raise arrays.error(f"{key} is {shape}; expected trial x bin x neuron, none of them 0")
    arrays.check(key, array.is_real, observation.expected)
    check_memory(f"{arrays.source}: {key} declares", array.shape)

    observed = _read_mask(arrays, key)
    counts = np.zeros(array.shape, observation.dtype)
    for rows, block in array.blocks():
        if block.dtype.kind == "f":
            observed[rows] &= ~np.isnan(block)
        values = np.where(observed[rows], block, observation.fill)
        for what, bad in observation.invalid(values):
            if bad.any():
                trial, bin_, neuron = np.argwhere(bad)[0].tolist()
                raise arrays.error(
                    f"{key} holds {what}, {values[trial, bin_, neuron]:g} at trial, bin, neuron "
                    f"{(trial + rows.start, bin_, neuron)}; expected {observation.expected}"
                )
        if counts.dtype == np.uint8 and values.max() > 255:
            counts = counts.astype(np.uint16)
        counts[rows] = values

    recon = key.replace("encod", "recon")
    if recon != key and recon in arrays:  # here a model reconstructs what it is given
        shape = arrays[recon].shape
        if shape != counts.shape or not all(
            map(np.array_equal, _read_counts(arrays, recon, observation), (counts, observed))
        ):
            raise arrays.error(
                f"{recon} ({size(shape)}) differs from {key} ({size(counts.shape)}); points to "
                "reconstruct that are never given as input are not supported: keep one of the two, "
                "for training and validation alike"
            )
    return counts, observed


def _read_mask(arrays: Arrays, key: str) -> Mask:
    """Where the mask in the file says that values were observed; everywhere if there is none."""
    shape = arrays[key].shape
    name = next((name for name in _mask_keys(key) if name in arrays), None)
    if name is None:
        return np.ones(shape, bool)
    mask, expected = arrays[name], f"{size(shape)} booleans, as {key}, true where observed"
    arrays.check(name, mask.shape == shape and mask.dtype.kind in "biu", expected)
    observed = np.empty(shape, bool)
    for rows, block in mask.blocks():
        if not ((block == 0) | (block == 1)).all():
            raise arrays.error(f"{name} holds values other than 0 and 1; expected {expected}")
        observed[rows] = block
    return observed


def _condition(arrays: Arrays, trials: int) -> Int[np.ndarray, " trial"] | None:
    """The condition of each trial, numbered from 0; None if there are none."""
    if "condition" not in arrays or "spikes" not in arrays:
        return None
    given = arrays["condition"]
    sound = given.shape == (trials,) and not given.dtype.hasobject
    arrays.check("condition", sound, f"a number for each of {trials} trials")
    return np.unique(given.whole(), return_inverse=True)[1]


def _with_rates(
    arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], data: Dataset, rates_unit: str | None
) -> Dataset:
    """The data with the true rates of the arrays, if any, in expected counts per bin.

    shapes: of the counts of each split, by the key of its true rates.
    """
    missing = [key for key in shapes if key not in arrays]
    if len(missing) == len(shapes):
        return data
    if missing:
        raise arrays.error(f"no {missing[0]}; true rates are needed for all trials or none")
    rates = np.empty(data.counts.shape, np.float32)
    rest = rates
    for key, shape in shapes.items():
        sound = arrays[key].is_real and arrays[key].shape == shape
        arrays.check(key, sound, f"{size(shape)} true rates, as there are counts")
        for rows, block in arrays[key].blocks():
            rest[rows] = block
        rest = rest[shape[0] :]
    np.copyto(rates, 0, where=~data.inside)
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise arrays.error("true rates hold negative or non-finite values")

    points = data.observed.sum()
    mean_count = data.counts.sum(dtype=np.float64) / points
    mean_rate = rates.sum(where=data.observed, dtype=np.float64) / points
    if mean_rate == 0:
        raise arrays.error("true rates are 0 at all observed points, and counts are not")
    ratio, notes, width = mean_rate / mean_count, (), data.bin_width
    # What expected counts per bin are multiplied by to give each unit.
    units = {"counts/bin": 1.0, "spikes/s": 1 / width, "spikes/ms": 1e-3 / width}
    if "conversion_factor" in arrays:
        factor = _positive(arrays, "conversion_factor", 1.0)
        by = f"the file's conversion_factor {factor:g}"
    elif rates_unit is not None:
        factor, by = units[rates_unit], f"data.rates_unit {rates_unit}"
    else:
        unit = min(units, key=lambda unit: abs(math.log(ratio / units[unit])))
        factor, by = units[unit], f"the unit assumed, {unit}"
        notes = (
            f"true rates are assumed to be in {unit}: they are {ratio:.3g} times the counts on "
            f"average, where {unit} would be {factor:.3g} times (set data.rates_unit if that is "
            "wrong)",
        )
    if abs(ratio / factor - 1) > max(RATE_TOLERANCE, 2 / np.sqrt(mean_count * points)):
        raise arrays.error(
            f"true rates are {ratio / factor:.3g} times the counts on average, with {by}; a "
            f"conversion_factor of {ratio:.4g} would fit (bins of {width:g} s: "
            f"{', '.join(f'{unit} {f:.4g}' for unit, f in units.items())})"
        )
    return replace(data, rates=rates / np.float32(factor), notes=notes)


def _in_recorded_order(arrays: Arrays, data: Dataset) -> Dataset:
    """Trials ordered by the numbers that the arrays give them, if they do."""
    keys = [key for key in ("train_inds", "valid_inds") if key in arrays]
    if not keys or "spikes" in arrays:
        return data
    if len(keys) == 1:
        raise arrays.error(f"has {keys[0]} alone; expected train_inds and valid_inds")
    numbers = []
    for key, trials in zip(keys, (data.train, data.valid), strict=True):
        sound = arrays[key].shape == trials.shape and arrays[key].dtype.kind in "iu"
        arrays.check(key, sound, f"a whole number for each of {len(trials)} trials")
        numbers.append(arrays[key].whole())
    index = np.concatenate(numbers).astype(np.int64)
    order = np.argsort(index)
    if (np.diff(index[order]) == 0).any():
        raise arrays.error("train_inds and valid_inds name a trial twice")
    train, valid = (np.flatnonzero(np.isin(order, trials)) for trials in (data.train, data.valid))
    return replace(data, trial_index=index).take_trials(order, train, valid)


def _without_neurons(arrays: Arrays, data: Dataset, dropped: Sequence[int]) -> Dataset:
    if not dropped:
        return data
    if (most := max(dropped)) >= data.neurons:
        rule = f"neurons are numbered from 0 to {data.neurons - 1}"
        raise arrays.error(f"data.drop_neurons has {most}; {rule}")
    kept = np.setdiff1d(np.arange(data.neurons), dropped)
    if not kept.size:
        raise arrays.error("data.drop_neurons leaves no neuron")
    return replace(data.take_neurons(kept), dropped_neurons=tuple(sorted(set(dropped))))


def _without_unobserved_trials(arrays: Arrays, data: Dataset) -> Dataset:
    kept = data.observed.any((1, 2))
    if kept.all():
        return data
    place = np.cumsum(kept) - 1
    train, valid = (place[t[kept[t]]] for t in (data.train, data.valid))
    if not (train.size and valid.size):
        left = f"{train.size} training and {valid.size} validation trials are left"
        raise arrays.error(f"{left} without the unobserved ones; both need some")
    dropped = tuple(data.trial_numbers[~kept].tolist())
    return replace(data.take_trials(np.flatnonzero(kept), train, valid), dropped_trials=dropped)


def _positive(arrays: Arrays, key: str, default: float) -> float:
    """A positive number from the arrays, or the default if they have none by that name."""
    if key not in arrays:
        return default
    array, expected = arrays[key], "one positive number"
    arrays.check(key, math.prod(array.shape) == 1 and array.is_real, expected)
    value = float(array.whole().item())
    if not 0 < value < math.inf:
        raise arrays.error(f"{key} is {value:g}; expected {expected}")
    return value
