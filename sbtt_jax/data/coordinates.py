"""What the axes of counts say: coordinate variables, and times, names and numbers in them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbtt_jax.data import labels
from sbtt_jax.data.arrays import Array, Arrays, size
from sbtt_jax.errors import InputError

Coordinates = dict[str, tuple[np.ndarray, str | None]]  # values along an axis, and their unit


def add(arrays: Arrays, keys: Sequence[str], bin_width: float | None) -> None:
    """Add bin_width, time_start, unit_id and trial_id as counts say them, in attributes and in
    coordinate variables: arrays with the names of the axes or, where these have none, trial, time
    and neuron.

    keys: of the counts of each split. bin_width: as the user says it, in seconds, by which times of
    no unit are understood.

    Raises InputError if neurons or times of the splits differ, bins are not evenly spaced, or they
    are of another width than is there already.
    """
    each = [_found(arrays, key) for key in keys]
    try:
        _check_alike(each)
        numbers = [
            values
            for found in each
            for name, (values, _) in found.items()
            if labels.axis(name) == "trial" and values.dtype.kind in "iuf"
        ]
        if len(numbers) == len(keys) > 1:
            together = np.concatenate(numbers)
            if len(np.unique(together)) == len(together) and (together % 1 == 0).all():
                arrays.setdefault("trial_id", Array(together))
        for key, found in zip(keys, each, strict=True):
            _add(arrays, found, arrays[key].says, bin_width)
    except InputError:  # which says where
        raise
    except ValueError as error:
        raise arrays.error(str(error)) from None


def _found(arrays: Arrays, key: str) -> Coordinates:
    """The values and units of the coordinate variables of an array, by name."""
    counts, found = arrays[key], {}
    usual = "trial", "time", "neuron"
    names = counts.axes or usual[-len(counts.shape) :]
    for axis, length in zip(names, counts.shape, strict=False):
        name = axis
        if labels.axis(axis) == "bin" and "time" in arrays and "time" not in names:
            along, name = arrays.get("time").axes, "time"
            if along and axis not in along:
                there = f"time lies along {', '.join(along)}, and is not read"
                arrays.notes.append(f"{there}; expected the time of each {axis}")
                name = axis
        if name not in arrays or name == key:
            continue
        if math.prod(arrays.get(name).shape) != length:  # not [name], which it would be read by
            meaning = labels.axis(name)
            what = {"bin": "time", "trial": "number"}.get(meaning, "name")
            there = f"{name} is {size(arrays.get(name).shape)}, and not read"
            arrays.notes.append(f"{there}; expected the {what} of each of {length} {meaning}s")
        else:
            array = labels.meant(arrays, name)
            if not str(array.says.get("NAME", "")).startswith("This is a netCDF dimension but"):
                found[name] = array.whole().ravel(), labels.unit_of(array.says)
    return found


def _check_alike(each: Sequence[Coordinates]) -> None:
    """Raise ValueError if coordinates of arrays that are to be joined along trials name neurons
    in different orders, or other ones, or are times of other bins."""
    first: dict[str, tuple[str, np.ndarray]] = {}
    for name, (values, unit) in (item for found in each for item in found.items()):
        meaning, near, values = labels.axis(name), 0.0, _in_seconds(values)
        if meaning == "neuron":
            names = labels.ids(labels.texts(values))
            values, rule = np.array(names, str), "neurons in the same order"
        elif meaning == "bin" and values.dtype.kind in "iuf":
            values, rule = values * labels.second_scale(name, unit), "times"
            near = 1e-3 * np.abs(np.diff(values)).max(initial=0)
        else:
            continue
        other, expected = first.setdefault(meaning, (name, values))
        if values.shape != expected.shape:  # as the arrays are, then, which is refused
            continue
        differ = np.abs(values - expected) > near if near else values != expected
        if differ.any():
            at = int(differ.argmax())
            both = f"{other} and {name} differ ({expected[at]} and {values[at]} at {at})"
            raise ValueError(f"{both}; expected the same {rule} for all splits")


def _add(
    arrays: Arrays, coordinates: Coordinates, says: Mapping[str, Any], asked: float | None
) -> None:
    if (said := labels.said_width(says)) is not None:
        add_width(arrays, said, "an attribute")
    for name, (values, unit) in coordinates.items():
        meaning = labels.axis(name)
        if meaning == "neuron":
            arrays.setdefault("unit_id", Array(labels.texts(values)))
        elif meaning == "trial" and values.dtype.kind in "iuf" and (values % 1 == 0).all():
            arrays.setdefault("trial_id", Array(values))
        elif meaning == "trial":
            arrays.notes.append(f"{name} is not read, since it is not of whole numbers")
        elif meaning == "bin" and len(values) > 1:
            _add_times(arrays, name, values, unit, asked)


def _add_times(
    arrays: Arrays, name: str, values: np.ndarray, unit: str | None, asked: float | None
) -> None:
    scale = labels.second_scale(name, unit)
    step = regular_step(values)
    if step is None:
        rule = "expected the time of each bin, NaN counts where nothing was recorded"
        raise ValueError(f"{name} is not evenly spaced{_uneven(values)}; {rule}")
    if not unit and values.dtype.kind in "iuf":
        known = labels.bin_width(arrays) or asked
        if known is not None and labels.same_width(1e-3 * step, known):
            scale = 1e-3
        elif step == 1 and (known is None or not labels.same_width(step, known)):
            return  # bins are numbered
        elif step > 1 and known is None:
            remedy = "say its unit, or give bin_width in seconds"
            raise ValueError(f"{name} is in steps of {step:g} of no unit; {remedy}")
    width = _without_noise(step * scale, values, scale)
    add_width(arrays, Array(np.array(width)), name)
    times = (_in_seconds(values) * scale).astype(np.float64)
    arrays.setdefault("time_start", Array(times[0], {labels.TIMES: times}))


def _uneven(times: np.ndarray) -> str:
    """Where times are not, in words; nothing if they are no numbers."""
    if times.ndim != 1 or times.dtype.kind not in "iuf":
        return ""
    steps = np.diff(times.astype(np.float64))
    usual = float(np.median(steps))
    at = int(np.abs(steps - usual).argmax())
    return f" (in steps of {usual:g}, but {steps[at]:g} after {times[at]:g})"


def add_width(arrays: Arrays, said: Array, by: str) -> None:
    """Add the width of a bin, in seconds, that an array with its unit says, unless there is one.

    by: what says it. Raises ValueError if bins are of another width already, and InputError if it
    is no time.
    """
    width = labels.bin_width(Arrays(arrays.source, {"bin_width": said}))
    own = labels.bin_width(arrays)
    if own is not None and not labels.same_width(own, width):
        raise ValueError(f"bins are {width:g} s wide by {by}, and bin_width is {own:g} s")
    arrays.setdefault("bin_width", Array(np.array(width)))


def _without_noise(width: float, times: np.ndarray, scale: float) -> float:
    """The width as a short number of seconds, if times cannot tell it from that."""
    short = float(f"{width:.6g}")
    noise = 1e-9
    if times.dtype.kind == "f":
        noise += 4 * float(np.spacing(np.abs(times).max())) * scale
    # Otherwise, what is added up over a session would stray.
    is_same = abs(short - width) * len(times) <= noise
    return short if is_same else float(f"{width:.12g}")


def regular_step(times: np.ndarray) -> float | None:
    """The step of evenly spaced times, None if they are not."""
    times = _in_seconds(times)
    if times.ndim != 1 or len(times) < 2 or times.dtype.kind not in "iuf":
        return None
    steps = np.diff(times.astype(np.float64))
    step = (float(times[-1]) - float(times[0])) / (len(times) - 1)
    even = step > 0 and np.abs(steps - step).max() <= 1e-3 * step
    return step if even and math.isfinite(step) else None


def _in_seconds(times: np.ndarray) -> np.ndarray:
    """Dates as seconds since the first one, differences of dates as seconds; others as they are."""
    times = times - times[:1] if times.dtype.kind == "M" else times
    return times / np.timedelta64(1, "s") if times.dtype.kind == "m" else times
