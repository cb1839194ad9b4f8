"""Which trials of a recording are for training, validation and test, if it is split here."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sbtt_jax.data import layout
from sbtt_jax.data.arrays import Arrays
from sbtt_jax.data.dataset import Mask, Trials, lengths_of, split


def overlapping(
    arrays: Arrays, starts: Float[np.ndarray, " trial"], observed: Mask, bin_width: float
) -> Trials | None:
    """Numbers of the chains of trials that overlap in time; None, with no note, if none do.

    Trials that share a moment have to be on one side of the split, or what is held out in one would
    be seen in another.
    """
    lengths = lengths_of(observed)
    lengths = observed.shape[1] if lengths is None else lengths
    ends, order = starts + lengths * bin_width, np.argsort(starts, kind="stable")
    latest = np.maximum.accumulate(ends[order])
    apart = starts[order][1:] >= latest[:-1] - 1e-6 * bin_width
    if apart.all():
        return None
    chains = np.empty(len(starts), np.int64)
    chains[order] = np.r_[0, np.cumsum(apart)]
    many = (np.bincount(chains)[chains] > 1).sum()
    side = "in one chain, which cannot be split"
    if apart.any():
        side = "and are on the same side of the split as those"
    arrays.notes.append(f"{many} of {len(chains)} trials overlap others in time, {side}")
    return chains


def drawn(
    whole: Trials,
    condition: Trials | None,
    chains: Trials | None,
    valid_fraction: float,
    seed: int,
) -> dict[str, Trials]:
    """A share of the trials for validation, of each condition or, if some overlap, of their chains.

    whole: the trials to be split. chains: as of `overlapping`. The rest is that of `dataset.split`.
    """
    if len(whole) < 2:
        return {"train": whole, "valid": whole[:0]}
    if chains is not None:  # they take the place of trials, conditions play no part
        each = np.arange(chains.max() + 1)
        if len(each) < 2:
            return {"train": whole, "valid": whole[:0]}
        valid = np.isin(chains, split(np.zeros(len(each), int), valid_fraction, seed)[1])
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
    for key in keys:
        arrays.check(key, arrays[key].dtype.kind in "iu", "whole numbers of trials of spikes")
    said = {key.removesuffix("_inds"): arrays[key].whole().ravel() for key in keys}
    every = np.sort(np.concatenate(list(said.values()))).astype(np.int64)
    first = every[:1].sum()  # MATLAB counts from 1
    if first not in (0, 1) or not np.array_equal(every, np.arange(count) + first):
        raise arrays.error(
            f"{' and '.join(keys)} are to name each of the {count} trials of spikes once, from 0 "
            "or from 1; leave them out to have the trials split here"
        )
    return {split: np.sort(trials.astype(np.int64) - first) for split, trials in said.items()}
