"""Which trials of a recording are for training, validation and test, if it is split here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sbtt_jax.data import binning, labels, layout
from sbtt_jax.data.arrays import Arrays
from sbtt_jax.data.dataset import Mask, Trials, lengths_of, split


def overlapping(
    starts: Float[np.ndarray, " trial"], observed: Mask, bin_width: float
) -> Trials | None:
    """Numbers of the chains of trials that overlap in time; None if none do.

    Trials that share a moment have to be on one side of the split, or what is held out in one would
    be seen in another.
    """
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


def told(chains: Trials, sides: Sequence[Trials]) -> str:
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


def drawn(
    whole: Trials,
    condition: Trials | None,
    chains: Trials | None,
    valid_fraction: float,
    seed: int,
) -> dict[str, Trials]:
    """A share of the trials for validation, of each condition or, if some overlap, of their chains.

    whole: the trials to be split. chains: of all trials, as of `overlapping`. The rest is that of
      `dataset.split`.
    """
    if len(whole) < 2:
        return {"train": whole, "valid": whole[:0]}
    if chains is not None:  # they take the place of trials, conditions play no part
        each, own = np.unique(chains[whole], return_inverse=True)
        if len(each) < 2:
            return {"train": whole, "valid": whole[:0]}
        valid = np.isin(own, split(np.zeros(len(each), int), valid_fraction, seed)[1])
        return {"train": whole[~valid], "valid": whole[valid]}
    groups = np.zeros(len(whole), int) if condition is None else condition[whole]
    train, valid = split(groups, valid_fraction, seed)
    return {"train": whole[train], "valid": whole[valid]}


def named(arrays: Arrays, count: int, others: Mapping[str, Any]) -> dict[str, Trials]:
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
