"""Trials of spike counts, which points were observed, and how trials are split.

Outside, a NaN in the counts means not observed. Inside, counts are small integers beside a mask.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from sbtt_jax.data import lorenz
from sbtt_jax.data.readers import memory, size
from sbtt_jax.errors import InputError

LEAST_VARIANCE = 0.1  # of the mean over neurons
SPLITS = ("train", "valid")
Mask = Bool[np.ndarray, "trial bin neuron"]
Trials = Int[np.ndarray, " _trials"]  # indices


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
    condition: Int[np.ndarray, " trial"] | None = None  # of each trial, if there are any
    # Numbers in the recording, if they are not the indices here, and those of what was left out.
    trial_index: Int[np.ndarray, " trial"] | None = None
    neuron_index: Int[np.ndarray, " neuron"] | None = None
    dropped_trials: tuple[int, ...] = ()
    dropped_neurons: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()  # what was assumed in reading the recording, one sentence each

    @property
    def neurons(self) -> int:
        return self.counts.shape[2]

    @cached_property
    def lengths(self) -> Int[np.ndarray, " trial"] | None:
        """Bins of each trial; the rest is padding. None if all trials are full."""
        return lengths_of(self.observed)

    @property
    def inside(self) -> Bool[np.ndarray, "trial bin 1"]:
        """False in the padding after a trial's end."""
        return _inside(self.observed)[..., None]

    @property
    def trial_numbers(self) -> Int[np.ndarray, " trial"]:
        """Each trial's number in the recording."""
        return np.arange(len(self.counts)) if self.trial_index is None else self.trial_index

    @property
    def neuron_numbers(self) -> Int[np.ndarray, " neuron"]:
        """Each neuron's number in the recording."""
        return np.arange(self.neurons) if self.neuron_index is None else self.neuron_index

    def take_trials(self, trials: Trials, train: Trials, valid: Trials) -> "Dataset":
        """The data with these trials, split anew, each keeping its number."""
        index = {"trial_index": self.trial_numbers[trials]}
        if self.condition is not None:
            index["condition"] = self.condition[trials]
        return self._take(trials, train=train, valid=valid, **index)

    def take_neurons(self, neurons: Int[np.ndarray, " kept"]) -> "Dataset":
        """The data with these neurons, each keeping its number."""
        return self._take((..., neurons), neuron_index=self.neuron_numbers[neurons])

    def _take(self, index: Any, **changes: Any) -> "Dataset":
        arrays = {name: getattr(self, name) for name in ("counts", "observed", "rates")}
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


def statistics(
    values: Num[np.ndarray, "trial bin neuron"], observed: Mask, trials: Trials
) -> Statistics:
    """Mean and standard deviation of each neuron's counts or other values over some trials.

    Made for dividing by: a neuron without spikes is taken to have had half a one, and no variance
    to be below a tenth of the mean over neurons, or a few spikes would outweigh all others.
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
    variance = np.maximum(variance, LEAST_VARIANCE * variance.mean() or 1.0)
    return Statistics(total / points, np.sqrt(variance))


def from_lorenz(
    seed: int = 0, valid_fraction: float = 0.2, bin_width: float = 0.02, **sizes: int
) -> Dataset:
    """A generated Lorenz set with every point observed; `sizes` as in `lorenz.generate`.

    Raises InputError if a size or width is impossible, or the set would not fit in memory.
    """
    check_memory("Lorenz set: the sizes ask for", tuple(sizes.values()))
    try:
        made = lorenz.generate(seed, bin_width=bin_width, **sizes)
        train, valid = split(made.condition, valid_fraction, seed)
    except ValueError as error:
        raise InputError(f"Lorenz set: {error}") from None
    observed, rates = np.ones(made.counts.shape, bool), made.rates[made.condition]
    return Dataset(made.counts, observed, train, valid, bin_width, rates, made.condition)


def check_memory(claim: str, shape: tuple[int, ...]) -> None:
    """Refuse what would not fit, before any of it is allocated."""
    needed = 2 * math.prod(shape)  # at least one byte for the count and one for the mask
    if needed > memory():
        needs, has = (f"{number / 2**30:.0f} GiB" for number in (needed, memory()))
        counts = f"{size(shape)} counts, {needs} as small integers"
        raise InputError(f"{claim} {counts}; this machine's memory is {has}")


def split(condition: Trials, valid_fraction: float = 0.2, seed: int = 0) -> tuple[Trials, Trials]:
    """Sorted indices of training and validation trials, drawn at random, conditions equally.

    condition: of each trial (any integers; all the same if there are none). Each gives its share of
      validation trials, rounded up or down so that the total is right; both sides get at least one
      trial.

    Raises ValueError for a valid_fraction outside (0, 1) and for fewer than two trials.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}; give a number between 0 and 1")
    if (trials := condition.size) < 2:
        raise ValueError(f"condition has {trials} trials; a split needs at least 2")
    rng = np.random.default_rng(seed)
    _, member, size = np.unique(condition, return_inverse=True, return_counts=True)

    total = min(max(round(valid_fraction * trials), 1), trials - 1)
    share = total / trials * size
    quota = np.floor(share).astype(int)
    # The largest remainders are rounded up, in random order where they are equal.
    remainder = np.round(share - quota, 9)
    by_remainder = np.lexsort((rng.random(size.size), -remainder))
    quota[by_remainder[: total - quota.sum()]] += 1

    shuffled = np.lexsort((rng.random(trials), member))  # by condition
    place = np.arange(trials) - np.repeat(np.cumsum(size) - size, size)  # in its condition
    valid = np.empty(trials, bool)
    valid[shuffled] = place < np.repeat(quota, size)
    return np.flatnonzero(~valid), np.flatnonzero(valid)
