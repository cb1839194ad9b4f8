"""Recordings as people have them in Python: arrays, masked arrays, lists of trials, labelled
arrays, spike times with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbtt_jax.data import binning, coordinates, frames, labels, padding, trains
from sbtt_jax.data.arrays import Array, Arrays, size
from sbtt_jax.errors import InputError

# Columns of a table that are kept beside those of neurons.
NO_NEURONS = {"trial", "trials", "trial_id", "condition", "bin", "bins", "time", "times"}
NO_NEURONS |= {"index", "timestamp", "timestamps", "unnamed: 0"}
# Of lists of trials: what has to be the same in all of them, and what is of each.
SAME, OF_TRIALS = {"unit_id", "given"}, {"trial_start", "trial_id"}


class Recording:
    """A recording in memory, with all that is known about it.

    spikes: one of
      counts, trial x bin x neuron, NaN (or masked, in a masked array) where not observed;
      a list of such trials, bin x neuron each, of any length;
      counts of a session without trials, bin x neuron, which is cut into windows (`data.chop`);
      a labelled array (xarray.DataArray), whose dimensions may come in any order, and whose
      coordinates are read as arrays of these names in a file are: the bin width, names of neurons,
      condition, mask, trial_start and so on;
      a table with a row per bin (pandas.DataFrame, pynapple.TsdFrame);
      with `trials`, spike times in seconds: a mapping from neurons to times, a list of arrays, or a
      pynapple.TsGroup.
    bin_width: in seconds, as a number, a timedelta or a quantity with a unit.
    condition: a number or name for each trial, None where it is not known.
    trials: of spike times: start and end of each trial in seconds, trial x 2, or a pynapple
      IntervalSet, or a table with columns of these names (start and end or stop, start_time and
      stop_time); a column condition is read too. Spike times without trials are one session, as
      long as was observed.
    observed: of spike times: when each neuron was observed, as intervals x 2 for all of them, or a
      list or mapping with those of each; everywhere if it, or that of a neuron, is None.
    unit_id: a number or name for each neuron.
    given: booleans, bin x neuron, false for what is predicted without being input; all is if None.
    trial_start: of counts: when each trial began in the recording, in seconds. Trials that overlap
      in time are kept on one side of the split. `trials` say it of spike times.

    Raises InputError if these do not fit each other, or say nothing that is understood.
    """

    def __init__(
        self,
        spikes: Any,
        *,
        bin_width: Any = None,
        condition: Any = None,
        trials: Any = None,
        observed: Any = None,
        unit_id: Any = None,
        given: Any = None,
        trial_start: Any = None,
    ):
        own = {"condition": condition, "unit_id": unit_id, "given": given}
        own["trial_start"] = trial_start
        self.arrays = _arrays(spikes, None, bin_width, trials, observed, own)

    def __repr__(self) -> str:
        array, width = self.arrays["spikes"], labels.bin_width(self.arrays)
        bins = "" if width is None else f", bins of {1000 * width:g} ms"
        return f"Recording({size(array.shape)} of {array.dtype}{bins})"


def arrays(spikes: Any, asked: float | None = None, **known: Any) -> Arrays:
    """The arrays of a recording, or of one made of counts or spike times and what is known of them.

    asked: the bin width that settings say, in seconds, where these do not.

    Raises InputError as `Recording`.
    """
    if not isinstance(spikes, Recording):
        return _arrays(spikes, asked, known.pop("bin_width", None), None, None, known)
    if known:
        raise InputError(f"{min(known)}: give it to sbtt_jax.Recording, not beside one")
    return spikes.arrays


def _arrays(
    spikes: Any,
    asked: float | None,
    bin_width: Any,
    windows: Any,
    observed: Any,
    known: Mapping[str, Any],
) -> Arrays:
    """What `Recording` has, by the names of arrays; `known` has more of them."""
    found = Arrays("array", {})
    if isinstance(spikes, str | Path):
        raise found.error(f"{spikes} is a path; fit, infer and score take it as it is")
    try:
        if bin_width is not None:
            found["bin_width"] = Array(np.array(labels.seconds(bin_width)))
            labels.bin_width(found)
        spikes = _listed(spikes)
        if trains.is_spike_times(spikes) or windows is not None or observed is not None:
            _bin(found, spikes, asked, windows, _listed(observed))
        else:
            _read(found, spikes, asked)
        for key, values in known.items():
            if values is not None:
                found[key] = Array(_values(key, values))
        if windows is not None and known.get("trial_start") is not None:
            raise ValueError("trial_start: trials say when each of them begins; leave it out")
        _count_from_first_date(found)
    except Exception as error:  # objects of other libraries raise their own
        text = str(error) or type(error).__name__
        raise error if text.startswith("array: ") else found.error(text) from None
    return found


def _count_from_first_date(arrays: Arrays) -> None:
    """Make dates, but for those of axes, seconds since the first of them."""
    for name in arrays.keys() - {"condition", *(arrays["spikes"].axes or ())}:
        if arrays.get(name).dtype.kind == "M":
            dates = arrays[name].whole()
            arrays[name] = Array((dates - dates.min()) / np.timedelta64(1, "s"))


def _values(name: str, values: Any) -> np.ndarray:
    """What goes by this name as an array of numbers (times in seconds), texts or dates; NaN, or ""
    among names, for a condition that is not known."""
    if name == "condition":
        return labels.texts(_without_missing(values))
    is_date = getattr(getattr(values, "dtype", None), "kind", None) == "M"
    if name == "trial_start" and not is_date:
        values = labels.in_seconds(values)
    found = labels.texts(values)
    return found / np.timedelta64(1, "s") if found.dtype.kind == "m" else found


def _without_missing(condition: Any) -> Any:
    """A number or name for each trial, NaN or "" in place of None and of others that are missing
    (NaN among names, pandas.NA)."""
    # Not a list as it is, of which NumPy would make one of texts.
    values = np.asarray(condition, None if hasattr(condition, "dtype") else object)
    if values.dtype.kind not in "OT":
        return values
    items = values.ravel().tolist()
    missing = "" if any(isinstance(one, str) for one in items) else np.nan
    found = [missing if _is_missing(one) else one for one in items]
    return np.array(found).reshape(values.shape)


def _is_missing(one: Any) -> bool:
    same = one == one  # which pandas.NA does not know of itself
    return one is None or not isinstance(same, bool | np.bool_) or not same


def _listed(given: Any) -> Any:
    """A sequence of arrays in another container, such as a Series, an array of objects or neo's
    spike trains, as a mapping or list; others as they are."""
    if isinstance(given, Mapping | list | tuple) or hasattr(given, "time_support"):
        return given
    if getattr(getattr(given, "dtype", None), "kind", "") == "O" and len(given.shape) == 1:
        items = list(given)
        if not items or any(one is not None and np.ndim(one) == 0 for one in items):
            return given
        is_series = hasattr(given, "items") and given.index.is_unique  # of pandas
        is_named = is_series and all(one is None or np.ndim(one) == 1 for one in items)
        return dict(given.items()) if is_named else items
    is_plain = any(hasattr(given, name) for name in ("shape", "dims", "columns", "start"))
    is_sequence = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    return list(given) if is_sequence and not is_plain else given


def _bin(arrays: Arrays, spikes: Any, asked: float | None, windows: Any, observed: Any) -> None:
    """Add counts of spike times."""
    if not trains.is_spike_times(spikes):
        raise ValueError(
            "trials and observed go with spike times, which are a list or mapping of an array "
            "for each neuron, and spikes are counts; mark what was not observed by NaN instead"
        )
    if "bin_width" not in arrays and asked is not None:
        arrays["bin_width"] = Array(np.array(asked))
    if "bin_width" not in arrays:
        raise ValueError("spike times need a bin_width, such as 0.02 for 20 ms")
    width = float(arrays["bin_width"].whole())
    names, times = trains.spike_times(spikes)
    if observed is None:
        observed = trains.support(spikes, names, times)
    seen = binning.per_neuron(trains.observed_of(observed), names)
    if windows is None:
        windows = trains.extent(times, seen, width)
        counts, mask = binning.count_spikes(times, windows, width, seen)
        counts, mask = counts[0], mask[0]
        arrays["time_start"] = Array(windows[0, 0])
    else:
        said = (getattr(windows, name, ()) for name in ("columns", "metadata_columns"))
        if any("condition" in list(names) for names in said):  # of pandas and of pynapple
            arrays["condition"] = Array(_values("condition", windows["condition"]))
        windows = trains.intervals(windows, "trials")
        counts, mask = binning.count_spikes(times, windows, width, seen, "trials")
        arrays.notes.extend(binning.few_counted(times, counts))
        arrays["trial_start"] = Array(windows[:, 0])
    arrays |= {"spikes": Array(counts), "spikes_mask": Array(mask)}
    arrays["unit_id"] = Array(labels.texts(names))


def _read(arrays: Arrays, spikes: Any, asked: float | None) -> None:
    """Add counts, and what their object says about them."""
    if isinstance(spikes, list | tuple) and not _is_regular(spikes):
        _read_trials(arrays, spikes, asked)
        return
    _add(arrays, spikes)
    if not {frames.TIMES, frames.OFFSETS} & arrays.keys():  # times are of frames
        coordinates.add(arrays, ["spikes"], asked)


def _add(arrays: Arrays, spikes: Any) -> None:
    """Add counts, and coordinates by their names, as a file has them."""
    axes, says = None, dict(getattr(spikes, "attrs", None) or {})
    if hasattr(spikes, "dims") and hasattr(spikes, "coords"):  # xarray
        axes = [str(name) for name in spikes.dims]
        if labels.axes_order(axes) is None:
            rule = "expected trial, bin (or time) and neuron (or unit), in any order"
            raise ValueError(f"the dimensions are {', '.join(axes)}; {rule}")
        for name, one in spikes.coords.items():
            _add_coordinate(arrays, str(name), one, axes)
    elif hasattr(spikes, "columns"):  # pandas, pynapple
        axes, is_series = ["time", "neuron"], hasattr(spikes, "time_support")
        rule = "expected one name for each neuron; droplevel(..., axis=1) leaves one"
        _check_flat("the columns are", spikes.columns, rule)
        for name in spikes.columns:
            if str(name).lower() in NO_NEURONS:
                rule = "expected a column for each neuron, and times in the index"
                raise ValueError(f"the column {name} looks like none of a neuron; {rule}")
        if is_series:
            arrays["time"] = Array(np.asarray(spikes.t), {"units": "s"})
        else:
            rule = "expected the time of each bin, and trials as a list of tables, such as "
            rule += "[one.droplevel(0) for _, one in table.groupby(level=0)]"
            _check_flat("the rows are", spikes.index, rule)
            arrays["time"] = Array(_index(spikes.index))
        arrays["neuron"] = Array(labels.texts(spikes.columns))
    elif hasattr(spikes, "time_support"):
        rule = "expected counts of all neurons (TsdFrame) or spike times (TsGroup)"
        raise ValueError(f"spikes is a {type(spikes).__name__}; {rule}")
    elif (unit := labels.unit_of(_attributes(spikes))) is not None:
        says["units"] = unit
    arrays["spikes"] = Array(_array(spikes), says, axes)


def _add_coordinate(arrays: Arrays, name: str, one: Any, axes: Sequence[str]) -> None:
    """Add a coordinate of a labelled array by its name."""
    if name == "spikes":
        raise ValueError("a coordinate is named spikes, as the counts are; rename it")
    if name in axes:
        index = one.to_index()
        if getattr(index, "nlevels", 1) > 1:
            if labels.axis(name) == "trial":
                return  # its levels are coordinates of their own
            _check_flat(f"{name} is", index, "expected one value for each; reset_index makes it so")
        arrays[name] = Array(_index(index), one.attrs)
        return
    if name != "bin_width":
        arrays[name] = Array(_values(name, one.data), one.attrs, tuple(map(str, one.dims)))
        return
    coordinates.add_width(arrays, Array(np.array(labels.seconds(one))), "a coordinate")


def _check_flat(what: str, index: Any, rule: str) -> None:
    if getattr(index, "nlevels", 1) > 1:
        names = ", ".join(map(str, index.names))
        raise ValueError(f"{what} a MultiIndex ({names}); {rule}")


def _index(index: Any) -> np.ndarray:
    """The values of an axis; dates with a time zone as those of UTC."""
    return labels.texts(
        index.tz_convert(None) if hasattr(index, "tz_convert") and index.tz else index
    )


def _attributes(quantity: Any) -> dict[str, Any]:
    return {name: getattr(quantity, name, None) for name in ("units", "unit")}


def _read_trials(arrays: Arrays, given: Sequence[Any], asked: float | None) -> None:
    """Add trials of any length, each with what its object says about it."""
    each = []
    for number, trial in enumerate(given):
        one = Arrays(f"trial {number}", {k: v for k, v in arrays.items() if k == "bin_width"})
        _add(one, trial)
        each.append(one)
    _since_the_first(each)
    for one in each:
        coordinates.add(one, ["spikes"], asked)
        for name in {"time", *(one["spikes"].axes or ())} - {"unit_id"}:
            one.pop(name, None)
    widths = [labels.bin_width(one) for one in each]
    known = [width for width in widths if width is not None]
    for number, width in enumerate(widths):
        if width is not None and not labels.same_width(known[0], width):
            raise ValueError(f"trials 0 and {number} differ in bin_width; expected the same")
    if known:
        arrays["bin_width"] = Array(np.array(known[0]))
    ready = [labels.oriented(one, "spikes") for one in each]
    fills = {fill for one in each for fill in labels.fills_of_counts(one, "spikes")}
    arrays["spikes"] = Array(padding.Padded(ready), {"_FillValue": list(fills)})
    for name in sorted(set().union(*each) - {"spikes", "bin_width", "time_start"}):
        _combine(arrays, name, each)
    if any("time_start" in one for one in each):
        lengths = [one.shape[0] for one in ready]
        _combine_times(arrays, each, lengths, known[0] if known else 0.0)


def _since_the_first(each: Sequence[Arrays]) -> None:
    """Make dates seconds since the first of all trials."""
    dates = [
        (one, name)
        for one in each
        for name in one["spikes"].axes or ()
        if name in one and one[name].dtype.kind == "M"
    ]
    if len(dates) == len(each):
        first = min(one[name].whole()[0] for one, name in dates)
        for one, name in dates:
            one[name] = Array(one[name].whole() - first)


def _combine(arrays: Arrays, name: str, each: Sequence[Arrays]) -> None:
    """Add what trials say by this name: of each trial, of each of its bins and neurons, or of all.

    Raises ValueError if trials differ in what is of all.
    """
    lacks = next((i for i, one in enumerate(each) if name not in one), None)
    own = [one[name].whole() if name in one else None for one in each]
    if name == "condition":
        if any(one is not None for one in own) and all(one is None or not one.shape for one in own):
            arrays[name] = Array(
                _values(name, [None if one is None else one.item() for one in own])
            )
        return
    differs = next((i for i, one in enumerate(own) if not np.array_equal(own[0], one)), None)
    says = next(one[name].says for one in each if name in one)
    if name in SAME and differs is not None:
        raise ValueError(f"trials 0 and {differs} differ in {name}; expected the same")
    if lacks is not None:
        arrays.notes.append(f"{name} is not read, since trial {lacks} has none")
    elif not any(one.shape for one in own) and labels.axis(name) == "trial":
        numbers = np.array(own)
        whole = numbers.dtype.kind in "iuf" and (numbers == np.round(numbers)).all()
        if whole and len(set(numbers.tolist())) == len(own):
            arrays["trial_id"] = Array(numbers)
    elif name not in SAME and all(one[name].axes and len(one[name].shape) == 2 for one in each):
        ready = [labels.oriented(one, name) for one in each]
        is_mask = ready[0].dtype.kind == "b" or name.endswith("mask")
        arrays[name] = Array(padding.Padded(ready, mask=is_mask), says)
    elif differs is None and name not in OF_TRIALS:
        arrays[name] = Array(own[0], says, each[0][name].axes)
    elif len({one.shape for one in own}) == 1:
        arrays[name] = Array(np.stack(own), says)
    else:
        arrays.notes.append(f"{name} is not read, since it is of another size in trial {differs}")


def _combine_times(
    arrays: Arrays, each: Sequence[Arrays], lengths: Sequence[int], bin_width: float
) -> None:
    """Add when trials begin: all at one time of an axis that they share, or each at its own."""
    lacks = next((i for i, one in enumerate(each) if "time_start" not in one), None)
    if lacks is not None:
        arrays.notes.append(f"times of trials are not read, since trial {lacks} says none")
        return
    starts = np.array([float(one["time_start"].whole()) for one in each])
    longest = int(np.argmax(lengths))
    if np.ptp(starts) <= 1e-3 * bin_width:
        arrays["time_start"] = each[longest]["time_start"]
        return
    order = np.argsort(starts, kind="stable")
    ends = np.maximum.accumulate((starts + np.multiply(lengths, bin_width))[order])
    note = f"trials begin at {starts.min():g} to {starts.max():g} s and are aligned by their first "
    note += "bins, which are at time 0"
    if (starts[order][1:] < ends[:-1] - 1e-3 * bin_width).all():
        # Times of the recording would be of trials that cannot be split.
        note += "; since all overlap, these are taken as times about an event of each trial"
    else:
        arrays.setdefault("trial_start", Array(starts))
    arrays.notes.append(note)


def _is_regular(given: Sequence[Any]) -> bool:
    """Whether nested lists are one array, and not trials that are arrays of their own."""
    return not any(hasattr(trial, "shape") or np.ndim(trial) == 2 for trial in given)


def _array(given: Any) -> np.ndarray:
    """An array of numbers, NaN where masked."""
    is_table = hasattr(given, "columns")
    values = np.asanyarray(getattr(given, "values", given) if is_table else given)
    if values.dtype == object:
        try:  # None, or what pandas has for it, is not observed
            if is_table:
                return given.to_numpy(np.float64, na_value=np.nan)
            if values.shape and not any(isinstance(one, str) for one in values.flat):
                return values.astype(np.float64)
        except (TypeError, ValueError):
            pass
        kind = f"a {type(given).__name__} of no plain numbers"
        remedy = ", such as toarray() gives" if hasattr(given, "toarray") else ""
        raise ValueError(f"spikes is {kind}; expected an array of counts{remedy}")
    if np.ma.is_masked(values):
        return values.astype(np.result_type(values, np.float32)).filled(np.nan)
    return np.asarray(np.ma.getdata(values))
