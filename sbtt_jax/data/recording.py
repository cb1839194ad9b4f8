"""From named arrays to a `Dataset`, with every check on what a user hands in.

Each error says which array of which source is wrong, where, and what would be right.
"""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from sbtt_jax.data import frames, labels, layout, objects, readers, splits, windows
from sbtt_jax.data.arrays import ASSUMED_BIN_WIDTH, Array, Arrays, Asked, size
from sbtt_jax.data.dataset import Dataset, Mask, check_memory
from sbtt_jax.data.layout import Part
from sbtt_jax.data.truth import with_rates
from sbtt_jax.errors import InputError
from sbtt_jax.observations import POISSON, Observation

# What arrays beside the counts are called; another name that is nearly one of these is noted.
KNOWN = {
    "bin_width", "condition", "conversion_factor", "frame_times", "given", "mask", "rates",
    "sample_offsets", "time_start", "train_inds", "trial_id", "trial_start", "truth", "unit_id",
    "valid_inds", "test_inds",
    *(f"{counts}_{what}" for counts in ("spikes", *layout.SPLITS) for what in ("mask", "truth")),
}  # fmt: skip
LIKE = 0.85  # similarity of names, of at most 1
ASKED = {field.name for field in fields(Asked)} - {"notes", "columns"}

Counts = Num[np.ndarray, "trial bin neuron"]


def read(path: str | Path, **how: Any) -> Dataset:
    """A recording from a file.

    Its arrays are `trial x bin x neuron`, in any order if their axes are named. Counts, NaN where
    not observed, are `train_data` and `valid_data`, or `train_encod_data` and `train_recon_data`
    and so on (what is given as input, and what is predicted), or one array `spikes`, which is split
    here, with the same share of each `condition` (one number or name per trial), or by the trials
    that `train_inds` and `valid_inds` name, from 0 or from 1. Trials of `test_data` beside them
    neither train nor choose; they are reported on. Boolean arrays named after them, such as
    `train_mask` or `spikes_mask`, say where they were observed; all of them count. `given`, bin x
    neuron booleans, says which points may be input where others are only predicted. True rates, if
    known, are `train_truth` and `valid_truth`, or `rates`; NaN is allowed after a trial's end. They
    are expected counts per bin times the scalar `conversion_factor`. Beside split counts,
    `train_inds` and `valid_inds` number the trials in the recording and put them in that order.
    `bin_width` is in seconds, unless it has a unit; an array with the name of an axis, such as
    `time`, says it too. `spikes` of bin x neuron are a session without trials, which is cut into
    windows. What is in a group is read with what lies above it.

    Other arguments are those of `assemble` and of `readers.Asked`. Raises InputError as these do.
    """
    with readers.opened(path, asked(how)) as arrays:
        return assemble(arrays, **how)


def of(spikes: Any, known: Mapping[str, Any] | None = None, **how: Any) -> Dataset:
    """A recording from a file, or from what is in memory.

    spikes: a path, or as of `objects.Recording`. known: what else is known of what is in memory, as
      of `Recording`; of a file, `condition` alone, the name of the array or column that has them.
    how: as of `read`. What names an array in a file says nothing of what is in memory.
    """
    known = {name: value for name, value in (known or {}).items() if value is not None}
    if isinstance(spikes, str | Path):
        if not isinstance(condition := known.get("condition", ""), str):
            raise InputError(
                f"{spikes}: condition is {type(condition).__name__}; of a file, give the name of "
                "the array or column that has them"
            )
        return read(spikes, **how | known)
    own = objects.arrays(spikes, how.get("bin_width"), **known)
    own = Arrays(own.source, dict(own.items()), own.notes)  # notes are of this reading alone
    return assemble(own, **how | {"condition": None, "key": None})


def asked(how: Mapping[str, Any]) -> Asked:
    """What is asked of a file, among the arguments of `read`."""
    return Asked(**{name: how[name] for name in ASKED & how.keys()})


