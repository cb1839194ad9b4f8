"""Trials of spike counts, which points were observed, and what each trial is for.

Outside, a NaN in the counts means not observed. Inside, counts are small integers beside a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from sbtt_jax.data import lorenz

LEAST_VARIANCE = 0.1  # of the mean over neurons
Mask = Bool[np.ndarray, "trial bin neuron"]
Trials = Int[np.ndarray, " _trials"]  # indices


class Session(NamedTuple):
    """A recording without trials, whose windows are the trials of a data set.

    trial_starts: first bin of each trial.
    starts, lengths: first bin and bins of the overlapping windows that rates are inferred in.
    """

    counts: Num[np.ndarray, "bin neuron"]
    observed: Bool[np.ndarray, "bin neuron"]
    trial_starts: Int[np.ndarray, " trial"]
    starts: Int[np.ndarray, " window"]
    lengths: Int[np.ndarray, " window"]


@dataclass(frozen=True)
class Dataset:
    """All trials of one recording, in the order of the recording."""

    counts: Num[np.ndarray, "trial bin neuron"]  # or other values; anything where not observed
    observed: Mask  # false where the recording itself has no sample
    train: Trials
    valid: Trials
    bin_width: float  # seconds
    # True rates in expected counts per bin, if known; 0 after a trial's end.
    rates: Float[np.ndarray, "trial bin neuron"] | None = None
    condition: Int[np.ndarray, " trial"] | None = None  # of each trial, if any; -1 if not known
    condition_names: Shaped[np.ndarray, " condition"] | None = None  # numbers or texts
    # Trials that neither train nor choose, if there are any: they are reported on.
    test: Trials | None = None
    # Which points may be input; others are only predicted. None: all.
    given: Bool[np.ndarray, "bin neuron"] | None = None
    # Numbers in the recording, if they are not the indices here, and those of what was left out.
    trial_index: Int[np.ndarray, " trial"] | None = None
    neuron_index: Int[np.ndarray, " neuron"] | None = None
    dropped_trials: tuple[int, ...] = ()
    dropped_neurons: tuple[int, ...] = ()
    # What the recording says about its axes: names of neurons, the time of the first bin on the
    # time axis, and of each trial in the recording's own clock (seconds).
    unit_id: Shaped[np.ndarray, " neuron"] | None = None
    time_start: float = 0.0
    # Of each bin (of a session, of all its bins), if the recording has them; as `times` otherwise.
    time: Float[np.ndarray, " _time"] | None = None
    trial_start: Float[np.ndarray, " trial"] | None = None
    session: Session | None = None
    notes: tuple[str, ...] = ()  # what was assumed in reading the recording, one sentence each
    # Of a generated set: the true latents, and how rates follow from the system.
    latents: Float[np.ndarray, "trial bin latent"] | None = None
    readout: lorenz.Readout | None = None

    @property
    def neurons(self) -> int:
        return self.counts.shape[2]

    @property
    def judged(self) -> Trials:
        """The trials that are reported on."""
        return self.valid if self.test is None else self.test

    @property
    def split(self) -> list[str]:
        """What each trial is for: train, valid or test."""
        names = np.full(len(self.counts), "train", dtype=object)
        names[self.valid] = "valid"
        if self.test is not None:
            names[self.test] = "test"
        return names.tolist()

    @cached_property
    def lengths(self) -> Int[np.ndarray, " trial"] | None:
        """Bins of each trial; the rest is padding. None if all trials are full."""
        return None if self.given is not None else lengths_of(self.observed)

    @property
    def inside(self) -> Bool[np.ndarray, "trial bin 1"]:
        """False in the padding after a trial's end."""
        if self.given is not None:  # bins without a sample may be there to be predicted
            return np.ones((*self.counts.shape[:2], 1), bool)
        return _inside(self.observed)[..., None]

    @property
    def only_predicted(self) -> list[Bool[np.ndarray, "bin neuron"]]:
        """Points that are never input: those in bins in which others are, and those in bins in
        which none is; an empty list if all may be input."""
        if self.given is None:
            return []
        ahead = np.broadcast_to(~self.given.any(1, keepdims=True), self.given.shape)
        return [~self.given & ~ahead, ahead]

    def input(self, observed: Mask) -> Mask:
        """Of the observed points, those that may be input."""
        return observed if self.given is None else observed & self.given

    @property
    def times(self) -> Float[np.ndarray, " _time"]:
        """When each bin begins on the time axis, in seconds; of a session, all its bins."""
        if self.time is not None:
            return self.time
        bins = self.counts.shape[1] if self.session is None else len(self.session.counts)
        return self.time_start + np.arange(bins) * self.bin_width

    @property
    def trial_numbers(self) -> Int[np.ndarray, " trial"]:
        """Each trial's number in the recording."""
        return np.arange(len(self.counts)) if self.trial_index is None else self.trial_index

    @property
    def neuron_numbers(self) -> Int[np.ndarray, " neuron"]:
        """Each neuron's number in the recording."""
        return np.arange(self.neurons) if self.neuron_index is None else self.neuron_index

    def conditions_of(self, trials: Trials) -> Shaped[np.ndarray, " trial"] | None:
        """What the recording calls the condition of each of these trials; NaN, or "" among names,
        of a trial that has none; None if no trial has any."""
        if self.condition is None:
            return None
        return named(self.condition_values, self.condition[trials])

    @property
    def condition_values(self) -> Shaped[np.ndarray, " condition"]:
        """What the recording calls each condition; its number if it has no names."""
        if self.condition_names is not None:
            return self.condition_names
        return np.arange(0 if self.condition is None else self.condition.max() + 1)

    @property
    def unit_ids(self) -> Shaped[np.ndarray, " neuron"]:
        """What the recording calls each neuron; its number if it has no names."""
        return self.neuron_numbers if self.unit_id is None else self.unit_id

    def take_trials(self, trials: Trials) -> "Dataset":
        """The data with these trials, in this order, each keeping its number and what it is for."""
        place = np.full(len(self.counts), -1)
        place[trials] = np.arange(len(trials))
        splits = {name: getattr(self, name) for name in ("train", "valid", "test")}
        kept = {name: np.sort(place[s]) for name, s in splits.items() if s is not None}
        kept = {name: places[places >= 0] for name, places in kept.items()}
        session = self.session
        if session is not None:
            session = session._replace(trial_starts=session.trial_starts[trials])
        per_trial = "counts", "observed", "rates", "latents", "condition", "trial_start"
        numbers = {"trial_index": self.trial_numbers[trials], "session": session}
        return self._take(trials, per_trial, **kept, **numbers)

    def take_neurons(self, neurons: Int[np.ndarray, " kept"]) -> "Dataset":
        """The data with these neurons, each keeping its number and name."""
        session = self.session
        if session is not None:
            counts, observed = session.counts[:, neurons], session.observed[:, neurons]
            session = session._replace(counts=counts, observed=observed)
        per_neuron = "counts", "observed", "rates", "unit_id", "given"
        numbers = {"neuron_index": self.neuron_numbers[neurons], "session": session}
        return self._take((..., neurons), per_neuron, **numbers)

    def with_neurons(self, order: Sequence[int], names: Shaped[np.ndarray, " kept"]) -> "Dataset":
        """The data with these neurons, as they are to be called; one of -1 was never observed."""
        order, lost = np.array(order), np.array(order) < 0
        data = self.take_neurons(np.where(lost, 0, order))
        seen, session = data.observed & ~lost, data.session
        if session is not None:
            session = session._replace(observed=session.observed & ~lost)
        given = data.given
        if given is not None:  # as if it could be input in the bins that others can
            given = np.where(lost, given.any(1, keepdims=True), given)
        numbers = np.where(lost, -1, data.neuron_numbers)
        own = {"observed": seen, "session": session, "given": given, "neuron_index": numbers}
        if lost.any() and data.rates is not None:
            own["rates"] = None
            own["notes"] = (*data.notes, "true rates are not read, since some neurons have none")
        return replace(data, **own, unit_id=names)

    def all_judged(self) -> "Dataset":
        """The data with every trial to be reported on, as for a model trained on others."""
        none, every = np.arange(0), np.arange(len(self.counts))
        return replace(self, train=none, valid=none, test=every)

    def _take(self, index: Any, names: Sequence[str], **changes: Any) -> "Dataset":
        arrays = {name: getattr(self, name) for name in names}
        taken = {name: array[index] for name, array in arrays.items() if array is not None}
        return replace(self, **taken, **changes)


