"""Spike times as objects in Python have them: lists, mappings, pynapple's and neo's trains, and
intervals in which neurons were observed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbtt_jax.data import binning, coordinates, labels

# Columns with the ends of intervals; the last are those of a trials table of NWB.
ENDS = ("start", "end"), ("start", "stop"), ("start_time", "stop_time")


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
    if _may_be_counts(spikes):
        either = "equally long lists of whole numbers may be counts or spike times"
        raise ValueError(f"{either}; give counts as an array, times as a mapping from neurons")
    return True


def _is_train(one: Any) -> bool:
    if hasattr(one, "t") and hasattr(one, "time_support"):
        return not _is_sampled(one)
    return np.ndim(one) == 1


def _is_sampled(series: Any) -> bool:
    """Whether a pynapple object has values at regular times, and not at those of spikes."""
    if not hasattr(series, "values"):
        return False
    return (
        hasattr(series, "columns")
        or coordinates.regular_step(np.asarray(series.t)[:1000]) is not None
    )


def _may_be_counts(trains: Sequence[Any]) -> bool:
    """Whether rows of numbers without a unit are as counts would be: as long, and whole."""
    if any(hasattr(one, name) for one in trains for name in ("time_support", "units", "unit")):
        return False
    if any(labels.unit_of(getattr(one, "attrs", {})) for one in trains):
        return False
    if len({len(one) for one in trains}) > 1:
        return False
    rows = np.asarray([np.asarray(one) for one in trains])
    if rows.dtype.kind == "f" and rows.size and len(rows) > 1:
        return bool((rows == np.round(rows))[np.isfinite(rows)].all())
    return rows.dtype.kind in "biu"


def spike_times(spikes: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Names of the neurons, and the times of each in seconds.

    Raises ValueError if their unit is no time, or they have values at regular times.
    """
    named = hasattr(spikes, "keys")
    names = list(spikes.keys()) if named else list(range(len(spikes)))
    trains, times = [spikes[name] for name in names], []
    for name, one in zip(names, trains, strict=True):
        has_times = hasattr(one, "time_support")
        if has_times and _is_sampled(one):
            kind = f"spikes of {name} is a {type(one).__name__}, values at regular times"
            raise ValueError(f"{kind}; expected spike times (Ts), or counts as one TsdFrame")
        times.append(np.asarray(one.t if has_times else labels.in_seconds(one), float))
    return names, times


def support(spikes: Any, names: Sequence[Any], times: Sequence[np.ndarray]) -> Any:
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
    recorded = intervals(train.time_support)
    # From the first to the last spike is what pynapple assumes where nobody said anything.
    assumed = times.size and np.array_equal(recorded, [[times.min(), times.max()]])
    return None if assumed else recorded


def intervals(given: Any, called: str = "observed") -> np.ndarray:
    """Start and end of intervals, interval x 2, from an array, a table or an object with both."""
    columns, both = getattr(given, "columns", ()), None
    if hasattr(given, "start") and hasattr(given, "end"):
        both = given.start, given.end
    elif names := next((names for names in ENDS if set(names) <= set(columns)), None):
        both = [given[name] for name in names]
    if both is not None:
        return np.stack([np.ravel(labels.in_seconds(ends)) for ends in both], axis=1).astype(float)
    return binning.numbers(called, labels.in_seconds(given), "start and end of each, in seconds")


def extent(
    times: Sequence[np.ndarray], observed: Sequence[np.ndarray | None], bin_width: float
) -> np.ndarray:
    """From the first to the last moment that was observed or, where nobody says what was, from the
    first spike to the end of the last one's bin."""
    ends = [np.ravel(t if one is None else one) for t, one in zip(times, observed, strict=True)]
    ends = np.concatenate(ends)
    if not ends.size:
        raise ValueError("no spikes, and no intervals that were observed")
    return binning.session(ends, bin_width, to_end=any(one is None for one in observed))


def observed_of(given: Any) -> Any:
    """When neurons were observed, as `binning.per_neuron` takes it, from objects and quantities."""
    if isinstance(given, Mapping) and not hasattr(given, "start"):
        return {name: observed_of(one) for name, one in given.items()}
    if isinstance(given, list | tuple):
        return [
            intervals(one) if hasattr(one, "start") else labels.in_seconds(one) for one in given
        ]
    return None if given is None else intervals(given)
