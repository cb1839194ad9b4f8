"""The counts of a recording, or other values: what they are, where they were observed, and which of
them may be input."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num

from sbtt_jax.data import labels, layout
from sbtt_jax.data.arrays import Arrays, check_memory, size
from sbtt_jax.data.dataset import Mask
from sbtt_jax.data.layout import Part
from sbtt_jax.observations import Observation

AXES = "trial", "bin", "neuron"

Counts = Num[np.ndarray, "trial bin neuron"]


def read(
    arrays: Arrays, part: Part, observation: Observation, *, session: bool = False
) -> tuple[Counts, Mask]:
    """The values of one split, in the smallest type that holds them, and where observed.

    A session, bin x neuron, is read as a single trial.

    Raises InputError for values that cannot be, masks that do not fit, and an array to be given as
    input that is not the beginning of what is predicted.
    """
    key, axes = part.counts, AXES[session:]
    array = labels.oriented(arrays, key)
    arrays.check(key, array.is_real, observation.expected)
    if len(array.shape) != len(axes) or 0 in array.shape:
        expected = f"{' x '.join(axes)}, none of them 0"
        raise arrays.error(f"{key} is {size(array.shape)}; expected {expected}")
    check_memory(f"{arrays.source}: {key} declares", array.shape)

    fills = labels.fills_of_counts(arrays, key)
    observed = layout.observed(arrays, part, array.shape)
    counts = np.zeros(array.shape, observation.dtype)
    for rows, block in array.blocks():
        observed[rows] &= ~labels.filled(block, fills)
        if block.dtype == np.float16:  # which cannot be compared to all that is
            block = block.astype(np.float32)
        if block.dtype.kind == "f":
            observed[rows] &= ~np.isnan(block)
        values = np.where(observed[rows], block, observation.fill)
        if counts.dtype.kind == "f":  # what is too large for it is infinite
            with np.errstate(over="ignore"):
                values = values.astype(counts.dtype)
        for what, bad in observation.invalid(values):
            if bad.any():
                place = np.argwhere(bad)[0].tolist()
                value = str(values[tuple(place)]).removesuffix(".0")
                raise arrays.error(
                    f"{key} holds {what}, {value} at {', '.join(axes)} "
                    f"{(place[0] + rows.start, *place[1:])}; expected {observation.expected}"
                )
        if counts.dtype == np.uint8 and values.max() > 255:
            counts = counts.astype(np.uint16)
        counts[rows] = values
    if part.encod is not None:
        _check_input(arrays, part, observation, counts, observed)
    return (counts[None], observed[None]) if session else (counts, observed)


def _check_input(
    arrays: Arrays, part: Part, observation: Observation, counts: Counts, observed: Mask
) -> None:
    mask = f"{part.encod}_mask"
    own = part._replace(counts=part.encod, masks=(mask,), encod=None)
    given, seen = read(arrays, own, observation)
    _, bins, neurons = given.shape
    corner = counts[:, :bins, :neurons], observed[:, :bins, :neurons]
    same = corner[0].shape == given.shape
    if same and mask not in arrays:  # one mask for both
        seen &= corner[1]
        given = np.where(seen, given, 0)
    if not (same and all(map(np.array_equal, (given, seen), corner))):
        raise arrays.error(
            f"{part.encod} ({size(given.shape)}) differs from {part.counts} "
            f"({size(counts.shape)}); it may hold fewer bins and neurons than are predicted, and "
            "what it holds has to be the first of them, with the same counts"
        )


def given(
    arrays: Arrays, parts: Sequence[Part], shape: tuple[int, int]
) -> Bool[np.ndarray, "bin neuron"] | None:
    """Which points may be input, if not all: what `given` says, or the size of what is given.

    shape: bins and neurons of what is predicted.

    Raises InputError if these differ among splits, or nothing would be input.
    """
    if "given" in arrays:
        expected = f"{size(shape)} booleans, true where it may be input"
        blocks = layout.booleans(arrays, "given", shape, expected)
        found = np.concatenate([block for _, block in blocks])
    else:
        # All that is predicted is input where nothing else is said.
        sizes = {
            part.counts: shape
            if part.encod is None
            else labels.oriented(arrays, part.encod).shape[1:]
            for part in parts
        }
        if len(set(sizes.values())) > 1:
            each = " and ".join(f"{size(own)} of {key}" for key, own in sizes.items())
            raise arrays.error(f"{each} are given as input; expected the same in all splits")
        bins, neurons = sizes[parts[0].counts]
        found = np.zeros(shape, bool)
        found[:bins, :neurons] = True
    if not found.any():
        raise arrays.error("given is false everywhere; nothing would be input")
    return None if found.all() else found
