"""What a source says about an array beside its numbers: names of axes, units, values that stand for
nothing. It is used or refused, never ignored."""

import datetime
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sbtt_jax.data.arrays import Array, Arrays

# Names of each axis, without a plural s.
AXES = {
    "trial": {"trial", "epoch", "sweep", "repetition", "repeat", "presentation"},
    "bin": {"bin", "time", "t", "time_bin", "timebin", "timestep", "sample", "frame"},
    "neuron": {"neuron", "unit", "cell", "channel", "electrode", "roi", "unit_id", "neuron_id"},
}
OF_SPLITS = {"train", "valid", "test"}  # what a name of an axis may say beside its meaning
SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3}
SECONDS |= {"us": 1e-6, "µs": 1e-6, "microsecond": 1e-6, "ns": 1e-9, "nanosecond": 1e-9}
SECONDS |= {"min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "day": 86400.0}
COUNTS = {"", "1", "dimensionless"}
COUNTS |= {"count", "counts", "spike", "spikes", "spike count", "spike counts"}
COUNTS |= {"count/bin", "counts/bin", "spike/bin", "spikes/bin"}
RATES = {  # other names of the units that data.rates_unit can have
    **dict.fromkeys(("counts/bin", "count/bin", "spikes/bin", "spike/bin", "1"), "counts/bin"),
    **dict.fromkeys(("spikes/s", "spike/s", "spikes/sec", "spikes/second"), "spikes/s"),
    **dict.fromkeys(("counts/s", "hz", "1/s", "s-1"), "spikes/s"),
    **dict.fromkeys(("spikes/ms", "spike/ms", "counts/ms", "khz", "1/ms"), "spikes/ms"),
}
FILLS = "_FillValue", "missing_value"
PACKING = {"scale_factor": 1, "add_offset": 0}
LIMITS = "valid_min", "valid_max", "valid_range", "_Unsigned"
TIMES = "times of bins"  # what time_start says: those of all of them, where the source has them
COLUMN = "column"  # what condition says: the column of a table that it was
UNREADABLE = "(unreadable)"


def oriented(arrays: Arrays, key: str) -> Array:
    """The array with its axes in the order trial, bin, neuron, if the source names them.

    Raises InputError for names that say nothing, and for values that are not meant as they stand.
    """
    array = meant(arrays, key)
    if array.axes is None or not any(array.axes):
        return array
    order = axes_order(array.axes)
    if order is None or len(order) != len(array.shape):
        names = ", ".join(map(str, array.axes))
        rule = "expected trial, bin (or time) and neuron (or unit), in any order, or no names"
        raise arrays.error(f"the axes of {key} are named {names}; {rule}")
    return array.transposed(order)


def meant(arrays: Arrays, key: str) -> Array:
    """The array, if its values are meant as they stand; otherwise InputError."""
    array = arrays[key]
    for name, neutral in PACKING.items():
        if name in array.says and (_numbers(arrays, key, name) != neutral).any():
            raise arrays.error(f"{key} is packed ({name} {array.says[name]}); write it unpacked")
    if limit := next((name for name in LIMITS if name in array.says), None):
        says, remedy = f"{limit} {array.says[limit]}", "write NaN for what is not, without limits"
        raise arrays.error(f"{key} says which of its values are valid ({says}); {remedy}")
    return array


def values(arrays: Arrays, key: str) -> tuple[np.ndarray, Bool[np.ndarray, " value"]]:
    """The values of a small array in a row, and which of them stand for something: not those that
    are NaN, an empty text, or what the source says is a fill."""
    found = texts(meant(arrays, key).whole().ravel())
    known = found == found
    if found.dtype.kind == "U":
        return found, found != ""
    if found.dtype.kind in "biuf":
        known &= ~filled(found, fills(arrays, key))
    return found, known


def whole_numbers(arrays: Arrays, key: str) -> Int[np.ndarray, " value"] | None:
    """The values of a small array, which may be stored as real numbers; None if they are others."""
    found, known = values(arrays, key)
    is_number = found.dtype.kind in "iuf" and known.all()
    return found.astype(np.int64) if is_number and (found == np.round(found)).all() else None


def axes_order(names: Sequence[Any]) -> list[int] | None:
    """Where trial, bin and neuron (or bin and neuron alone) are among axes of these names; None if
    the names do not say. An axis without a name is what it is where no axis has one."""
    unnamed = list(AXES)[-len(names) :]
    meanings = [axis(name) or unnamed[i % len(unnamed)] for i, name in enumerate(names)]
    wanted = [name for name in AXES if name in meanings]
    if sorted(meanings, key=str) != sorted(wanted) or wanted[-2:] != ["bin", "neuron"]:
        return None
    return [meanings.index(name) for name in wanted]


def axis(name: Any) -> str:
    """What a name of an axis means: trial, bin or neuron; another name as it is."""
    plain = "_".join(w for w in str(name).strip().lower().split("_") if w not in OF_SPLITS)
    both = {plain, plain.removesuffix("s")}
    return next((meaning for meaning, names in AXES.items() if both & names), plain)


def fills_of_counts(arrays: Arrays, key: str) -> list[float]:
    """Values that the source says stand for nothing observed.

    Raises InputError if they have a unit that counts cannot have.
    """
    unit = unit_of(arrays[key].says)
    if unit is not None and unit not in COUNTS:
        raise arrays.error(f"{key} is in {unit!r}, it says; expected counts per bin")
    return fills(arrays, key)


def filled(values: np.ndarray, fills: Sequence[float]) -> Bool[np.ndarray, "..."]:
    """Where values are one of the fills, which a source may have in a finer type."""
    found = np.zeros(values.shape, bool)
    for fill in fills:
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                fill = values.dtype.type(fill)
        found |= values == fill
    return found


def fills(arrays: Arrays, key: str) -> list[float]:
    """Values that the source says stand for nothing."""
    says = arrays[key].says
    return [fill for name in FILLS if name in says for fill in _numbers(arrays, key, name).tolist()]


def _numbers(arrays: Arrays, key: str, name: str) -> np.ndarray:
    """What the source says by that name about an array, which is numbers."""
    said = arrays[key].says[name]
    try:
        return np.ravel(np.asarray(said, np.float64))
    except (TypeError, ValueError, OverflowError):
        raise arrays.error(f"{key} has the {name} {said!r}; expected a number") from None


def unit_of(says: Mapping[str, Any]) -> str | None:
    """The unit that a source gives, in lower case."""
    unit = next((says[name] for name in ("units", "unit") if says.get(name) is not None), None)
    if unit is None:
        return None
    unit = str(unit).strip().lower().replace(" per ", "/")
    return unit.removeprefix("1.0 ").removeprefix("1 ")  # as quantities writes it


def scale_to_seconds(arrays: Arrays, key: str) -> float:
    """What to multiply a time by; InputError if the source gives a unit that is no time."""
    try:
        return second_scale(key, unit_of(arrays[key].says))
    except ValueError as error:
        raise arrays.error(str(error)) from None


def second_scale(what: str, unit: str | None) -> float:
    """Seconds in a unit of time by its name; 1 if there is none; ValueError if it is no time."""
    if not unit:
        return 1.0
    unit = unit.partition(" since ")[0]  # a moment, as netCDF files have it
    scale = SECONDS.get(unit, SECONDS.get(unit.removesuffix("s")))
    if scale is None:
        raise ValueError(f"{what} is in {unit!r}, it says; expected a time, such as s or ms")
    return scale


def positive(arrays: Arrays, key: str, default: float) -> float:
    """A positive number from the arrays, or the default if they have none by that name.

    Raises InputError if it is something else, or is not meant as it stands.
    """
    if key not in arrays:
        return default
    array, expected = arrays[key], "one positive number"
    arrays.check(key, math.prod(array.shape) == 1 and array.is_real, expected)
    value = float(array.whole().item())
    if not 0 < value < math.inf:
        raise arrays.error(f"{key} is {value:g}; expected {expected}")
    if not values(arrays, key)[1].all():
        raise arrays.error(f"{key} is its fill value, {value:g}; expected {expected}")
    return value


def said_width(says: Mapping[str, Any]) -> Array | None:
    """The width of a bin in attributes, with its unit; None if they say none."""
    if "bin_width" not in says:
        return None
    unit = says.get("bin_width_unit", says.get("bin_width_units"))
    return Array(np.asarray(says["bin_width"]), {"units": unit})


def bin_width(arrays: Arrays) -> float | None:
    """The width of a bin in seconds, if the source says it; InputError if that is no time."""
    if "bin_width" not in arrays:
        return None
    return positive(arrays, "bin_width", 0.0) * scale_to_seconds(arrays, "bin_width")


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
    """Plain numbers of seconds, from timedeltas, from quantities as of pint, quantities or astropy,
    and from labelled arrays that say their unit; other things as they are.

    Raises ValueError if the unit is no time.
    """
    says = getattr(value, "attrs", None)
    if isinstance(says, Mapping) and (unit := unit_of(says)):
        return np.asarray(value, np.float64) * second_scale("a time", unit)
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind == "m":
        return np.asarray(value) / np.timedelta64(1, "s")
    if kind == "M":
        raise ValueError("times are dates; expected seconds from one moment for all")
    methods = {"rescale": "s", "to_value": "s", "to": "second"}
    method = next((name for name in methods if hasattr(value, name)), None)
    if method is None or not (hasattr(value, "units") or hasattr(value, "unit")):
        return value
    try:
        converted = getattr(value, method)(methods[method])
    except Exception:  # each library has its own
        unit = getattr(value, "units", getattr(value, "unit", None))
        raise ValueError(f"{unit} is no time; expected a unit such as s or ms") from None
    return np.asarray(getattr(converted, "magnitude", converted))


def same_width(one: float, other: float) -> bool:
    """Whether bins are as wide, but for what a file rounds its times to."""
    return abs(one / other - 1) <= 1e-3


def ids(values: np.ndarray) -> list[int | str]:
    """Names of neurons as plain values that can be compared, whatever they were stored as."""
    found = np.asarray(values).ravel().tolist()
    return [int(one) if isinstance(one, Real) and one % 1 == 0 else str(one) for one in found]


def order_of(found: np.ndarray, wanted: Sequence[int | str]) -> list[int]:
    """Where each wanted neuron is among those found, by their names; -1 if it is not there.

    Raises ValueError if none is, or neurons of one name would have to be put in another order.
    """
    there, wanted = list(map(str, ids(found))), list(map(str, wanted))
    if there == wanted:
        return list(range(len(there)))
    for names, what in ((there, "unit_id"), (wanted, "what the model was trained on")):
        if twice := [name for name in wanted if names.count(name) > 1]:
            many = f"{what} has {twice[0]} {names.count(twice[0])} times"
            reason = "so neurons cannot be put in the order that the model was trained on"
            raise ValueError(f"{many}, {reason}")
    place = {name: i for i, name in enumerate(there)}
    if not place.keys() & set(wanted):
        some = [", ".join(names[:5]) for names in (there, wanted)]
        raise ValueError(f"unit_id has {some[0]}, ..., and the model was trained on {some[1]}, ...")
    return [place.get(name, -1) for name in wanted]


def texts(values: Any) -> np.ndarray:
    """An array; one of bytes, or of objects that are all texts or numbers, as of NumPy's own."""
    values = np.asarray(values)
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "backslashreplace")
    if values.dtype.kind not in "OT":
        return values
    if all(isinstance(one, str) for one in values.flat):
        return values.astype(str)
    is_numbers = all(isinstance(one, Real) for one in values.flat)
    return np.array(values.tolist()) if is_numbers else values


def plain(says: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of an HDF5 object as Python values; what cannot be read is said to be so."""
    found = {}
    for name in says:
        try:
            value = says[name]
        except (OSError, TypeError, ValueError, RuntimeError):
            value = UNREADABLE
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "SO":
            value = value.item()  # as MATLAB writes a text
        found[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found
