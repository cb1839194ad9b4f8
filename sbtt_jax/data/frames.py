"""From values per frame to values per bin, for neurons that a scan meets one after another.

A frame of two-photon imaging takes tens of milliseconds, and each neuron is sampled at its own
moment of it. In bins shorter than a frame, a neuron has a value in the bins in which the scan met
it, and all others are not observed (Zhu, Grier et al. 2022, Nature Neuroscience 25:1724).

Bin k is the half-open interval from start + k * bin_width to start + (k + 1) * bin_width. A sample
as little before an edge as rounding can put it belongs to the bin that begins there.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from sbtt_jax.data import labels, layout
from sbtt_jax.data.arrays import Array, Arrays, check_memory, size
from sbtt_jax.data.binning import (
    ROUNDING,
    Given,
    Numbers,
    bin_of,
    numbers,
    positive_seconds,
    rounding,
)
from sbtt_jax.errors import InputError

TIMES, OFFSETS = "frame_times", "sample_offsets"  # of a file's arrays
GAP = 1.5  # of the usual time between frames: longer ones are pauses
MOST_BINS = 1000  # per frame: beyond, units are likely to be others than seconds
LATE = 1e-3  # of a frame: how much later than the frame a sample may be, as times are rounded


def bin_frames(
    values: Given,
    frame_times: Given,
    offsets: Given,
    bin_width: Any,
    *,
    line_period: Any = None,
    start: float | Given | None = None,
) -> Float32[np.ndarray, "*trial bin neuron"]:
    """Values of a scan, such as events or fluorescence, in bins of time; NaN where the scan did not
    meet the neuron.

    values: trial x frame x neuron, or frame x neuron of one session; NaN (or masked) where missing.
    frame_times: seconds at which each frame begins, trial x frame, or one time per frame.
    offsets: seconds from the beginning of a frame until the scan meets each neuron, one per neuron.
    bin_width: seconds, or a timedelta or quantity with a unit. Values of a neuron in the same bin,
      if bins are longer than frames, are averaged: their mean, without missing ones.
    line_period: seconds per row; `offsets` are then rows, such as the median row of each neuron.
    start: seconds at which the first bin begins, of each trial or of all; None: with the first
      frame. Samples before it are left out.

    There are as many bins as it takes to hold the last sample of any trial.

    Raises InputError for times that are not finite or do not increase, offsets that are not within
    a frame, a bin_width or line_period that is not positive, and arrays that do not fit each other.
    """
    values = _checked(values)
    times = _frame_times(frame_times, values.shape)
    offsets = _offsets(offsets, line_period, values.shape[-1], _period(times))
    bin_width = positive_seconds("bin_width", bin_width)
    begin = times[:, :1] if start is None else _start(start, len(times))
    tolerance = rounding(frame_times, bin_width)
    last = times[:, -1:] + offsets.max() + tolerance
    if (last < begin).any():
        raise InputError("start is after the last sample of a trial; leave such trials out")
    asked = len(times), math.ceil((last - begin).max() / bin_width), len(offsets)
    check_memory("frame_times and bin_width ask for", asked)
    if (period := _period(times)) < math.inf and period > MOST_BINS * bin_width:
        rule = f"over {MOST_BINS} bins of {bin_width:g} s; expected both in seconds"
        raise InputError(f"frame_times: frames are {period:.4g} s apart, {rule}")

    trials, neurons = len(times), len(offsets)
    bins = int(bin_of(last, begin, bin_width).max()) + 1
    binned = np.full((trials, bins, neurons), np.nan, np.float32)
    first = bins * np.arange(trials)[:, None]  # where bins of each trial begin, one after another
    for neuron, offset in enumerate(offsets):
        bin_ = bin_of(times + (offset + tolerance), begin, bin_width)
        own = values[..., neuron].reshape(bin_.shape)
        there = ~np.isnan(own) & (bin_ >= 0)
        at = (first + bin_)[there]
        number = np.bincount(at, minlength=trials * bins)
        total = np.bincount(at, own[there], minlength=trials * bins)
        mean = total / np.where(number, number, np.nan)
        binned[..., neuron] = mean.reshape(trials, bins)
    return binned if values.ndim == 3 else binned[0]


def to_bins(arrays: Arrays, parts: Sequence[layout.Part], bin_width: float | None) -> None:
    """Replace values per frame by values per bin, if the arrays say when frames begin.

    `frame_times` (seconds, of each frame, or trial x frame; `train_frame_times` and so on of one
    split) and `sample_offsets` (seconds, of each neuron) are arguments of `bin_frames`. Masks and
    values that stand for nothing observed are used, and the masks then gone.

    Raises InputError if one of these is missing or does not fit, or nobody says the bin width.
    """
    keys = {part.counts: _key(arrays, part) for part in parts}
    if OFFSETS not in arrays and not any(key in arrays for key in keys.values()):
        return
    for key in (*keys.values(), OFFSETS):
        if key not in arrays:
            both = f"{TIMES}, seconds at which frames begin, and {OFFSETS}, seconds until each "
            raise arrays.error(f"no {key}; values per frame need {both}neuron is met in a frame")
    width = labels.bin_width(arrays) if bin_width is None else bin_width
    if width is None:
        raise arrays.error("its values are per frame; give data.bin_width, in seconds, as in 0.01")

    starts, binned, offsets = [], [], _seconds(arrays, OFFSETS).ravel()
    for part in parts:
        if part.encod is not None:
            raise arrays.error(f"{part.encod} and {part.counts} are per frame; expected one array")
        values, times = _values(arrays, part), _seconds(arrays, keys[part.counts])
        if times.shape != values.shape[:-1]:
            times = times.ravel()  # MATLAB has vectors as matrices
        try:
            binned.append(bin_frames(values, times, offsets, width))
        except InputError as error:
            raise arrays.error(str(error)) from None
        starts.append(times[..., 0])
        if width > _period(np.atleast_2d(times)):
            arrays.notes.append(
                f"{part.counts}: samples in the same bin of {width:g} s are averaged"
            )

    bins = max(part.shape[-2] for part in binned)
    for part, own in zip(parts, binned, strict=True):
        says = {k: v for k, v in arrays[part.counts].says.items() if k not in labels.FILLS}
        after = [(0, 0)] * (own.ndim - 2) + [(0, bins - own.shape[-2]), (0, 0)]
        own = np.pad(own, after, constant_values=np.nan)
        arrays[part.counts] = Array(own, says, labels.oriented(arrays, part.counts).axes)
        for name in part.masks:
            arrays.pop(name, None)
    if all(one.ndim == 0 for one in starts) and len(set(map(float, starts))) == 1:
        arrays.setdefault("time_start", Array(starts[0]))
    elif all(one.ndim for one in starts):
        arrays.setdefault("trial_start", Array(np.concatenate(starts)))


def _checked(given: Given) -> Float32[np.ndarray, "*trial frame neuron"]:
    """Values, NaN where they are masked."""
    expected = "trial x frame x neuron or frame x neuron, none of them 0"
    try:
        values = np.ma.filled(np.ma.asarray(given, np.float32), np.nan)
    except (TypeError, ValueError):
        raise InputError(f"values is not an array of numbers; expected {expected}") from None
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(f"values is {size(values.shape)}; expected {expected}")
    return values


def _frame_times(given: Given, shape: tuple[int, ...]) -> Float[np.ndarray, "trial frame"]:
    *trial, frames, _ = shape
    expected = f"seconds of {size((*trial, frames))} frames"
    times = numbers("frame_times", given, expected)
    if times.shape not in ((*trial, frames), (frames,)):
        raise InputError(f"frame_times is {size(times.shape)}; expected {expected}")
    if not (finite := np.isfinite(times)).all():
        raise InputError(f"frame_times holds {times[~finite][0]}; expected finite {expected}")
    times = np.broadcast_to(times, (*(trial or [1]), frames))
    if (wrong := np.argwhere(np.diff(times) <= 0)).size:
        row, frame = wrong[0].tolist()
        where = f"frame {frame + 1}" + (f" of trial {row}" if trial else "")
        before, after = times[row, frame : frame + 2].tolist()
        both = f"{after:.15g} s, and the one before at {before:.15g} s"
        raise InputError(f"frame_times: {where} begins at {both}; expected times that increase")
    return times


def _period(times: Float[np.ndarray, "trial frame"]) -> float:
    """Seconds per frame, where there is no pause; infinite if there is only one frame."""
    steps = np.diff(times)
    if not steps.size:
        return math.inf
    return float(steps[steps <= GAP * np.median(steps)].mean())


def _offsets(given: Given, line_period: Any, neurons: int, period: float) -> Numbers:
    """Seconds after the beginning of a frame."""
    expected = f"{'seconds' if line_period is None else 'rows'} of {neurons} neurons"
    offsets = numbers("offsets", given, expected)
    if offsets.shape != (neurons,):
        raise InputError(f"offsets is {size(offsets.shape)}; expected {expected}")
    if line_period is not None:
        offsets = offsets * positive_seconds("line_period", line_period)
    within = (offsets >= -ROUNDING) & (offsets <= period * (1 + LATE)) & (offsets < math.inf)
    if not within.all():
        neuron = int(np.argmin(within))
        rule = f"expected seconds from 0 to less than a frame, which is {period:.4g} s"
        raise InputError(f"offsets: neuron {neuron} is met after {offsets[neuron]:.4g} s; {rule}")
    return offsets


def _start(given: float | Given, trials: int) -> Float[np.ndarray, "trial 1"]:
    expected = f"finite seconds, one number or {trials}"
    start = numbers("start", given, expected)
    if start.shape not in ((), (trials,)) or not np.isfinite(start).all():
        raise InputError(f"start is {size(start.shape)}; expected {expected}")
    return np.broadcast_to(start, trials)[:, None]


def _key(arrays: Arrays, part: layout.Part) -> str:
    """The array with the times of a part's frames."""
    own = f"{part.split}_{TIMES}"
    return own if own in arrays else TIMES


def _seconds(arrays: Arrays, key: str) -> Numbers:
    array = arrays[key]
    arrays.check(key, array.is_real, "seconds")
    found, known = labels.values(arrays, key)
    if not known.all():
        raise arrays.error(f"{key} is NaN or a fill value at {np.argmin(known)}; expected seconds")
    return found.reshape(array.shape) * labels.scale_to_seconds(arrays, key)


def _values(arrays: Arrays, part: layout.Part) -> Float32[np.ndarray, "*trial frame neuron"]:
    """The values of a part, NaN where its masks or fill values say that nothing was observed."""
    array = labels.oriented(arrays, part.counts)
    sound = array.is_real and len(array.shape) in (2, 3) and 0 not in array.shape
    expected = "trial x frame x neuron or frame x neuron, none of them 0"
    arrays.check(part.counts, sound, f"numbers, {expected}")
    check_memory(f"{arrays.source}: {part.counts} declares", array.shape)
    fills = labels.fills_of_counts(arrays, part.counts)
    values = np.empty(array.shape, np.float32)
    for rows, block in array.blocks():
        values[rows] = np.where(labels.filled(block, fills), np.nan, block)
    values[~layout.observed(arrays, part, array.shape)] = np.nan
    return values
