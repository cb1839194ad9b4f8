"""From spike times to counts per bin, knowing when each neuron was observed.

Bin k of a window is the half-open interval from start + k * bin_width to start + (k + 1) *
bin_width. A spike as little before an edge as rounding can put it belongs to the bin that begins
there. A bin is observed if it lies wholly inside the times at which its neuron was; part of one
cannot be compared with whole ones.
"""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt

from sbtt_jax.data import labels
from sbtt_jax.data.arrays import check_memory, size
from sbtt_jax.errors import InputError

Given = Num[np.ndarray, "..."] | Sequence[Any]  # numbers, as arrays or as lists
Times = Given | Mapping[Any, Given]
Observed = Given | Mapping[Any, Given | None] | None  # as of `per_neuron`
Numbers = Float[np.ndarray, "..."]
Indices = Int[np.ndarray, " _"]
Inside = Bool[np.ndarray, "trial bin"]

WHOLE = 1e-6  # of a bin: a window that is as close to a whole number of bins holds that number
FEW, MANY = 0.02, 100  # share of so many spikes: as many in windows are said to be few
ALWAYS = np.array([[-np.inf, np.inf]])
ROUNDING = 1e-9  # seconds: what is as close as this to a bin's edge is at the edge
MOST = 0.1  # of a bin: times that are rounded to more have lost where they are


def bin_spikes(
    spike_times: Times,
    windows: Given,
    bin_width: Any,
    observed: Observed = None,
) -> Float[np.ndarray, "trial bin neuron"]:
    """Spike counts in bins of windows, NaN where a neuron was not observed or a window has ended.

    spike_times: seconds, in any order, one 1-D array per neuron; or a mapping from neurons' names.
    windows: trial x 2, seconds at which each trial starts and ends; windows may differ in length,
      and what is left after the last whole bin is not used.
    bin_width: seconds, as a number, a timedelta or a quantity with a unit. A spike belongs to the
      bin that begins at it, also if it is before the edge by no more than times are rounded to:
      1 ns, and a few steps between numbers of their size.
    observed: when neurons were observed, as intervals x 2 seconds, for all neurons or a list or
      mapping with those of each (None: always; an empty array: never). One interval of a neuron may
      be a pair, but in a list of one pair for each neuron, which could also be intervals for all.
      Intervals may touch and overlap.

    Raises InputError for values that are not finite, windows that end before they start or hold no
    whole bin, arrays of other shapes, and more than 65535 spikes in a bin.
    """
    counts, seen = count_spikes(spike_times, windows, bin_width, observed)
    values = counts.astype(np.float32)  # holds every count exactly
    np.copyto(values, np.nan, where=~seen)
    return values


def count_spikes(
    spike_times: Times,
    windows: Given,
    bin_width: Any,
    observed: Observed = None,
    called: str = "windows",
) -> tuple[UInt[np.ndarray, "trial bin neuron"], Bool[np.ndarray, "trial bin neuron"]]:
    """Counts, 0 where not observed, in the smallest type that holds them, and where observed.

    Arguments and errors as `bin_spikes`; called: the name of the windows in errors.
    """
    named = isinstance(spike_times, Mapping)
    names = list(spike_times) if named else list(range(len(spike_times)))
    if not names:
        raise InputError("spike_times holds no neuron; give an array of seconds for each")
    stored, bin_width = windows, positive_seconds("bin_width", bin_width)
    windows = _seconds(called, windows, 2)
    bins = whole_bins(stored, bin_width)
    if (bins < 1).any():
        raise _no_bin(called, int(np.argmin(bins)), *windows[np.argmin(bins)].tolist(), bin_width)
    start, end = windows[:, 0], np.minimum(windows[:, 1], windows[:, 0] + bins * bin_width)
    shape = len(windows), int(bins.max()), len(names)
    check_memory(f"{called} and bin_width ask for", shape)

    seen, last = np.empty(shape, bool), None
    for i, intervals in enumerate(per_neuron(observed, names)):
        intervals = ALWAYS if intervals is None else intervals
        if last is None or not np.array_equal(intervals, last):  # they are often the same
            inside, last = _inside(intervals, start, end, bins, bin_width), intervals
        seen[..., i] = inside

    counts, least = np.zeros(shape, np.uint8), rounding(stored, bin_width)
    for i, name in enumerate(names):
        what, own = f"spike_times of neuron {name}", spike_times[name if named else i]
        times = _seconds(what, own, 1)
        times = times + max(least, rounding(own, bin_width))
        if (times[1:] < times[:-1]).any():
            times = np.sort(times)
        trial, spike = _ranges(np.searchsorted(times, start), np.searchsorted(times, end))
        cell = trial * shape[1] + bin_of(times[spike], start[trial], bin_width)
        first = np.flatnonzero(np.diff(cell, prepend=-1))  # spikes of a bin are neighbours
        trial, bin_ = np.divmod(cell[first], shape[1])
        number = np.diff(first, append=cell.size) * seen[trial, bin_, i]
        if (most := number.max(initial=0)) > 65535:
            at = number.argmax()
            where = f"trial {trial[at]}, bin {bin_[at]}"
            raise InputError(f"{what}: {most} spikes in {where}; give a smaller bin_width")
        if most > 255 and counts.dtype == np.uint8:
            counts = counts.astype(np.uint16)
        counts[trial, bin_, i] = number
    return counts, seen


