"""True rates of a recording, if they are known, and the unit they are in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sbtt_jax.data import labels
from sbtt_jax.data.arrays import Arrays, size
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.observations import Observation

# The means of true rates and counts may differ by this fraction, or by two standard errors of the
# number of spikes if that is more.
RATE_TOLERANCE = 0.2


def with_rates(
    arrays: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    data: Dataset,
    rates_unit: str | None,
    observation: Observation,
) -> Dataset:
    """The data with the true rates of the arrays, if any, in expected counts per bin.

    shapes: of the counts of each split, by the key of its true rates.
    rates_unit: what they are in; None: what the arrays say, or the unit that fits the counts best.
      Expected values that may be negative are in the unit of the values.

    Raises InputError if they are there for some splits only, or cannot be rates of these counts.
    """
    missing = [key for key in shapes if key not in arrays]
    if len(missing) == len(shapes):
        return data
    if missing:
        raise arrays.error(f"no {missing[0]}; true rates are needed for all trials or none")
    scale = labels.positive(arrays, "conversion_factor", 1.0)
    rates = np.empty(data.counts.shape, np.float32)
    rest = rates
    for key, shape in shapes.items():
        array = labels.oriented(arrays, key)
        arrays.check(key, array.is_real and array.shape == shape, f"{size(shape)} true rates")
        fills = labels.fills(arrays, key)
        for rows, block in array.blocks():
            rest[rows] = np.where(labels.filled(block, fills), np.nan, block)
        rest = rest[shape[0] :]
    np.copyto(rates, 0, where=~data.inside)
    if not (np.isfinite(rates).all() and (observation.is_signed or (rates >= 0).all())):
        which = "" if observation.is_signed else "negative or "
        raise arrays.error(f"true rates hold {which}non-finite values, or fill values")
    said = _said_unit(arrays, list(shapes))
    if said is not None and rates_unit not in (None, said):
        raise arrays.error(f"true rates are in {said}, they say, and data.rates_unit {rates_unit}")
    points = data.observed.sum()
    mean_count = data.counts.sum(where=data.observed, dtype=np.float64) / points
    if observation.is_signed and (mean_count <= 0 or (rates < 0).any()):
        if (unit := said or rates_unit) not in (None, "counts/bin"):
            raise arrays.error(f"true rates are in {unit}; expected the unit of the values")
        return replace(data, rates=rates / np.float32(scale))

    mean_rate = rates.sum(where=data.observed, dtype=np.float64) / points
    if mean_rate == 0:
        raise arrays.error("true rates are 0 at all observed points, and counts are not")
    ratio, width = mean_rate / mean_count, data.bin_width
    # What expected counts per bin are multiplied by to give each unit.
    units = {"counts/bin": 1.0, "spikes/s": 1 / width, "spikes/ms": 1e-3 / width}
    if "conversion_factor" in arrays:
        factor, by = scale, f"the file's conversion_factor {scale:g}"
    elif rates_unit is not None:
        factor, by = units[rates_unit], f"data.rates_unit {rates_unit}"
    elif said is not None:
        factor, by = units[said], f"the unit that they say, {said}"
    else:
        unit = min(units, key=lambda unit: abs(math.log(ratio / units[unit])))
        factor, by = units[unit], f"the unit assumed, {unit}"
        arrays.notes.append(
            f"true rates are assumed to be in {unit}: they are {ratio:.3g} times the counts on "
            f"average, where {unit} would be {factor:.3g} times (set data.rates_unit if that is "
            "wrong)"
        )
    if abs(ratio / factor - 1) > max(RATE_TOLERANCE, 2 / np.sqrt(mean_count * points)):
        raise arrays.error(
            f"true rates are {ratio / factor:.3g} times the counts on average, with {by}; a "
            f"conversion_factor of {ratio:.4g} would fit (bins of {width:g} s: "
            f"{', '.join(f'{unit} {f:.4g}' for unit, f in units.items())})"
        )
    return replace(data, rates=rates / np.float32(factor))


def _said_unit(arrays: Arrays, keys: Sequence[str]) -> str | None:
    units = set()
    for key in keys:
        if said := labels.unit_of(arrays[key].says):
            if said not in labels.RATES:
                known = ", ".join(dict.fromkeys(labels.RATES.values()))
                raise arrays.error(f"{key} is in {said!r}, it says; expected one of {known}")
            units.add(labels.RATES[said])
    if len(units) > 1:
        raise arrays.error(f"{' and '.join(keys)} are in {' and '.join(sorted(units))}, they say")
    return units.pop() if units else None