def assemble(
    arrays: Arrays,
    *,
    bin_width: float | None = None,
    key: str | None = None,
    condition: str | None = None,
    chop: float | None = None,
    overlap: float = 0.5,
    rates_unit: str | None = None,
    valid_fraction: float = 0.2,
    seed: int = 0,
    drop_neurons: Sequence[int] = (),
    drop_unobserved_trials: bool = False,
    observation: Observation = POISSON,
    learn: bool = True,
    **_: Any,
) -> Dataset:
    """A recording from its arrays by name, as `read` describes them.

    bin_width: seconds; if the arrays say it too, it has to be the same. None and nothing said:
      20 ms are assumed, and a note says so.
    observation: says which values are valid.
    learn: whether something is to be learned from it. If not, few trials, a short session, silence
      and unknown conditions will do: trials that the arrays do not split are neither for training
      nor validation, those that do not need `chop` are taken as they are, and a session is one
      trial.

    The other arguments are the settings of the same names, `config.DataSettings`; those of
    `readers.Asked` have been used before.

    Raises InputError, naming the source, the array and what was expected of it.
    """
    arrays = layout.located(arrays, key)
    parts = layout.parts(arrays)
    stored = {part.counts: arrays.get(part.counts).shape for part in parts}
    frames.to_bins(arrays, parts, bin_width)
    layout.add_coordinates(arrays, [part.counts for part in parts], bin_width)
    width, note = _bin_width_of(arrays, bin_width)
    whole = parts[0].split == layout.WHOLE
    session = whole and len(arrays[layout.WHOLE].shape) == 2
    if session and chop is None:
        remedy = "a single trial is 1 x bin x neuron"
        if learn:
            remedy = (
                "for a session without trials, bin x neuron, set data.chop to the seconds of a "
                f"window (--data.chop 1.0); {remedy}"
            )
        else:
            remedy = f"the model was trained on trials, so cut it into such; {remedy}"
        there = f"{layout.WHOLE} is {size(arrays[layout.WHOLE].shape)}"
        raise arrays.error(f"{there}; expected trial x bin x neuron; {remedy}")
    if chop is not None and not session and learn:
        given = "data.chop is for a session without trials, and this has trials"
        raise arrays.error(f"{given}; leave it out")
    if session:
        _check_no_trials(arrays, parts[0].truth, condition, rates_unit)
    if session and chop < 2 * width:
        raise arrays.error(f"data.chop is {chop:g} s, less than two bins of {width:g} s")
    read = [_read_counts(arrays, part, observation, session=session) for part in parts]
    shapes = {part.counts: counts.shape for part, (counts, _) in zip(parts, read, strict=True)}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        sizes = " and ".join(f"{name} is {size(shape)}" for name, shape in shapes.items())
        raise arrays.error(f"{sizes}; bins and neurons must agree")
    counts, observed = (np.concatenate(each) for each in zip(*read, strict=True))
    del read  # a second copy of everything
    if learn and not counts.any():
        nothing = "not one spike" if observation.is_count else "not one value but 0"
        raise arrays.error(f"{nothing} among the observed points; nothing to learn from")

    index = np.split(np.arange(len(counts)), np.cumsum([shape[0] for shape in shapes.values()]))
    trials = dict(zip((part.split for part in parts), index, strict=False))
    labelled = {"unit_id": _per_neuron(arrays, "unit_id", counts.shape[2])}
    if (names := labelled["unit_id"]) is not None and len(set(names.tolist())) < len(names):
        arrays.notes.append(
            "unit_id has one name for several neurons; their order tells them apart"
        )
    labelled["time_start"] = _time(arrays, "time_start")
    times = arrays["time_start"].says.get(labels.TIMES) if "time_start" in arrays else None
    if times is not None and len(times) == counts.shape[1]:
        labelled["time"] = times
    starts = numbers = None
    if not session and _has_each(arrays, "trial_start", trials, len(counts)):
        starts = _times(arrays, "trial_start")
    is_numbered = whole or _numbers_splits(arrays, len(counts))
    if is_numbered and not session and _has_each(arrays, "trial_id", trials, len(counts)):
        numbers = labels.whole_numbers(arrays, "trial_id")
        arrays.check(
            "trial_id", numbers is not None, f"a whole number for each of {len(counts)} trials"
        )
    if note is not None:
        arrays.notes.append(note)
    if session:
        whole_session = index[0], index[0]  # split once it is cut
        labelled["notes"] = tuple(arrays.notes)
        data = Dataset(counts, observed, *whole_session, width, **labelled)
        if learn:
            data = windows.chopped(data, chop, overlap, valid_fraction, seed, arrays.error)
        else:
            length = windows.window_bins(chop, width)
            own = windows.session(counts[0], observed[0], length, overlap)
            data = replace(data, session=own)
    else:
        if not learn and condition not in arrays:
            condition = None
        groups, names = _condition_of(arrays, condition, trials, len(counts))
        chains = None
        if starts is not None:
            kind = arrays["trial_start"].dtype  # which says how exact they are
            as_stored = starts.astype(kind) if kind.kind == "f" else starts
            chains = splits.overlapping(as_stored, observed, width)
        if whole:
            own = trials.pop(layout.WHOLE)
            split = {"train": own[:0], "valid": own[:0]}
            if learn:
                split = splits.named(arrays, len(own), trials) or splits.drawn(
                    own, groups, chains, valid_fraction, seed
                )
            trials |= split
        if learn and chains is not None:
            arrays.notes.append(splits.told(chains, list(trials.values())))
        data = Dataset(
            counts, observed, trials["train"], trials["valid"], width,
            condition=groups, condition_names=names, test=trials.get("test"),
            given=_given(arrays, parts, shapes), trial_start=starts, trial_index=numbers,
            notes=tuple(arrays.notes), **labelled,
        )  # fmt: skip
        truths = {part.truth: shapes[part.counts] for part in parts}
        data = with_rates(arrays, truths, data, rates_unit, observation)
        data = _in_recorded_order(arrays, data)
    each = {key: counts[own[0] : own[-1] + 1] for key, own in zip(shapes, index, strict=False)}
    unread = [*_unread(arrays, stored, each), *_misspelled(arrays)]
    data = _without_neurons(arrays, data, drop_neurons)
    data = replace(data, notes=(*data.notes, *unread))
    return _without_unobserved_trials(arrays, data, learn) if drop_unobserved_trials else data