def few_counted(
    spike_times: Iterable[Sized], counts: UInt[np.ndarray, "trial bin neuron"]
) -> list[str]:
    """A note if hardly any of many spikes were counted, whose times may be in another unit than
    the windows."""
    every, inside = sum(map(len, spike_times)), counts.sum()
    if every <= MANY or inside >= FEW * every:
        return []
    where = "lie in a trial and where it was observed"
    return [f"{inside} of {every} spikes {where}; are all times in seconds of the same clock?"]


def whole_bins(windows: Given, bin_width: float) -> Numbers:
    """The number of whole bins in each window, as floats: below 1 if there are none.

    windows: trial x 2, seconds. Raises InputError unless bin_width is a positive time.
    """
    bin_width = positive_seconds("bin_width", bin_width)
    close = max(WHOLE, rounding(windows, bin_width) / bin_width)
    ratio = np.diff(np.asarray(windows, np.float64))[:, 0] / bin_width
    nearest = np.round(ratio)
    return np.where(np.abs(ratio - nearest) <= close, nearest, np.floor(ratio))


def rounding(times: Given, bin_width: float) -> float:
    """Seconds by which rounding may have moved times: a few of the steps between numbers of the
    type that they are given in, where these are largest."""
    times = np.asarray(times)
    times = times if times.dtype.kind == "f" else times.astype(np.float64)
    latest = np.abs(times[np.isfinite(times)]).max(initial=0)
    return min(ROUNDING + 4 * float(np.spacing(latest)), MOST * bin_width)


def session(times: Numbers, bin_width: float, *, to_end: bool) -> Float[np.ndarray, "1 2"]:
    """A window from the first to the last of some finite times; to_end: of the last one's bin."""
    start, end = float(times.min()), float(times.max())
    if to_end:
        last = bin_of(end + rounding(times, bin_width), start, bin_width)
        end = start + float(last + 1) * bin_width
    return np.array([[start, end]])


def positive_seconds(what: str, given: Any) -> float:
    """A time as a positive number of seconds, as of `labels.seconds`; InputError if it is none."""
    try:
        value = labels.seconds(given)
    except ValueError as error:
        raise InputError(f"{what}: {error}") from None
    if not 0 < value < np.inf:
        raise InputError(f"{what} is {value:g}; expected a positive number of seconds")
    return value


def numbers(what: str, given: Any, expected: str) -> Numbers:
    """What was given as an array of float64; InputError if it is none."""
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} is not an array of numbers; expected {expected}") from None


def _seconds(what: str, given: Any, axes: int) -> Numbers:
    """Finite numbers, along one axis or trial x 2."""
    expected = ("one 1-D array of finite seconds", "trial x 2 finite seconds")[axes - 1]
    values = numbers(what, given, expected)
    if values.ndim != axes or (axes == 2 and (values.shape[1] != 2 or not len(values))):
        raise InputError(f"{what} is {size(values.shape)}; expected {expected}")
    if not (finite := np.isfinite(values)).all():
        at = np.argwhere(~finite)[0, 0]
        raise InputError(f"{what} holds {values[~finite][0]} at {at}; expected {expected}")
    return values


def _no_bin(called: str, trial: int, start: float, end: float, bin_width: float) -> InputError:
    window = f"{called}: trial {trial} is from {start:.15g} to {end:.15g} s"
    if end < start:
        return InputError(f"{window}, which ends before it starts; give start and end")
    return InputError(f"{window}, which holds no whole bin of {bin_width:g} s; leave it out")


