"""What a source says about an array beside its numbers: names of axes, units, values that stand for
nothing. It is heeded or refused, never passed over."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbtt_jax.data.arrays import Array, Arrays

# Names of each axis, without a plural s.
AXES = {
    "trial": {"trial", "epoch", "sweep", "repetition", "repeat", "presentation"},
    "bin": {"bin", "time", "t", "time_bin", "timebin", "timestep", "sample"},
    "neuron": {"neuron", "unit", "cell", "channel", "electrode", "roi", "unit_id", "neuron_id"},
}
SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3}
SECONDS |= {"us": 1e-6, "µs": 1e-6, "microsecond": 1e-6, "min": 60.0, "minute": 60.0}
COUNTS = {"", "1", "dimensionless", "count", "counts", "spike", "spikes"}
COUNTS |= {"count/bin", "counts/bin", "spike/bin", "spikes/bin"}
RATES = {  # other names of the units that data.rates_unit can have
    **dict.fromkeys(("counts/bin", "count/bin", "spikes/bin", "spike/bin", "1"), "counts/bin"),
    **dict.fromkeys(("spikes/s", "spike/s", "hz", "1/s", "s-1"), "spikes/s"),
    **dict.fromkeys(("spikes/ms", "spike/ms", "khz", "1/ms"), "spikes/ms"),
}
FILLS = "_FillValue", "missing_value"
PACKING = {"scale_factor": 1, "add_offset": 0}


def oriented(arrays: Arrays, key: str) -> Array:
    """The array with its axes in the order trial, bin, neuron, if the source names them.

    Raises InputError for names that say nothing.
    """
    array = arrays[key]
    if array.axes is None or not all(array.axes):
        return array
    order = axes_order(array.axes)
    if order is None:
        names = ", ".join(map(str, array.axes))
        rule = "expected trial, bin (or time) and neuron (or unit), in any order, or no names"
        raise arrays.error(f"the axes of {key} are named {names}; {rule}")
    return array.transposed(order)


def axes_order(names: Sequence[Any]) -> list[int] | None:
    """Where trial, bin and neuron (or bin and neuron alone) are among axes of these names; None if
    the names do not say."""
    meanings = [axis(name) for name in names]
    wanted = [name for name in AXES if name in meanings]
    if sorted(meanings, key=str) != sorted(wanted) or wanted[-2:] != ["bin", "neuron"]:
        return None
    return [meanings.index(name) for name in wanted]


def axis(name: Any) -> str:
    """What a name of an axis means: trial, bin or neuron; another name as it is."""
    plain = str(name).strip().lower()
    both = {plain, plain.removesuffix("s")}
    return next((meaning for meaning, names in AXES.items() if both & names), plain)


def fills(arrays: Arrays, key: str) -> list[float]:
    """Values that the source says stand for nothing observed.

    Raises InputError if values are packed, or have a unit that counts cannot have.
    """
    says = arrays[key].says
    for name, neutral in PACKING.items():
        if name in says and float(np.ravel(says[name])[0]) != neutral:
            raise arrays.error(f"{key} is packed ({name} {says[name]}); write it unpacked")
    unit = unit_of(arrays[key])
    if unit is not None and unit not in COUNTS:
        raise arrays.error(f"{key} is in {unit!r}, it says; expected counts per bin")
    return [float(np.ravel(says[name])[0]) for name in FILLS if name in says]


def unit_of(array: Array) -> str | None:
    """The unit that the source gives, in lower case."""
    unit = next((array.says[name] for name in ("units", "unit") if name in array.says), None)
    return None if unit is None else str(unit).strip().lower()


def scale_to_seconds(arrays: Arrays, key: str) -> float:
    """What to multiply a time by; InputError if the source gives a unit that is no time."""
    unit = unit_of(arrays[key])
    if unit is None or unit == "":
        return 1.0
    scale = second_scale(unit)
    if scale is None:
        raise arrays.error(f"{key} is in {unit!r}, it says; expected a time, such as s or ms")
    return scale


def second_scale(unit: str) -> float | None:
    """Seconds in a unit of time by its name; None if it is none."""
    unit = unit.strip().lower()
    return SECONDS.get(unit, SECONDS.get(unit.removesuffix("s")))


def seconds(value: Any) -> float:
    """A time as a number of seconds, from a number, a timedelta or a quantity with a unit.

    Raises ValueError if it is none.
    """
    if isinstance(value, datetime.timedelta):  # pandas.Timedelta is one
        return value.total_seconds()
    if isinstance(value, np.timedelta64):
        return float(value / np.timedelta64(1, "s"))
    number = np.asarray(in_seconds(value))
    if number.shape not in ((), (1,)) or number.dtype.kind not in "iuf":
        raise ValueError(f"{value!r} is no time; expected a number of seconds")
    return float(number.item())


def in_seconds(value: Any) -> Any:
    """Plain numbers of seconds, from quantities as of pint, quantities or astropy; other things as
    they are.

    Raises ValueError if the unit is no time.
    """
    methods = {"rescale": "s", "to_value": "s", "to": "second"}
    method = next((name for name in methods if hasattr(value, name)), None)
    if method is None or not (hasattr(value, "units") or hasattr(value, "unit")):
        return value
    try:
        converted = getattr(value, method)(methods[method])
    except Exception as error:  # each library has its own
        raise ValueError(f"{value!r} is no time ({error})") from None
    return np.asarray(getattr(converted, "magnitude", converted))


def add_coordinates(arrays: Arrays, coordinates: Mapping[str, np.ndarray]) -> None:
    """Add what the coordinates of a labelled array say by the names of its axes: bin_width and
    time_start, unit_id, trial_id.

    Raises ValueError if bins are not evenly spaced, or of another width than is there already.
    """
    for name, values in coordinates.items():
        numbered = np.array_equal(values, np.arange(len(values)))
        if axis(name) == "neuron":
            arrays.setdefault("unit_id", Array(values))
        elif axis(name) == "trial" and not numbered and values.dtype.kind in "iu":
            arrays["trial_id"] = Array(values)
        elif axis(name) == "bin" and not numbered:
            step = regular_step(values)
            if step is None:
                raise ValueError(f"{name} is not evenly spaced; expected the time of each bin")
            width = float(arrays["bin_width"].whole()) if "bin_width" in arrays else step
            if abs(width / step - 1) > 1e-3:
                raise ValueError(f"{name} is in steps of {step:g} s, and bin_width is {width:g} s")
            arrays["bin_width"] = Array(np.array(width))
            if values.dtype.kind in "iuf":
                arrays["time_start"] = Array(np.array(float(values[0])))


def regular_step(times: np.ndarray) -> float | None:
    """The step of evenly spaced times, None if they are not."""
    if times.dtype.kind == "M":
        times = times - times[:1]
    if times.dtype.kind == "m":
        times = times / np.timedelta64(1, "s")
    if times.ndim != 1 or len(times) < 2 or times.dtype.kind not in "iuf":
        return None
    steps = np.diff(times.astype(np.float64))
    step = (float(times[-1]) - float(times[0])) / (len(times) - 1)
    even = step > 0 and np.abs(steps - step).max() <= 1e-3 * step
    return step if even and math.isfinite(step) else None


def plain(says: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of an HDF5 data set as Python values; those that cannot be read are left out."""
    found = {}
    for name in says:
        try:
            value = says[name]
        except (OSError, TypeError, ValueError, RuntimeError):
            continue
        found[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found