def _bin_width_of(arrays: Arrays, asked: float | None) -> tuple[float, str | None]:
    """The width of a bin in seconds, and a note if nobody says it."""
    own = labels.bin_width(arrays)
    if own is None and asked is not None:
        return asked, None
    if own is None:
        note = f"bins are assumed to be {1000 * ASSUMED_BIN_WIDTH:g} ms wide (set data.bin_width)"
        return ASSUMED_BIN_WIDTH, note
    if asked is not None and not labels.same_width(own, asked):
        remedy = (
            "a trained model takes bins as wide as those that it was trained on, and training can "
            "do without data.bin_width here"
        )
        if not 0.01 < own / asked < 100:
            remedy = "bin widths are in seconds"
        both = f"its bins are {own:g} s wide and data.bin_width is {asked:g} s"
        raise arrays.error(f"{both}; {remedy}")
    # Settings of a run may have it rounded, as its fingerprint does.
    return asked if asked == float(f"{own:.6g}") else own, None


def _read_counts(
    arrays: Arrays, part: Part, observation: Observation, *, session: bool = False
) -> tuple[Counts, Mask]:
    """The values of one split, in the smallest type that holds them, and where observed.

    A session, bin x neuron, is read as a single trial.
    """
    key, expected = part.counts, "trial x bin x neuron, none of them 0"
    array = labels.oriented(arrays, key)
    arrays.check(key, array.is_real, observation.expected)
    if len(array.shape) != 3 - session or 0 in array.shape:
        raise arrays.error(f"{key} is {size(array.shape)}; expected {expected[8 * session :]}")
    check_memory(f"{arrays.source}: {key} declares", array.shape)

    fills = labels.fills_of_counts(arrays, key)
    observed = _read_mask(arrays, part, array.shape)
    counts = np.zeros(array.shape, observation.dtype)
    for rows, block in array.blocks():
        if fills:
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
                axes = "trial, bin, neuron" if not session else "bin, neuron"
                raise arrays.error(
                    f"{key} holds {what}, {value} at {axes} "
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
    """Refuse an array to be given as input that is not the beginning of what is predicted."""
    own = Part(part.split, part.encod, part.truth, (f"{part.encod}_mask",))
    given, seen = _read_counts(arrays, own, observation)
    _, bins, neurons = given.shape
    corner = counts[:, :bins, :neurons], observed[:, :bins, :neurons]
    same = corner[0].shape == given.shape
    if same and own.masks[0] not in arrays:  # one mask for both
        seen &= corner[1]
        given = np.where(seen, given, 0)
    if not (same and all(map(np.array_equal, (given, seen), corner))):
        raise arrays.error(
            f"{part.encod} ({size(given.shape)}) differs from {part.counts} "
            f"({size(counts.shape)}); it may hold fewer bins and neurons than are predicted, and "
            "what it holds has to be the first of them, with the same counts"
        )


def _read_mask(
    arrays: Arrays, part: Part, shape: tuple[int, ...]
) -> Bool[np.ndarray, "*_trial bin neuron"]:
    """Where all masks in the file say that values were observed; everywhere if there are none."""
    expected = f"{size(shape)} booleans, as {part.counts}, true where observed"
    observed = np.ones(shape, bool)
    for name in part.masks:
        for rows, block in layout.booleans(arrays, name, shape, expected) if name in arrays else ():
            observed[rows] &= block
    return observed


def _given(
    arrays: Arrays, parts: Sequence[Part], shapes: Mapping[str, tuple[int, ...]]
) -> Bool[np.ndarray, "bin neuron"] | None:
    """Which points may be input, if not all: what `given` says, or the size of what is given."""
    _, bins, neurons = next(iter(shapes.values()))
    if "given" in arrays:
        expected = f"{bins} x {neurons} booleans, true where it may be input"
        blocks = layout.booleans(arrays, "given", (bins, neurons), expected)
        given = np.concatenate([block for _, block in blocks])
    else:
        # All that is predicted is input where nothing else is said.
        sizes = {
            part.counts: (bins, neurons) if part.encod is None else arrays[part.encod].shape[1:]
            for part in parts
        }
        if len(set(sizes.values())) > 1:
            each = " and ".join(f"{size(shape)} of {key}" for key, shape in sizes.items())
            raise arrays.error(f"{each} are given as input; expected the same in all splits")
        given = np.zeros((bins, neurons), bool)
        given[: sizes[parts[0].counts][0], : sizes[parts[0].counts][1]] = True
    if not given.any():
        raise arrays.error("given is false everywhere; nothing would be input")
    return None if given.all() else given


def _condition_of(
    arrays: Arrays, name: str | None, trials: Mapping[str, Any], count: int
) -> tuple[Int[np.ndarray, " trial"] | None, np.ndarray | None]:
    """The condition of each trial, numbered from 0, -1 where it is not known (NaN, or an empty
    text), and what the source calls each; None if there are none. name: as of `data.condition`."""
    key = name or "condition"
    if "condition" in arrays and arrays.get("condition").says.get(labels.COLUMN) == name:
        key = "condition"
    if key not in arrays:
        if name is not None:
            there = ", ".join(sorted(arrays))
            raise arrays.error(f"no array {name!r}, which data.condition names; there are {there}")
        return None, None
    given = arrays[key]
    whole = trials.get(layout.WHOLE)
    expected = count if whole is None else len(whole)
    sound = max(given.shape, default=0) == expected == math.prod(given.shape)
    sound = sound and not given.dtype.hasobject
    arrays.check(key, sound, f"a number or name for each of {expected} trials")
    values, known = labels.values(arrays, key)
    if values.dtype.kind == "U" and (values == "nan").any():  # as NumPy writes NaN among texts
        known &= values != "nan"
        arrays.notes.append(f'{key} is taken as not known where it is "nan"')
    if not known.any():
        raise arrays.error(f"{key} is missing in all trials; leave it out")
    names, groups = np.unique(values[known], return_inverse=True)
    # Test trials beside trials to be split have none of their own.
    every = np.full(count, -1)
    every[:expected][known] = groups
    return every, names


def _per_neuron(arrays: Arrays, key: str, neurons: int) -> np.ndarray | None:
    """A number or name for each neuron, if the arrays have them; InputError if they do not fit."""
    if key not in arrays:
        return None
    sound = math.prod(arrays[key].shape) == neurons and not arrays[key].dtype.hasobject
    expected = f"a number or name for each of {neurons} neurons"
    arrays.check(key, sound, expected)
    found, known = labels.values(arrays, key)
    if found.dtype.kind != "U" and not known.all():
        raise arrays.error(
            f"{key} is NaN or a fill value at {np.argmin(known)}; expected {expected}"
        )
    return found


def _unread(
    arrays: Arrays, stored: Mapping[str, tuple[int, ...]], counts: Mapping[str, Counts]
) -> Iterator[str]:
    """Refuse arrays with a yes or no for every count that are not read, since they may say what was
    observed; notes on those that may as well be counts of something else.

    stored: shapes of the counts, by their names, as the source has them.
    """
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
    """Notes on arrays that are not read and are called almost like some that would be."""
    for name in sorted(arrays.keys() - arrays.read - KNOWN):
        for meant in difflib.get_close_matches(name, KNOWN - arrays.keys(), 1, LIKE):
            yield f"{name} is not read; {meant} would be, if that is what it is"


def _has_each(arrays: Arrays, key: str, trials: Mapping[str, Any], count: int) -> bool:
    """Whether the arrays have a value for each trial; not if there are none for test_data.

    Raises InputError if they have others.
    """
    if key not in arrays:
        return False
    own = math.prod(arrays[key].shape)
    if own == len(trials.get(layout.WHOLE, ())) < count:
        arrays.notes.append(f"{key} is not read, since trials of test_data have none")
        return False
    arrays.check(key, own == count, f"a number for each of {count} trials")
    return True


def _numbers_splits(arrays: Arrays, count: int) -> bool:
    """Whether trial_id numbers all trials of a source that has them in splits; a note if not."""
    if "trial_id" not in arrays:
        return False
    shape, has = arrays.get("trial_id").shape, any(f"{s}_inds" in arrays for s in layout.SPLITS)
    if math.prod(shape) == count and not has:
        return True
    reason = f"it is {size(shape)}, and there are {count} trials"
    reason = "train_inds and valid_inds number the trials" if has else reason
    arrays.notes.append(f"trial_id is not read, since {reason}")
    return False


def _times(arrays: Arrays, key: str) -> Float[np.ndarray, " time"]:
    """The times of a small array, in seconds, all of them finite."""
    found, known = labels.values(arrays, key)
    sound = found.dtype.kind in "iuf" and (known & np.isfinite(found)).all()
    arrays.check(key, bool(sound), "finite numbers")
    return found.astype(np.float64) * labels.scale_to_seconds(arrays, key)


def _time(arrays: Arrays, key: str) -> float:
    """The time by that name, in seconds; 0 if there is none."""
    if key not in arrays:
        return 0.0
    arrays.check(key, math.prod(arrays[key].shape) == 1, "one finite number")
    return float(_times(arrays, key).item())


def _check_no_trials(
    arrays: Arrays, truth: str, condition: str | None, rates_unit: str | None
) -> None:
    """Refuse or note what says something about trials, beside a session without any."""
    none = "for trials, and this is a session without any"
    if "given" in arrays:
        raise arrays.error(f"given is {none}; leave it out")
    asked = {"data.condition": condition, "data.rates_unit": rates_unit}
    asked = [name for name, value in asked.items() if value is not None]
    keys = truth, "condition", "train_inds", "valid_inds", "test_inds", "trial_id", "trial_start"
    if unused := [*asked, *(key for key in keys if key in arrays)]:
        which = ", ".join(unused)
        arrays.notes.append(f"{which}: not read, since this is a session without trials")


def _in_recorded_order(arrays: Arrays, data: Dataset) -> Dataset:
    """Trials ordered by the numbers that the arrays give them, if they do."""
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
        note = f"{read}: taken to be of the trials of {splits_in_order}, in that order"
        data = replace(data, notes=(*data.notes, note))
    return replace(data, trial_index=index).take_trials(order)


def _without_neurons(arrays: Arrays, data: Dataset, dropped: Sequence[int]) -> Dataset:
    if not dropped:
        return data
    if (most := max(dropped)) >= data.neurons:
        rule = f"neurons are numbered from 0 to {data.neurons - 1}"
        raise arrays.error(f"data.drop_neurons has {most}; {rule}")
    kept = np.setdiff1d(np.arange(data.neurons), dropped)
    if not kept.size:
        raise arrays.error("data.drop_neurons leaves no neuron")
    return replace(data.take_neurons(kept), dropped_neurons=tuple(sorted(set(dropped))))


def _without_unobserved_trials(arrays: Arrays, data: Dataset, learn: bool) -> Dataset:
    kept = data.observed.any((1, 2))
    if kept.all():
        return data
    left = data.take_trials(np.flatnonzero(kept))
    if learn and not (left.train.size and left.valid.size):
        sizes = f"{left.train.size} training and {left.valid.size} validation trials are left"
        raise arrays.error(f"{sizes} without the unobserved ones; both need some")
    return replace(left, dropped_trials=tuple(data.trial_numbers[~kept].tolist()))
