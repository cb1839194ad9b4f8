"""Which of a source's arrays are what: counts of each split, their masks, their true rates.

Files of lfads-torch and of the Neural Latents Benchmark name their parts in ways of their own; here
they become the same as any other.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from sbtt_jax.data import labels, nlb
from sbtt_jax.data.arrays import Array, Arrays, size

SPLITS = "train", "valid", "test"
KINDS = "data", "encod_data", "recon_data"
WHOLE = "spikes"
COUNTS = {WHOLE, *(f"{split}_{kind}" for split in SPLITS for kind in KINDS)}
MASKS = {"mask", *(f"{name}_mask" for name in (*COUNTS, *SPLITS))}
BENCHMARK = nlb.FIRST


class Part(NamedTuple):
    """The counts of one split, or all, by the names of the arrays.

    split: train, valid or test; spikes if they are to be split here.
    encod: of lfads-torch: what is given as input, if that is named apart.
    """

    split: str
    counts: str
    truth: str
    masks: tuple[str, ...]
    encod: str | None = None


def located(arrays: Arrays, key: str | None) -> Arrays:
    """The arrays of the group that holds the counts, by their names in it.

    key: the array that holds the counts, if not one of the known names: its path in the file.

    Raises InputError if it is not there or, without a key, if nothing looks like counts.
    """
    notes = list(arrays.notes)
    if key is None:
        group, key, note = _found(arrays)
        notes += [note] if note else []
    elif key in arrays:
        group, _, name = key.rpartition("/")
        if name in COUNTS and name.startswith(("valid", "test")):
            rule = "name train_data, to read it with the other splits, or an array of all trials"
            raise arrays.error(f"data.key names {key}, which is one split; {rule}")
    else:
        raise arrays.error(f"no array {key!r}, which data.key names; there are {_listed(arrays)}")
    prefix = f"{group}/" if group else ""
    # What lies above a group holds for it, unless it is of counts that lie there.
    paths = {}
    for depth in range(prefix.count("/")):
        outer = "".join(f"{part}/" for part in group.split("/")[:depth])
        direct = {name.removeprefix(outer): name for name in arrays if _group(name) == outer[:-1]}
        paths |= {} if (COUNTS | {BENCHMARK}) & direct.keys() else direct
    paths |= {name.removeprefix(prefix): name for name in arrays if name.startswith(prefix)}
    name = key.removeprefix(prefix)
    for other in sorted(paths):  # masks, in any case
        lower = other.casefold()
        if lower in {*MASKS, f"{name}_mask".casefold()} - paths.keys():
            paths[lower] = paths.pop(other)
    if name != WHOLE and name != BENCHMARK and WHOLE in paths:  # which are others
        for other in {WHOLE, "spikes_mask"} | ({"mask"} if name in COUNTS else set()):
            paths.pop(other, None)
        if name in COUNTS:
            notes.append(f"{name} and its splits are read, and spikes beside it is not")
    if name not in COUNTS and name != BENCHMARK:
        paths[WHOLE] = paths.pop(name)
        if (mask := f"{name}_mask".casefold()) in paths:
            paths["spikes_mask"] = paths.pop(mask)
    found = _Inside(arrays, paths, notes)
    return nlb.as_recording(found) if name == BENCHMARK else found


class _Inside(Arrays):
    """Arrays of a source by other names, which tell the source's what was read of them."""

    def __init__(self, whole: Arrays, paths: Mapping[str, str], notes: list):
        every = dict(whole.items())
        super().__init__(whole.source, {key: every[path] for key, path in paths.items()}, notes)
        self._whole, self._paths = whole, paths

    def __getitem__(self, key: str) -> Array:
        self._whole.read.add(self._paths.get(key, key))
        return super().__getitem__(key)


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _found(arrays: Arrays) -> tuple[str, str, str | None]:
    """The group that holds counts, the array in it, and a note if it took a guess."""
    known = COUNTS | {BENCHMARK}
    here = [name for name in arrays if name.rpartition("/")[2] in known]
    groups = sorted({_group(name) for name in here}, key=len)
    if groups and (groups[0] == "" or len(groups) == 1):
        inside = [name for name in here if _group(name) == groups[0]]
        note = f"read from the group {groups[0]}" if groups[0] else None
        if len(groups) > 1:
            note = f"counts in {', '.join(groups[1:10])} are not read; choose with --data.key"
        return groups[0], min(inside, key=lambda name: name.rpartition("/")[2] != WHOLE), note
    cubes = [name for name, array in arrays.items() if len(array.shape) == 3 and array.is_real]
    cubes = [name for name in cubes if not name.endswith(("mask", "rates", "truth"))]
    if not groups and len(cubes) == 1:
        note = f"{cubes[0]} is taken for the spike counts, as the only array of three axes"
        return _group(cubes[0]), cubes[0], note
    if groups:
        many = f"counts in {len(groups)} groups: {', '.join(groups[:10])}"
        one = min(here, key=lambda name: name.rpartition("/")[2].startswith(("valid", "test")))
        remedy = f"name one array with --data.key, such as {one}"
        raise arrays.error(f"{many}; {remedy}")
    raise arrays.error(
        f"no spikes, and no train_data; there are {_listed(arrays)}; name the array of counts with "
        "--data.key"
    )


