"""Recordings in the NWB format: sorted units, when each was observed, and trials.

An NWB file holds spike times and says what trials there are, not what is to be modelled; `Asked`
has what a person decides. Everything is in seconds of the file's own clock.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from sbtt_jax.data import labels
from sbtt_jax.data.arrays import ASSUMED_BIN_WIDTH, Array, Asked
from sbtt_jax.data.binning import ALWAYS, count_spikes, few_counted, session, whole_bins
from sbtt_jax.errors import InputError

Intervals = Float[np.ndarray, "interval 2"]


def recognizes(path: Path) -> bool:
    """Whether a file is an NWB file, of version 2 or newer."""
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return "nwb_version" in file.attrs


def imported(path: Path) -> ModuleType:
    """pynwb, which is optional; InputError, naming the file that needs it, if it is missing."""
    try:
        import pynwb
    except ImportError:
        raise InputError(f"{path}: NWB files need pynwb; pip install 'sbtt-jax[nwb]'") from None
    return pynwb


@contextmanager
def nwb(path: Path, asked: Asked) -> Iterator[Mapping[str, Array]]:
    """The counts of an NWB file, as the arrays of a recording.

    `spikes` is trial x bin x neuron, or bin x neuron if the recording is continuous; `spikes_mask`,
    of the same shape, is there if something was not observed. `bin_width`, if asked for; `unit_id`
    (of each neuron); `time_start` (seconds, of the first bin on the axis of time); and of each
    trial `trial_start` (seconds, of its first bin), `trial_id` and `condition`, the column that is
    asked for.

    Raises InputError if pynwb is missing, or the file does not hold what was asked for.
    """
    pynwb = imported(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schema versions and style: for who wrote the file
        with pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True) as io:
            try:
                file = io.read()
            except Exception as error:  # of no common kind; the last argument is the cause
                reason = " ".join(str((error.args or (error,))[-1]).split())
                raise InputError(f"{path}: pynwb cannot read it: {reason}") from None
            arrays = _read(str(path), file, asked)
    found = {name: Array(np.asarray(values)) for name, values in arrays.items()}
    if "condition" in found:
        found["condition"].says = {labels.COLUMN: asked.condition}
    yield found


class _Table:
    """A table of a file, or InputError if there is none."""

    def __init__(self, path: str, file: Any, name: str, remedy: str):
        self.path, self.name, self.table = path, name, getattr(file, name)
        if self.table is None or not len(self.table):
            raise InputError(f"{path}: no {name} table, or an empty one; {remedy}")
        self.id = np.asarray(self.table.id[:])

    def error(self, text: str) -> InputError:
        return InputError(f"{self.path}: {self.name} table: {text}")

    def column(self, name: str, use: str) -> Shaped[np.ndarray, " row"]:
        """One number or text for each row. use: what it is for, such as a setting's name."""
        if name == "id":
            return self.id
        if name not in self.table.colnames:
            there = ", ".join(self.table.colnames)
            raise self.error(f"no column {name} for {use}; the columns are {there}")
        column = self.table[name]
        values = np.asarray(column.data[:])
        if hasattr(column, "elements"):  # numbers of names
            values = np.asarray(column.elements.data[:])[values]
        if hasattr(column, "target") or values.ndim != 1:
            raise self.error(f"{name} holds several values in a row; {use} needs one")
        if values.dtype.hasobject:
            texts = [v.decode() if isinstance(v, bytes) else v for v in values]
            # A reference, such as to an electrode group, goes by its name.
            texts = [v if isinstance(v, str) else getattr(v, "name", None) for v in texts]
            if None in texts:
                raise self.error(f"{name} holds neither numbers nor text, which {use} needs")
            values = np.array(texts, str)
        return values

    def seconds(self, name: str, use: str) -> Float[np.ndarray, " row"]:
        values = self.column(name, use)
        if values.dtype.kind not in "iuf":
            raise self.error(f"{name} is {values.dtype}; {use} needs a column of seconds")
        return values if values.dtype.kind == "f" else values.astype(np.float64)

    def ragged(self, name: str) -> list[Num[np.ndarray, "..."]]:
        """The array of each row of a column that has one, read at once."""
        index = self.table[name]
        if not hasattr(index, "target"):
            raise self.error(f"{name} has no {name}_index, which says whose they are")
        ends = np.asarray(index.data[:], np.int64)
        return np.split(np.asarray(index.target.data[:]), ends[:-1])