def _inside(observed: Mask) -> Bool[np.ndarray, "trial bin"]:
    """Up to the last bin with any sample; bins without one before that are holes, not padding."""
    return np.logical_or.accumulate(observed.any(2)[:, ::-1], axis=1)[:, ::-1]


def lengths_of(observed: Mask) -> Int[np.ndarray, " trial"] | None:
    """Bins of each trial, up to its last bin with any sample; None if all are full."""
    lengths = _inside(observed).sum(1, dtype=np.int32)
    return None if (lengths == observed.shape[1]).all() else lengths


def unobserved(observed: Mask, train: Trials) -> tuple[list[int], list[int]]:
    """Trials without any sample, and neurons without one in the training trials."""
    trials = np.flatnonzero(~observed.any((1, 2)))
    seen = np.zeros(observed.shape[2], bool)
    for trial in train:  # observed[train] would be a copy of all of it
        seen |= observed[trial].any(0)
    return trials.tolist(), np.flatnonzero(~seen).tolist()


class Statistics(NamedTuple):
    """What the values of each neuron are like, in its observed points."""

    mean: Float[np.ndarray, " neuron"]
    deviation: Float[np.ndarray, " neuron"]  # standard deviation


def named(
    names: Shaped[np.ndarray, " condition"], numbers: Int[np.ndarray, " trial"]
) -> Shaped[np.ndarray, " trial"]:
    """The names of conditions with these numbers; NaN, or "" among texts, where one is -1."""
    if (numbers < 0).any():
        names = np.append(names, "" if names.dtype.kind in "SU" else np.nan)
    return names[numbers]


def statistics(
    values: Num[np.ndarray, "trial bin neuron"],
    observed: Mask,
    trials: Trials,
    least: float = LEAST_VARIANCE,
) -> Statistics:
    """Mean and standard deviation of each neuron's counts or other values over some trials.

    Made for dividing by: a neuron without spikes is taken to have had half a one, and no variance
    to be below a share `least` of the mean over neurons, or a few spikes would outweigh all others.
    """
    points, total, squares = np.zeros((3, values.shape[2]))
    for trial in trials:  # all at once would be copies of everything
        own = np.where(observed[trial], values[trial], 0).astype(np.float64)
        points += observed[trial].sum(0)
        total += own.sum(0)
        squares += (own**2).sum(0)
    points = np.maximum(points, 1)
    if np.issubdtype(values.dtype, np.integer):
        total = np.maximum(total, 0.5)
    variance = np.maximum(squares / points - (total / points) ** 2, 0)
    variance = np.maximum(variance, least * variance.mean() or 1.0)
    return Statistics(total / points, np.sqrt(variance))
