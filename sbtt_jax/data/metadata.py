"""What arrays say of each neuron, of the axis of time and of each trial: names, times, numbers,
conditions. What does not fit raises InputError."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Shaped

from sbtt_jax.data import labels, layout
from sbtt_jax.data.arrays import Arrays, size
from sbtt_jax.data.dataset import Trials

Splits = Mapping[str, Trials]  # the trials of each part that arrays hold, by its split


def unit_id(arrays: Arrays, neurons: int) -> Shaped[np.ndarray, " neuron"] | None:
    """A number or name for each neuron, if the arrays have them."""
    if "unit_id" not in arrays:
        return None
    array, expected = arrays["unit_id"], f"a number or name for each of {neurons} neurons"
    sound = math.prod(array.shape) == neurons and not array.dtype.hasobject
    arrays.check("unit_id", sound, expected)
    found, known = labels.values(arrays, "unit_id")
    if found.dtype.kind != "U" and not known.all():
        where = f"unit_id is NaN or a fill value at {np.argmin(known)}"
        raise arrays.error(f"{where}; expected {expected}")
    if len(set(found.tolist())) < neurons:
        arrays.notes.append(
            "unit_id has one name for several neurons; their order tells them apart"
        )
    return found


def time(arrays: Arrays, bins: int) -> tuple[float, Float[np.ndarray, " bin"] | None]:
    """The time of the first bin, in seconds, 0 if nothing says it; and of each, if all are said."""
    if "time_start" not in arrays:
        return 0.0, None
    array = arrays["time_start"]
    arrays.check("time_start", math.prod(array.shape) == 1, "one finite number")
    each = array.says.get(labels.TIMES)
    is_whole = each is not None and len(each) == bins
    return float(_seconds(arrays, "time_start").item()), each if is_whole else None


def trial_start(arrays: Arrays, trials: Splits) -> Float[np.ndarray, " trial"] | None:
    """When each trial began, in seconds; None if nothing says it."""
    if not _has_each(arrays, "trial_start", trials):
        return None
    return _seconds(arrays, "trial_start")


def trial_id(arrays: Arrays, trials: Splits) -> Int[np.ndarray, " trial"] | None:
    """The number of each trial in the recording, if it has its own and nothing else numbers them in
    splits."""
    count = _count(trials)
    if "trial_id" in arrays and layout.WHOLE not in trials:
        shape = arrays.get("trial_id").shape
        reason = f"it is {size(shape)}, and there are {count} trials"
        if has := any(f"{split}_inds" in arrays for split in layout.SPLITS):
            reason = "train_inds and valid_inds number the trials"
        if has or math.prod(shape) != count:
            arrays.notes.append(f"trial_id is not read, since {reason}")
            return None
    if not _has_each(arrays, "trial_id", trials):
        return None
    numbers = labels.whole_numbers(arrays, "trial_id")
    expected = f"a whole number for each of {count} trials"
    arrays.check("trial_id", numbers is not None, expected)
    return numbers


def condition(
    arrays: Arrays, name: str | None, trials: Splits
) -> tuple[Int[np.ndarray, " trial"] | None, Shaped[np.ndarray, " condition"] | None]:
    """The condition of each trial, numbered from 0, -1 where it is not known (NaN, or an empty
    text), and what the source calls each; None if there are none. name: as of `data.condition`."""
    key = name or "condition"
    if "condition" in arrays and arrays.get("condition").says.get(labels.COLUMN) == name:
        key = "condition"
    if key not in arrays:
        if name is not None:
            there = ", ".join(sorted(arrays))
            raise arrays.error(f"no array {name!r}, which data.condition names; there are {there}")
        return None, None
    given, count = arrays[key], _count(trials)
    # Test trials beside trials to be split have none of their own.
    expected = len(trials.get(layout.WHOLE, range(count)))
    sound = max(given.shape, default=0) == expected == math.prod(given.shape)
    sound = sound and not given.dtype.hasobject
    arrays.check(key, sound, f"a number or name for each of {expected} trials")
    values, known = labels.values(arrays, key)
    if values.dtype.kind == "U" and (values == "nan").any():  # as NumPy writes NaN among texts
        known &= values != "nan"
        arrays.notes.append(f'{key} is taken as not known where it is "nan"')
    if not known.any():
        raise arrays.error(f"{key} is missing in all trials; leave it out")
    names, groups = np.unique(values[known], return_inverse=True)
    every = np.full(count, -1)
    every[:expected][known] = groups
    return every, names


def _count(trials: Splits) -> int:
    return sum(map(len, trials.values()))


def _has_each(arrays: Arrays, key: str, trials: Splits) -> bool:
    """Whether the arrays have a value for each trial; not if there are none for test_data."""
    if key not in arrays:
        return False
    own, count = math.prod(arrays[key].shape), _count(trials)
    if own == len(trials.get(layout.WHOLE, ())) < count:
        arrays.notes.append(f"{key} is not read, since trials of test_data have none")
        return False
    arrays.check(key, own == count, f"a number for each of {count} trials")
    return True


def _seconds(arrays: Arrays, key: str) -> Float[np.ndarray, " time"]:
    """The times of a small array, all of them finite."""
    found, known = labels.values(arrays, key)
    sound = found.dtype.kind in "iuf" and (known & np.isfinite(found)).all()
    arrays.check(key, bool(sound), "finite numbers")
    return found.astype(np.float64) * labels.scale_to_seconds(arrays, key)