def per_neuron(observed: Observed, names: Sequence[Any]) -> list[Numbers | None]:
    """The intervals in which each neuron was observed, intervals x 2, None where it always was.

    observed: an array of intervals x 2 for all neurons, or a list or mapping with those of each.

    Raises InputError if they are not of these neurons, or could be for all as well as of each.
    """
    if observed is None:
        return [None] * len(names)
    if isinstance(observed, Mapping):
        if missing := [name for name in names if name not in observed]:
            raise InputError(f"observed has no intervals for neuron {missing[0]}")
        if others := [name for name in observed if name not in names]:
            raise InputError(f"observed has intervals for {others[0]}, which is no neuron")
        each = [observed[name] for name in names]
    elif hasattr(observed, "ndim"):
        each = [observed] * len(names) if observed.ndim == 2 else observed
    elif len(observed) and all(map(_is_pair, observed)):
        if len(observed) == len(names) and any(list(one) != list(observed[0]) for one in observed):
            raise InputError(
                f"observed is a list of {len(names)} pairs for {len(names)} neurons, which may be "
                "intervals for all or one of each; give an array, intervals x 2, for all, or a "
                "mapping or [[start, end]] for each neuron"
            )
        each = [observed] * len(names)
    else:
        each = observed
    if len(each) != len(names):
        wrong = f"observed has {len(each)} arrays for {len(names)} neurons"
        raise InputError(f"{wrong}; give one for each, or one of intervals x 2 for all")
    own = zip(names, each, strict=True)
    return [_intervals(f"observed of neuron {name}", given) for name, given in own]


def _is_pair(given: Any) -> bool:
    return hasattr(given, "__len__") and len(given) == 2 and not any(map(np.ndim, given))


def _intervals(what: str, given: Any) -> Numbers | None:
    """Intervals x 2, of which one may be given as a pair; None if that is given."""
    if given is None:
        return None
    expected = "intervals x 2 seconds, each from start to end"
    values = numbers(what, given, expected)
    if not values.size:
        return np.empty((0, 2))
    if values.shape == (2,):
        values = values[None]
    if values.ndim != 2 or values.shape[1] != 2:
        raise InputError(f"{what} is {size(values.shape)}; expected {expected}")
    if not (sound := values[:, 0] <= values[:, 1]).all():
        start, end = values[~sound][0].tolist()
        raise InputError(f"{what} holds {start:.15g} to {end:.15g}; expected {expected}")
    return values


def _inside(
    intervals: Numbers, start: Numbers, end: Numbers, bins: Numbers, bin_width: float
) -> Inside:
    """Which bins of each trial lie wholly inside the union of the intervals."""
    tolerance = ROUNDING + 4 * np.spacing(max(np.abs(start).max(), np.abs(end).max()))
    on, off = _merged(intervals, tolerance)
    trial, interval = _ranges(np.searchsorted(off, start), np.searchsorted(on, end))
    first = np.ceil((on[interval] - start[trial] - tolerance) / bin_width)
    last = np.floor((off[interval] - start[trial] + tolerance) / bin_width)
    first = np.clip(first, 0, bins[trial]).astype(int)
    last = np.clip(last, first, bins[trial]).astype(int)
    steps = np.zeros((len(start), int(bins.max()) + 1), np.int8)
    np.add.at(steps, (trial, first), 1)
    np.subtract.at(steps, (trial, last), 1)
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8) > 0


def _merged(intervals: Numbers, gap: float) -> tuple[Numbers, Numbers]:
    """Starts and ends in order, with intervals no further apart than the gap made one."""
    on, off = intervals[np.argsort(intervals[:, 0])].T
    off = np.maximum.accumulate(off)
    apart = on[1:] > off[:-1] + gap
    return on[np.append(True, apart)[: len(on)]], off[np.append(apart, True)[: len(off)]]


def _ranges(first: Indices, last: Indices) -> tuple[Indices, Indices]:
    """All indices of the ranges from first to before last, each with the number of its range."""
    length = last - first
    owner = np.repeat(np.arange(len(length)), length)
    return owner, np.arange(length.sum()) + np.repeat(first - np.cumsum(length) + length, length)


def bin_of(
    times: Numbers | float, start: Numbers | float, bin_width: float
) -> Int[np.ndarray, "..."]:
    """The bin of each time, right also where the quotient is rounded across a bin's edge."""
    bin_ = np.floor((times - start) / bin_width)
    bin_ += start + (bin_ + 1) * bin_width <= times
    bin_ -= start + bin_ * bin_width > times
    return np.asarray(bin_, int)
