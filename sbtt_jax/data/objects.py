"""Recordings as people have them in Python: arrays, masked arrays, lists of trials, labelled
arrays, spike times with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbtt_jax.data import binning, labels, trials
from sbtt_jax.data.arrays import Array, Arrays, size
from sbtt_jax.errors import InputError

# Columns of a table that are kept beside those of neurons.
NO_NEURONS = {"trial", "trials", "trial_id", "condition", "bin", "bins", "time", "times"}
NO_NEURONS |= {"index", "timestamp", "timestamps", "unnamed: 0"}


class Recording:
    """A recording in memory, with all that is known about it.

    spikes: one of
      counts, trial x bin x neuron, NaN (or masked, in a masked array) where not observed;
      a list of such trials, bin x neuron each, of any length;
      counts of a session without trials, bin x neuron, which is cut into windows (`data.chop`);
      a labelled array (xarray.DataArray), whose dimensions may come in any order, and whose
      coordinates give the bin width and the neurons;
      a table with a row per bin (pandas.DataFrame, pynapple.TsdFrame);
      with `trials`, spike times in seconds: a mapping from neurons to times, a list of arrays, or a
      pynapple.TsGroup.
    bin_width: in seconds, as a number, a timedelta or a quantity with a unit.
    condition: a number or name for each trial, None where it is not known.
    trials: of spike times: start and end of each trial in seconds, trial x 2, or a pynapple
      IntervalSet. Spike times without trials are one session, as long as was observed.
    observed: of spike times: when each neuron was observed, as intervals for all of them, or a list
      or mapping with those of each; everywhere if None.
    unit_id: a number or name for each neuron.
    given: booleans, bin x neuron, false for what is predicted without being input; all is if None.

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
    ):
        arrays = Arrays("array", {})
        if isinstance(spikes, str | Path):
            raise arrays.error(f"{spikes} is a path; fit, infer and score take it as it is")
        try:
            if bin_width is not None:
                arrays["bin_width"] = Array(np.array(labels.seconds(bin_width)))
            if is_spike_times(spikes) or trials is not None or observed is not None:
                self._bin(arrays, spikes, trials, observed)
            else:
                _read(arrays, spikes)
            known = None if condition is None else _without_none(condition)
            for key, values in {"condition": known, "unit_id": unit_id, "given": given}.items():
                if values is not None:
                    arrays[key] = Array(labels.texts(values))
        except Exception as error:  # objects of other libraries raise their own
            text = str(error) or type(error).__name__
            raise error if text.startswith("array: ") else arrays.error(text) from None
        self.arrays = arrays

    @staticmethod
    def _bin(arrays: Arrays, spikes: Any, windows: Any, observed: Any) -> None:
        """Add counts of spike times."""
        if not is_spike_times(spikes):
            raise ValueError(
                "trials and observed go with spike times, which are a list or mapping of an array "
                "for each neuron, and spikes are counts; mark what was not observed by NaN instead"
            )
        if "bin_width" not in arrays:
            raise ValueError("spike times need a bin_width, such as 0.02 for 20 ms")
        width = float(arrays["bin_width"].whole())
        names, times = spike_times(spikes)
        if observed is None:
            observed = _support(spikes, names, times)
        seen = _observed(observed, names)
        if windows is None:
            windows = _extent(times, seen, width)
            counts, mask = binning.count_spikes(times, windows, width, seen)
            counts, mask = counts[0], mask[0]
            arrays["time_start"] = Array(windows[0, 0])
        else:
            windows = intervals(windows)
            counts, mask = binning.count_spikes(times, windows, width, seen)
            arrays.notes.extend(binning.few_counted(times, counts))
            arrays["trial_start"] = Array(windows[:, 0])
        arrays |= {"spikes": Array(counts), "spikes_mask": Array(mask)}
        arrays["unit_id"] = Array(np.asarray(names))

    def __repr__(self) -> str:
        array, width = self.arrays["spikes"], self.arrays.get("bin_width")
        bins = "" if width is None else f", bins of {1000 * float(width.whole()):g} ms"
        return f"Recording({size(array.shape)} of {array.dtype}{bins})"


