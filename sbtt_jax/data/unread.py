"""Arrays that are not read: refused if they may say what was observed, otherwise noted where they
are called almost as one that would be read."""

import difflib
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool

from sbtt_jax.data import layout
from sbtt_jax.data.arrays import Array, Arrays, size
from sbtt_jax.data.counts import Counts

# What arrays beside the counts are called; another name that is nearly one of these is noted.
KNOWN = {
    "bin_width", "condition", "conversion_factor", "frame_times", "given", "mask", "rates",
    "sample_offsets", "time_start", "train_inds", "trial_id", "trial_start", "truth", "unit_id",
    "valid_inds", "test_inds",
    *(f"{counts}_{what}" for counts in ("spikes", *layout.SPLITS) for what in ("mask", "truth")),
}  # fmt: skip
LIKE = 0.85  # similarity of names, of at most 1


def notes(
    arrays: Arrays, stored: Mapping[str, tuple[int, ...]], counts: Mapping[str, Counts]
) -> list[str]:
    """Notes on arrays that are not read and may be meant to be.

    stored: shapes of the counts, by their names, as the source has them.

    Raises InputError for a yes or no for every count, which may say what was observed, unless it
    may as well be counts of something else.
    """
    return [*_of_each_count(arrays, stored, counts), *_misspelled(arrays)]


def _of_each_count(
    arrays: Arrays, stored: Mapping[str, tuple[int, ...]], counts: Mapping[str, Counts]
) -> Iterator[str]:
    # Names in groups are of what was found in one of them, or of something else.
    unread = arrays.keys() - arrays.read - KNOWN - layout.COUNTS
    unread = sorted(name for name in unread if "/" not in name)
    for name, (key, own) in itertools.product(unread, counts.items()):
        array = arrays.get(name)  # not [name], which refuses what cannot be read
        own = own.reshape(own.shape[3 - len(stored[key]) :])  # a session has no trials
        if array.unfit or not array.is_real:
            continue
        there = f"{name} is {size(array.shape)} of {array.kind}, and not read"
        as_mask = f"{there}; a mask is {size(stored[key])} of booleans and called {key}_mask"
        is_called_mask = "mask" in name.casefold()
        if array.shape not in (stored[key], own.shape):
            if is_called_mask and sorted(array.shape) in map(sorted, (stored[key], own.shape)):
                yield as_mask
            continue
        # xarray writes booleans as numbers.
        is_boolean = array.dtype.kind == "b" or array.says.get("dtype") == "bool"
        if not is_boolean:
            if (ones := _ones(array)) is None:
                if is_called_mask:
                    yield as_mask
                continue
            may_be_counts = array.shape == own.shape and own.max() <= 1
            if may_be_counts and own[ones].any() and own[~ones].any():
                yield f"{name} is 0 or 1 for each of {key}, and not read"
                continue
        what, yes = ("true or false", "true") if is_boolean else ("0 or 1", "1")
        remedy = f"if it is {yes} where they were observed, call it {key}_mask"
        raise arrays.error(f"{name} is {what} for each of {key}; {remedy}")


def _ones(array: Array) -> Bool[np.ndarray, "..."] | None:
    """Where numbers are 1, if all others are 0 and there are both."""
    ones = np.zeros(array.shape, bool)
    for rows, block in array.blocks():
        ones[rows] = block == 1
        if not (ones[rows] | (block == 0)).all():  # most are something else at once
            return None
    return ones if ones.any() and not ones.all() else None


def _misspelled(arrays: Arrays) -> Iterator[str]:
    for name in sorted(arrays.keys() - arrays.read - KNOWN):
        for meant in difflib.get_close_matches(name, KNOWN - arrays.keys(), 1, LIKE):
            yield f"{name} is not read; {meant} would be, if that is what it is"