def _read(path: str, file: Any, asked: Asked) -> dict[str, Any]:
    width = ASSUMED_BIN_WIDTH if asked.bin_width is None else asked.bin_width
    if not 0 < width < np.inf:
        raise InputError(f"{path}: data.bin_width is {width:g}; expected a positive number")
    units = _Table(path, file, "units", "expected sorted units with spike_times")
    if "spike_times" not in units.table.colnames:
        there = ", ".join(units.table.colnames)
        raise units.error(f"no column spike_times; the columns are {there}")
    asked.columns["units"] = list(units.table.colnames)
    if file.trials is not None:
        asked.columns["trials"] = list(file.trials.colnames)
    kept = _kept_units(units, asked.units)
    all_times = units.ragged("spike_times")
    # Two rows may have the same id.
    times = {f"{units.id[row]} (row {row} of units)": all_times[row] for row in kept.tolist()}
    observed = _observed(units, kept, asked)

    if asked.chop is None:
        windows, arrays = _trials(path, file, asked, width)
    else:
        windows, arrays = _continuous(units, list(times.values()), observed, asked, width)
    observed = _without_invalid(path, file, observed or [None] * len(times), asked)
    try:
        counts, seen = count_spikes(times, windows, width, observed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if asked.chop is not None:
        counts, seen = counts[0], seen[0]
    else:
        asked.notes.extend(few_counted(times.values(), counts))
    arrays |= {"spikes": counts, "unit_id": units.id[kept]}
    if asked.bin_width is not None:
        arrays["bin_width"] = width
    return arrays if seen.all() else arrays | {"spikes_mask": seen}


def _kept_units(units: _Table, filters: str | None) -> Int[np.ndarray, " kept"]:
    """Rows of the units that all filters let through."""
    kept = np.arange(len(units.id))
    for one in filters.split(",") if filters else ():
        column, equals, value = (part.strip() for part in one.partition("="))
        if not (column and equals):
            raise units.error(f"data.units is {one!r}; expected COLUMN=VALUE, as in quality=good")
        values = units.column(column, "data.units")[kept]
        try:
            same = values == (value if values.dtype.kind == "U" else _number(value))
        except ValueError:
            raise units.error(f"data.units {one.strip()}: {column} holds numbers") from None
        if not same.any():
            there = ", ".join(map(str, np.unique(values)[:10]))
            raise units.error(f"data.units {one.strip()} leaves no unit; {column} holds {there}")
        kept = kept[same]
    return kept


def _number(text: str) -> float:
    return float({"true": "1", "false": "0"}.get(text.lower(), text))


def _observed(
    units: _Table, kept: Int[np.ndarray, " kept"], asked: Asked
) -> list[Num[np.ndarray, "..."]] | None:
    if "obs_intervals" in units.table.colnames:
        intervals = units.ragged("obs_intervals")
        for row in kept[[not _sound(intervals[row]) for row in kept]]:
            rule = "expected intervals x 2 seconds, each from start to end"
            raise units.error(f"obs_intervals of unit {units.id[row]} are not intervals; {rule}")
        return [intervals[row] for row in kept]
    asked.notes.append(
        "the units table has no obs_intervals, so a unit that was lost looks like one that was "
        "silent: every bin is taken as observed"
    )
    return None


def _sound(intervals: Num[np.ndarray, "..."]) -> bool:
    if not intervals.size:
        return True
    return intervals.shape[1:] == (2,) and bool((intervals[:, 0] <= intervals[:, 1]).all())


def _without_invalid(path: str, file: Any, observed: list[Any], asked: Asked) -> list[Any]:
    """What was observed less the file's invalid times."""
    if not file.invalid_times:
        return observed
    table = _Table(path, file, "invalid_times", "")
    asked.notes.append(f"{len(table.id)} invalid_times of the file are taken as not observed")
    begin, end = (table.seconds(name, "invalid times") for name in ("start_time", "stop_time"))
    if not (begin <= end).all():
        raise table.error("an interval has no start_time or stop_time, or stops before it starts")
    order = np.argsort(begin)
    on = np.append(-np.inf, np.maximum.accumulate(end[order]))
    off = np.append(begin[order], np.inf)
    return [_overlap(ALWAYS if own is None else own, on, off) for own in observed]


def _overlap(
    intervals: Num[np.ndarray, "..."], on: Float[np.ndarray, " n"], off: Float[np.ndarray, " n"]
) -> Intervals:
    """Each part of an interval that lies between an `on` and its `off`."""
    first, last = np.reshape(intervals, (-1, 2)).T
    parts = np.stack([np.maximum.outer(first, on), np.minimum.outer(last, off)], -1)
    return parts[parts[..., 0] < parts[..., 1]]


def _trials(
    path: str, file: Any, asked: Asked, bin_width: float
) -> tuple[Float[np.ndarray, "trial 2"], dict[str, Any]]:
    """The windows of trials, and what else there is of each."""
    remedy = "give data.chop, seconds, to take the recording as continuous"
    trials = _Table(path, file, "trials", remedy)
    align = asked.align or "start_time"
    zero = trials.seconds(align, "data.align")
    if asked.window is not None:
        if not asked.window[0] < asked.window[1]:
            wrong = f"data.window is {asked.window[0]:g} to {asked.window[1]:g} s"
            raise trials.error(f"{wrong}; give seconds before and after {align}, as in -0.5 1.0")
        windows = zero[:, None] + np.array(asked.window)
    elif align != "start_time":
        raise trials.error(f"data.align is {align} without data.window, seconds around it")
    else:
        align = "start_time or stop_time"
        windows = np.stack([zero, trials.seconds("stop_time", "trials' ends")], 1)
    if (wrong := windows[:, 1] < windows[:, 0]).any():
        raise trials.error(f"trial {trials.id[wrong][0]} stops before it starts")

    known = np.isfinite(windows).all(1)
    long = whole_bins(windows, bin_width) >= 1
    kept, left_out = known & long, []
    if not known.all():
        left_out.append(f"{(~known).sum()} of {len(known)} trials have no {align}")
    if (known & ~long).any():
        shorter = f"shorter than a bin of {bin_width:g} s"
        left_out.append(f"{(known & ~long).sum()} of {len(known)} trials are {shorter}")
    if not kept.any():
        raise trials.error(f"no trial can be used: {', '.join(left_out)}")
    asked.notes.extend(f"{reason}, and are left out" for reason in left_out)
    # As coarse as they are stored, which says how much trials may seem to overlap.
    arrays = {"trial_start": windows[kept, 0].astype(zero.dtype), "trial_id": trials.id[kept]}
    arrays["time_start"] = 0.0 if asked.window is None else asked.window[0]
    if asked.condition is not None:
        arrays["condition"] = trials.column(asked.condition, "data.condition")[kept]
    return windows[kept], arrays


def _continuous(
    units: _Table,
    times: list[Num[np.ndarray, " _"]],
    observed: list[Num[np.ndarray, "..."]] | None,
    asked: Asked,
    bin_width: float,
) -> tuple[Float[np.ndarray, "1 2"], dict[str, Any]]:
    """One window from the first to the last time observed."""
    given = {"condition": asked.condition, "window": asked.window, "align": asked.align}
    given["align"] = None if asked.align == "start_time" else asked.align
    if names := [f"data.{name}" for name, value in given.items() if value is not None]:
        raise units.error(f"data.chop ignores trials, which {' and '.join(names)} need; give one")
    where = "spike_times" if observed is None else "obs_intervals"
    seconds = np.concatenate([np.ravel(own) for own in observed or times])
    seconds = seconds[np.isfinite(seconds)]  # others are refused with their unit's name later
    if not seconds.size:
        raise units.error(f"{where} of the units kept are empty")
    # The last spike lies in the last bin, not at its end.
    window = session(seconds, bin_width, to_end=observed is None)
    return window, {"time_start": window[0, 0]}