def recording(spikes: Any, **known: Any) -> Recording:
    """A recording as it is, or one made of counts or spike times and what is known about them.

    Raises InputError as `Recording`.
    """
    if not isinstance(spikes, Recording):
        return Recording(spikes, **known)
    if given := [name for name, value in known.items() if value is not None]:
        raise InputError(f"{given[0]}: give it to sbtt_jax.Recording, not beside one")
    return spikes


def _without_none(condition: Any) -> Any:
    """A number or name for each trial, NaN or "" in place of None (and NaN among names)."""
    # Not a list as it is, of which NumPy would make one of texts.
    values = np.asarray(condition, None if hasattr(condition, "dtype") else object)
    if values.dtype != object:
        return values
    missing = "" if any(isinstance(one, str) for one in values.flat) else np.nan
    return [missing if one is None or one != one else one for one in values.ravel().tolist()]


def is_spike_times(spikes: Any) -> bool:
    """Whether these are times per neuron rather than counts.

    Raises ValueError for lists that could be either.
    """
    if hasattr(spikes, "data_vars"):  # xarray
        raise ValueError("spikes is a Dataset; expected one of its arrays, as in data['spikes']")
    if isinstance(spikes, Mapping) or (hasattr(spikes, "time_support") and hasattr(spikes, "keys")):
        return True
    if not (isinstance(spikes, list | tuple) and len(spikes) and all(map(_is_train, spikes))):
        return False
    is_table = all(type(one) in (list, tuple) for one in spikes) and len(set(map(len, spikes))) == 1
    if is_table and np.asarray(spikes).dtype.kind in "biu":
        either = "equally long lists of whole numbers may be counts or spike times"
        raise ValueError(f"{either}; give counts as an array, times as a mapping from neurons")
    return True


def _is_train(one: Any) -> bool:
    return (hasattr(one, "t") and hasattr(one, "time_support")) or np.ndim(one) == 1


