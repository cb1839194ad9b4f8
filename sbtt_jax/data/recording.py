"""Recordings, from files or from memory: named arrays made a `Dataset`.

Each error says which array of which source is wrong, where, and what would be right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sbtt_jax.data import (
    coordinates,
    counts,
    frames,
    labels,
    layout,
    metadata,
    objects,
    readers,
    splits,
    unread,
    windows,
)
from sbtt_jax.data.arrays import ASSUMED_BIN_WIDTH, Arrays, Asked, size
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.truth import with_rates
from sbtt_jax.errors import InputError
from sbtt_jax.observations import POISSON, Observation


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

    Other arguments are those of `assemble` and of `arrays.Asked`. Raises InputError as these do.
    """
    with readers.opened(path, Asked.of(how)) as arrays:
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

    The other arguments are the settings of the same names, `config.DataSettings`; more of these,
    such as those of `arrays.Asked`, which have been used before, may be there.

    Raises InputError, naming the source, the array and what was expected of it.
    """
    arrays = layout.located(arrays, key)
    parts = layout.parts(arrays)
    stored = {part.counts: arrays.get(part.counts).shape for part in parts}
    frames.to_bins(arrays, parts, bin_width)
    coordinates.add(arrays, list(stored), bin_width)
    width = _bin_width_of(arrays, bin_width)
    session = parts[0].split == layout.WHOLE and len(arrays[layout.WHOLE].shape) == 2
    _check_chop(arrays, chop, width, session, learn)
    if session:
        _check_no_trials(arrays, parts[0].truth, condition, rates_unit)
    each = [counts.read(arrays, part, observation, session=session) for part in parts]
    if len({own.shape[1:] for own, _ in each}) > 1:
        sizes = (f"{key} is {size(own.shape)}" for key, (own, _) in zip(stored, each, strict=True))
        raise arrays.error(f"{' and '.join(sizes)}; bins and neurons must agree")
    values, observed = (np.concatenate(both) for both in zip(*each, strict=True))
    ends = np.cumsum([len(own) for own, _ in each])[:-1]
    del each  # a second copy of everything
    if learn and not values.any():
        nothing = "not one spike" if observation.is_count else "not one value but 0"
        raise arrays.error(f"{nothing} among the observed points; nothing to learn from")

    index = np.split(np.arange(len(values)), ends)
    trials = {part.split: own for part, own in zip(parts, index, strict=True)}
    _, bins, neurons = values.shape
    known = {"unit_id": metadata.unit_id(arrays, neurons)}
    known["time_start"], known["time"] = metadata.time(arrays, bins)
    if session:
        length = windows.window_bins(chop, width)
        known["session"] = windows.session(values[0], observed[0], length, overlap)
        data = Dataset(values, observed, index[0], index[0], width, **known)  # split once it is cut
        if learn:
            data = windows.chopped(data, chop, overlap, valid_fraction, seed, arrays.error)
    else:
        starts, numbers = metadata.trial_start(arrays, trials), metadata.trial_id(arrays, trials)
        if not learn and condition not in arrays:
            condition = None
        groups, names = metadata.condition(arrays, condition, trials)
        split = {"train": index[0][:0], "valid": index[0][:0]} | trials
        if learn:
            chains = splits.overlapping(arrays, starts, observed, width)
            split = splits.of(arrays, trials, groups, chains, valid_fraction, seed)
        data = Dataset(
            values, observed, split["train"], split["valid"], width,
            condition=groups, condition_names=names, test=split.get("test"),
            given=counts.given(arrays, parts, (bins, neurons)), trial_start=starts,
            trial_index=numbers, **known,
        )  # fmt: skip
        truths = {part.truth: (len(trials[part.split]), bins, neurons) for part in parts}
        data = with_rates(arrays, truths, data, rates_unit, observation)
        data = splits.in_recorded_order(arrays, data)
    every = dict(zip(stored, np.split(values, ends), strict=True))
    arrays.notes.extend(unread.notes(arrays, stored, every))
    data = replace(_without_neurons(arrays, data, drop_neurons), notes=tuple(arrays.notes))
    return _without_unobserved_trials(arrays, data, learn) if drop_unobserved_trials else data


def _bin_width_of(arrays: Arrays, asked: float | None) -> float:
    """The width of a bin in seconds; assumed, with a note, if nobody says it."""
    own = labels.bin_width(arrays)
    if own is None and asked is not None:
        return asked
    if own is None:
        assumed = f"{1000 * ASSUMED_BIN_WIDTH:g} ms wide (set data.bin_width)"
        arrays.notes.append(f"bins are assumed to be {assumed}")
        return ASSUMED_BIN_WIDTH
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
    return asked if asked == float(f"{own:.6g}") else own


def _check_chop(
    arrays: Arrays, chop: float | None, width: float, session: bool, learn: bool
) -> None:
    """Refuse a session without `chop`, trials with it, and windows that are too short."""
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
    if session and chop < 2 * width:
        raise arrays.error(f"data.chop is {chop:g} s, less than two bins of {width:g} s")
    if chop is not None and not session and learn:
        given = "data.chop is for a session without trials, and this has trials"
        raise arrays.error(f"{given}; leave it out")


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
