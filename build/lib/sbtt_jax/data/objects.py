"""Recordings as people have them in Python: arrays, masked arrays, lists of trials, labelled
arrays, spike times with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbtt_jax.data import binning, labels, trials
from sbtt_jax.data.arrays import Array, Arrays, size
from sbtt_jax.errors import InputError


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
    condition: a number or name for each trial.
    trials: of spike times: start and end of each trial in seconds, trial x 2, or a pynapple
      IntervalSet. Spike times without trials are one session, as long as was observed.
    observed: of spike times: when each neuron was observed, as intervals for all of them, or a list
      or mapping with those of each; everywhere if None.
    unit_id: a number or name for each neuron.

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
    ):
        arrays = Arrays("array", {})
        try:
            if bin_width is not None:
                arrays["bin_width"] = Array(np.array(labels.seconds(bin_width)))
            if is_spike_times(spikes) or trials is not None or observed is not None:
                self._bin(arrays, spikes, trials, observed)
            else:
                _read(arrays, spikes)
        except (ValueError, TypeError) as error:
            raise error if isinstance(error, InputError) else arrays.error(str(error)) from None
        for key, values in (("condition", condition), ("unit_id", unit_id)):
            if values is not None:
                arrays[key] = Array(np.asarray(values))
        self.arrays = arrays

    @staticmethod
    def _bin(arrays: Arrays, spikes: Any, windows: Any, observed: Any) -> None:
        """Add counts of spike times."""
        if not is_spike_times(spikes):
            raise ValueError(
                "trials and observed go with spike times, and spikes are counts; mark what was "
                "not observed by NaN instead"
            )
        if "bin_width" not in arrays:
            raise ValueError("spike times need a bin_width, such as 0.02 for 20 ms")
        width = float(arrays["bin_width"].whole())
        names, times = spike_times(spikes)
        if observed is None:  # where a TsGroup knows that it was recorded
            observed = getattr(spikes, "time_support", None)
        seen = _observed(observed, names)
        if windows is None:
            windows = _extent(times, seen)
            counts, mask = binning.count_spikes(times, windows, width, seen)
            counts, mask = counts[0], mask[0]
            arrays["time_start"] = Array(windows[0, 0])
        else:
            windows = intervals(windows)
            counts, mask = binning.count_spikes(times, windows, width, seen)
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


def is_spike_times(spikes: Any) -> bool:
    """Whether these are times per neuron rather than counts."""
    if isinstance(spikes, Mapping) or (hasattr(spikes, "time_support") and hasattr(spikes, "keys")):
        return True
    return isinstance(spikes, list | tuple) and len(spikes) > 0 and all(map(_is_train, spikes))


def _is_train(one: Any) -> bool:
    return hasattr(one, "t") or np.ndim(one) == 1


def spike_times(spikes: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Names of the neurons, and the times of each in seconds.

    Raises ValueError if their unit is no time.
    """
    named = hasattr(spikes, "keys")
    names = list(spikes.keys()) if named else list(range(len(spikes)))
    trains = [spikes[name] for name in names]
    return names, [np.asarray(getattr(one, "t", labels.in_seconds(one)), float) for one in trains]


def intervals(given: Any) -> np.ndarray:
    """Start and end of intervals, interval x 2, from an array or an object with both."""
    if hasattr(given, "start") and hasattr(given, "end"):
        return np.stack([np.ravel(given.start), np.ravel(given.end)], axis=1).astype(float)
    return np.asarray(labels.in_seconds(given), float)


def _extent(times: Sequence[np.ndarray], observed: Any) -> np.ndarray:
    """From the first to the last moment that was observed, or had a spike."""
    every = [one for one in (observed if isinstance(observed, list) else [observed])]
    ends = np.concatenate([np.ravel(one) for one in every if one is not None] or times)
    if not ends.size:
        raise ValueError("no spikes, and no intervals that were observed")
    return np.array([[ends.min(), ends.max()]])


def _observed(given: Any, names: Sequence[Any]) -> Any:
    if isinstance(given, Mapping):
        if missing := [name for name in names if name not in given]:
            raise ValueError(f"observed has no intervals for neuron {missing[0]}")
        return [intervals(given[name]) for name in names]
    if isinstance(given, list | tuple) and np.ndim(given[0] if len(given) else 0) != 1:
        return [None if one is None else intervals(one) for one in given]
    return None if given is None else intervals(given)


def _read(arrays: Arrays, spikes: Any) -> None:
    """Add counts, and what their object says about them."""
    axes, coordinates, says = None, {}, dict(getattr(spikes, "attrs", None) or {})
    if hasattr(spikes, "dims") and hasattr(spikes, "coords"):  # xarray
        axes = [str(name) for name in spikes.dims]
        coordinates = {name: _times(spikes[name]) for name in axes if name in spikes.coords}
        if "condition" in spikes.coords and "condition" not in axes:
            arrays["condition"] = Array(np.asarray(spikes["condition"]))
        if labels.axes_order(axes) is None:
            rule = "expected trial, bin (or time) and neuron (or unit), in any order"
            raise ValueError(f"the dimensions are {', '.join(axes)}; {rule}")
    elif hasattr(spikes, "columns") and (hasattr(spikes, "t") or hasattr(spikes, "index")):
        axes = ["time", "neuron"]
        times = np.asarray(spikes.t if hasattr(spikes, "t") else spikes.index)
        coordinates = {"time": times, "neuron": np.asarray(spikes.columns)}
    if isinstance(spikes, list | tuple) and not _is_regular(spikes):
        values, mask = trials.stack([_array(trial) for trial in spikes])
        arrays["spikes_mask"] = Array(mask)
    else:
        values = _array(spikes)
        if np.ma.is_masked(values):
            arrays["spikes_mask"] = Array(~np.ma.getmaskarray(values))
    arrays["spikes"] = Array(np.ma.getdata(values), says, axes)
    labels.add_coordinates(arrays, coordinates)


def _times(coordinate: Any) -> np.ndarray:
    """A coordinate, in seconds if it has a unit of time."""
    scale = labels.second_scale(str(coordinate.attrs.get("units", "")))
    values = np.asarray(coordinate)
    return values if scale in (None, 1.0) else values * scale


def _is_regular(given: Sequence[Any]) -> bool:
    """Whether nested lists are one array, and not trials that are arrays of their own."""
    return not any(hasattr(trial, "shape") for trial in given) and not any(
        np.ndim(trial) == 2 for trial in given
    )


def _array(given: Any) -> np.ndarray:
    """An array of plain numbers; a unit other than none is refused."""
    unit = getattr(given, "units", getattr(given, "unit", None))
    if unit is not None and "dimensionless" not in str(unit) and str(unit):
        raise ValueError(f"spikes are in {unit}; expected counts per bin, without a unit")
    return np.asanyarray(getattr(given, "values", given) if hasattr(given, "columns") else given)