def spike_times(spikes: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Names of the neurons, and the times of each in seconds.

    Raises ValueError if their unit is no time.
    """
    named = hasattr(spikes, "keys")
    names = list(spikes.keys()) if named else list(range(len(spikes)))
    trains = [spikes[name] for name in names]
    trains = [one.t if hasattr(one, "time_support") else labels.in_seconds(one) for one in trains]
    return names, [np.asarray(one, float) for one in trains]


def _support(spikes: Any, names: Sequence[Any], times: Sequence[np.ndarray]) -> Any:
    """When spike times know that they were recorded, for all neurons or for each."""
    if hasattr(spikes, "time_support"):
        return spikes.time_support
    each = [_support_of(spikes[name], own) for name, own in zip(names, times, strict=True)]
    return None if all(one is None for one in each) else each


def _support_of(train: Any, times: np.ndarray) -> np.ndarray | None:
    if hasattr(train, "t_start") and hasattr(train, "t_stop"):  # neo
        return np.array([[labels.seconds(train.t_start), labels.seconds(train.t_stop)]])
    if not hasattr(train, "time_support"):
        return None
    support = intervals(train.time_support)
    # From the first to the last spike is what pynapple assumes where nobody said anything.
    assumed = times.size and np.array_equal(support, [[times.min(), times.max()]])
    return None if assumed else support


def intervals(given: Any) -> np.ndarray:
    """Start and end of intervals, interval x 2, from an array or an object with both."""
    if hasattr(given, "start") and hasattr(given, "end"):
        ends = [np.ravel(labels.in_seconds(ends)) for ends in (given.start, given.end)]
        return np.stack(ends, axis=1).astype(float)
    return np.asarray(labels.in_seconds(given), float)


def _extent(times: Sequence[np.ndarray], observed: Any, bin_width: float) -> np.ndarray:
    """From the first to the last moment that was observed or, where nobody says what was, from the
    first spike to the end of the last one's bin."""
    each = observed if isinstance(observed, list) else [observed] * len(times)
    ends = [np.ravel(t if one is None else one) for t, one in zip(times, each, strict=True)]
    ends = np.concatenate(ends)
    if not ends.size:
        raise ValueError("no spikes, and no intervals that were observed")
    return binning.session(ends, bin_width, to_end=any(one is None for one in each))


def _observed(given: Any, names: Sequence[Any]) -> Any:
    if isinstance(given, Mapping):
        if missing := [name for name in names if name not in given]:
            raise ValueError(f"observed has no intervals for neuron {missing[0]}")
        if others := [name for name in given if name not in names]:
            raise ValueError(f"observed has intervals for {others[0]}, which is no neuron")
        return [intervals(given[name]) for name in names]
    if isinstance(given, list | tuple) and np.ndim(given[0] if len(given) else 0) != 1:
        return [None if one is None else intervals(one) for one in given]
    return None if given is None else intervals(given)


def _read(arrays: Arrays, spikes: Any) -> None:
    """Add counts, and what their object says about them."""
    if isinstance(spikes, list | tuple) and not _is_regular(spikes):
        _read_trials(arrays, spikes)
        return
    axes, coordinates, says = None, {}, dict(getattr(spikes, "attrs", None) or {})
    if hasattr(spikes, "dims") and hasattr(spikes, "coords"):  # xarray
        axes = [str(name) for name in spikes.dims]
        own = {name: spikes[name] for name in spikes.dims if name in spikes.coords}
        coordinates = {n: (np.asarray(one), labels.unit_of(one.attrs)) for n, one in own.items()}
        if "condition" in spikes.coords and "condition" not in axes:
            arrays["condition"] = Array(labels.texts(_without_none(spikes["condition"])))
        if labels.axes_order(axes) is None:
            rule = "expected trial, bin (or time) and neuron (or unit), in any order"
            raise ValueError(f"the dimensions are {', '.join(axes)}; {rule}")
    elif hasattr(spikes, "columns"):  # pandas, pynapple
        axes, is_series = ["time", "neuron"], hasattr(spikes, "time_support")
        for name in spikes.columns:
            if str(name).lower() in NO_NEURONS:
                rule = "expected a column for each neuron, and times in the index"
                raise ValueError(f"the column {name} looks like none of a neuron; {rule}")
        times = np.asarray(spikes.t if is_series else spikes.index)
        coordinates = {"time": (times, "s" if is_series else None)}
        coordinates["neuron"] = np.asarray(spikes.columns), None
    elif hasattr(spikes, "time_support"):
        raise ValueError(f"spikes is a {type(spikes).__name__}; expected counts or a TsGroup")
    elif (unit := labels.unit_of(_attributes(spikes))) is not None:
        says["units"] = unit
    arrays["spikes"] = Array(_array(spikes), says, axes)
    labels.add_coordinates(arrays, coordinates, says)


def _attributes(quantity: Any) -> dict[str, Any]:
    return {name: getattr(quantity, name, None) for name in ("units", "unit")}


def _read_trials(arrays: Arrays, given: Sequence[Any]) -> None:
    """Add trials of different length, which have to say the same about themselves."""
    each, names = [], {"bin_width", "unit_id"}
    for number, trial in enumerate(given):
        one = Arrays(f"trial {number}", {k: v for k, v in arrays.items() if k == "bin_width"})
        _read(one, trial)
        each.append(one)
        for name in names:
            values = [own[name].whole() if name in own else None for own in (each[0], one)]
            if not np.array_equal(*values):
                raise ValueError(f"trials 0 and {number} differ in {name}; expected the same")
    arrays |= {name: each[0][name] for name in names if name in each[0]}
    ready = [labels.oriented(one, "spikes") for one in each]
    fills = {fill for one in each for fill in labels.fills(one, "spikes")}
    arrays["spikes"] = Array(trials.Padded(ready), {"_FillValue": list(fills)})
    if all("condition" in one for one in each):
        arrays["condition"] = Array(np.stack([one["condition"].whole() for one in each]))


def _is_regular(given: Sequence[Any]) -> bool:
    """Whether nested lists are one array, and not trials that are arrays of their own."""
    return not any(hasattr(trial, "shape") for trial in given) and not any(
        np.ndim(trial) == 2 for trial in given
    )


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
