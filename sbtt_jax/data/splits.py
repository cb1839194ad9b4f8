"""Which trials of a recording are for training, validation and test."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from sbtt_jax.data import binning, labels, layout
from sbtt_jax.data.arrays import Arrays
from sbtt_jax.data.dataset import Dataset, Mask, Trials, lengths_of


def of(
    arrays: Arrays,
    trials: Mapping[str, Trials],
    condition: Trials | None,
    chains: Trials | None,
    valid_fraction: float,
    seed: int,
) -> dict[str, Trials]:
    """The trials of each split: as the arrays hold or name them, otherwise drawn.

    trials: those of each part of the arrays, by its split. chains: as of `overlapping`, of which a
      note tells. The rest is that of `stratified`.

    Raises InputError if the arrays name others than the trials that there are.
    """
    split = dict(trials)
    if (whole := split.pop(layout.WHOLE, None)) is not None:
        own = _named(arrays, len(whole), split)
        split |= own or _drawn(whole, condition, chains, valid_fraction, seed)
    if chains is not None:
        arrays.notes.append(_told(chains, list(split.values())))
    return split


def overlapping(
    arrays: Arrays, starts: Float[np.ndarray, " trial"] | None, observed: Mask, bin_width: float
) -> Trials | None:
    """Numbers of the chains of trials that overlap in time; None if none do.

    Trials that share a moment have to be on one side of the split, or what is held out in one would
    be seen in another. starts: seconds, None if they are not known; the arrays say how exact.
    """
    if starts is None:
        return None
    if (stored := arrays["trial_start"].dtype).kind == "f":
        starts = starts.astype(stored)
    close = max(1e-6 * bin_width, binning.rounding(starts, bin_width))
    starts, lengths = starts.astype(np.float64), lengths_of(observed)
    lengths = observed.shape[1] if lengths is None else lengths
    ends, order = starts + lengths * bin_width, np.argsort(starts, kind="stable")
    latest = np.maximum.accumulate(ends[order])
    apart = starts[order][1:] >= latest[:-1] - close
    if apart.all():
        return None
    chains = np.empty(len(starts), np.int64)
    chains[order] = np.r_[0, np.cumsum(apart)]
    return chains


def _told(chains: Trials, sides: Sequence[Trials]) -> str:
    """A note on trials that overlap in time. sides: the trials of each split."""
    many = (np.bincount(chains)[chains] > 1).sum()
    seen = np.array([np.isin(np.arange(chains.max() + 1), chains[side]) for side in sides])
    split = seen.sum(0) > 1
    side = "and are on the same side of the split as those"
    if split.any():
        both = np.isin(chains, np.flatnonzero(split)).sum()
        side = f"and the file has {both} of them in other splits than those that they overlap; "
        side += "scores are of moments that were trained on"
    elif chains.max() == 0:
        side = "in one chain, which cannot be split"
    return f"{many} of {len(chains)} trials overlap others in time, {side}"


def _drawn(
    whole: Trials,
    condition: Trials | None,
    chains: Trials | None,
    valid_fraction: float,
    seed: int,
) -> dict[str, Trials]:
    """A share of the trials for validation, of each condition or, if some overlap, of their
    chains."""
    groups = np.zeros(len(whole), int) if condition is None else condition[whole]
    part = np.arange(len(whole))
    if chains is not None:  # they take the place of trials, conditions play no part
        _, part = np.unique(chains[whole], return_inverse=True)
        groups = np.zeros(part.max(initial=-1) + 1, int)
    if len(groups) < 2:
        return {"train": whole, "valid": whole[:0]}
    valid = np.isin(part, stratified(groups, valid_fraction, seed)[1])
    return {"train": whole[~valid], "valid": whole[valid]}


def _named(arrays: Arrays, count: int, others: Mapping[str, Any]) -> dict[str, Trials]:
    """The splits by the trials that train_inds and its kin name, if they are there."""
    keys = [f"{split}_inds" for split in layout.SPLITS if split not in others]
    keys = [key for key in keys if key in arrays]
    if not keys:
        return {}
    for key in ("train_inds", "valid_inds"):
        if key not in keys:
            raise arrays.error(f"has {' and '.join(keys)} and no {key}; expected both or none")
    said = {key.removesuffix("_inds"): labels.whole_numbers(arrays, key) for key in keys}
    for key, trials in zip(keys, said.values(), strict=True):
        arrays.check(key, trials is not None, "whole numbers of trials of spikes")
    every = np.sort(np.concatenate(list(said.values())))
    first = every[:1].sum()  # MATLAB counts from 1
    if first not in (0, 1) or not np.array_equal(every, np.arange(count) + first):
        raise arrays.error(
            f"{' and '.join(keys)} are to name each of the {count} trials of spikes once, from 0 "
            "or from 1; leave them out to have the trials split here"
        )
    return {split: np.sort(trials - first) for split, trials in said.items()}


def stratified(
    condition: Trials, valid_fraction: float = 0.2, seed: int = 0
) -> tuple[Trials, Trials]:
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


def in_recorded_order(arrays: Arrays, data: Dataset) -> Dataset:
    """The data with trials ordered by the numbers that train_inds and its kin give those of split
    counts, if they are there."""
    named = {f"{name}_inds": getattr(data, name) for name in layout.SPLITS}
    named = {key: trials for key, trials in named.items() if trials is not None}
    keys = [key for key in named if key in arrays]
    if not keys or layout.WHOLE in arrays:
        return data
    if len(keys) < len(named):
        missing = next(key for key in named if key not in keys)
        raise arrays.error(f"has {' and '.join(keys)} and no {missing}; expected all or none")
    index = np.empty(len(data.counts), np.int64)
    for key, trials in named.items():
        numbers = labels.whole_numbers(arrays, key)
        sound = numbers is not None and len(numbers) == len(trials)
        arrays.check(key, sound, f"a whole number for each of {len(trials)} trials")
        index[trials] = numbers
    order = np.argsort(index)
    if (np.diff(index[order]) == 0).any():
        raise arrays.error(f"{' and '.join(named)} name a trial twice")
    known = {"condition": data.condition, "trial_start": data.trial_start}
    read = " and ".join(name for name, values in known.items() if values is not None)
    if read and (order != np.arange(len(order))).any():
        splits_in_order = ", then ".join(key.replace("_inds", "") for key in named)
        arrays.notes.append(
            f"{read}: taken to be of the trials of {splits_in_order}, in that order"
        )
    return replace(data, trial_index=index).take_trials(order)