def _listed(arrays: Arrays) -> str:
    named = [f"{name} ({size(array.shape)})" for name, array in sorted(arrays.items())]
    more = f" and {len(named) - 20} more" if len(named) > 20 else ""
    return ", ".join(named[:20]) + more or "no arrays"


def parts(arrays: Arrays) -> list[Part]:
    """The splits that the arrays hold, training first, or one part to be split.

    Raises InputError if training or validation trials are missing, or a mask belongs to nothing.
    """
    found, elsewhere = [], set()  # masks of what is not read
    if WHOLE in arrays:
        truth = "rates" if "rates" in arrays else "truth"
        found.append(Part(WHOLE, WHOLE, truth, ("spikes_mask", "mask")))
        ignored = sorted(COUNTS & arrays.keys() - {WHOLE, "test_data"})
        ignored = [name for name in ignored if "test" not in name or "test_data" not in arrays]
        if ignored:
            arrays.notes.append(f"spikes is read, and {', '.join(ignored)} beside it is not")
        elsewhere = {f"{name}_mask" for name in ignored}
        elsewhere |= {f"{name.partition('_')[0]}_mask" for name in ignored}
    for split in SPLITS if not found else ("test",):
        names = [name for kind in KINDS if (name := f"{split}_{kind}") in arrays]
        if not names and split != "test":
            raise arrays.error(
                f"no {split}_data; expected train_data and valid_data, or spikes (the file holds "
                f"{', '.join(sorted(arrays)) or 'nothing'})"
            )
        if names:
            recon, encod = f"{split}_recon_data", f"{split}_encod_data"
            both = recon in names and encod in names and f"{split}_data" not in names
            counts = recon if both else names[0]
            masks = f"{counts}_mask", f"{split}_mask"
            found.append(Part(split, counts, f"{split}_truth", masks, encod if both else None))
    # Ignoring a mask would turn what was not observed into silence.
    groups = {_group(key) for key in arrays if key.rpartition("/")[2] in COUNTS} - {""}
    masks = {key for key in arrays if re.split("[_/]", key)[-1] == "mask"}
    masks = {key for key in masks if _group(key) not in groups}
    known = {name for part in found for name in (*part.masks, f"{part.encod}_mask")}
    if unused := sorted(masks - known - elsewhere):
        first, names = found[0].counts, ", ".join(part.counts for part in found)
        raise arrays.error(f"{unused[0]} belongs to none of {names}; expected {first}_mask")
    return found


def booleans(
    arrays: Arrays, key: str, shape: tuple[int, ...], expected: str
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of an array that has to be of booleans, or of 0 and 1."""
    array, fills = labels.oriented(arrays, key), labels.fills(arrays, key)
    arrays.check(key, array.shape == shape and array.is_real, expected)
    for rows, block in array.blocks():
        if (labels.filled(block, fills) & (block == 1)).any():
            raise arrays.error(f"{key} holds its fill value, 1; expected {expected}")
        if not ((block == 0) | (block == 1)).all():
            raise arrays.error(f"{key} holds values other than 0 and 1; expected {expected}")
        yield rows, block.astype(bool)


def observed(
    arrays: Arrays, part: Part, shape: tuple[int, ...]
) -> Bool[np.ndarray, "*trial bin neuron"]:
    """Where all masks of a part say that values were observed; everywhere if there are none."""
    expected = f"{size(shape)} booleans, as {part.counts}, true where observed"
    seen = np.ones(shape, bool)
    for name in part.masks:
        for rows, block in booleans(arrays, name, shape, expected) if name in arrays else ():
            seen[rows] &= block
    return seen
