"""From settings to a `Problem`: the data, the models of the run, and what each may see.

`prepare` is the door between data and training. Behind it nothing depends on where data are from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int8

from sbtt_jax.config import LORENZ_SIZES, ModelSettings, Settings, TrainSettings
from sbtt_jax.data import lorenz, masking, recording, splits, windows
from sbtt_jax.data.arrays import ASSUMED_BIN_WIDTH, check_memory
from sbtt_jax.data.dataset import (
    Dataset,
    Mask,
    Session,
    Statistics,
    statistics,
    unobserved,
)
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, models

MOST_LACKING = 0.5  # or a trial's input would be next to nothing
Array = Any  # NumPy on the host, JAX on devices
Folds = Int8[np.ndarray, "valid_trial bin neuron"]
ValidMask = Bool[np.ndarray, "valid_trial bin neuron"]
JudgedMask = Bool[np.ndarray, "judged_trial bin neuron"]


class Trials(NamedTuple):
    """What all models share. `rates` are only ever reported on."""

    counts: Array  # trial bin neuron
    rates: Array | None  # trial bin neuron, expected counts per bin
    train: Array  # train_trial
    valid: Array  # valid_trial
    train_deviation: Array | None  # neuron; squared deviation of its true rates from their mean
    valid_deviation: Array | None  # neuron
    lengths: Array | None  # trial; None if all are full
    given: Array | None = None  # bin neuron; which points may be input, None if all


class Masks(NamedTuple):
    """What each model may see, and the points that choose its epoch. Points that are reported are
    in neither."""

    observed: Array  # model trial bin neuron
    # model trial bin neuron; in which validation pass, from 1, a point is hidden; 0 in none
    folds: Array | None
    # model neuron; how often training hides all of a neuron from a trial, None if never
    lacking: Array | None


@dataclass(frozen=True)
class Problem:
    """Everything that training works on, on the host."""

    settings: Settings  # of the run
    data: Dataset
    keys: tuple[ModelKey, ...]  # in the order in which masks and states are stacked

    @property
    def model(self) -> ModelSettings:
        return self.settings.model

    @property
    def train(self) -> TrainSettings:
        return self.settings.train

    @property
    def neurons(self) -> int:
        return self.data.neurons

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        if self.train.steps_per_epoch is not None:
            return self.train.steps_per_epoch
        return max(1, math.ceil(len(self.data.train) / self.train.batch_size))

    @cached_property
    def trials(self) -> Trials:
        """The data as training takes them."""
        data, indices = self.data, [self.data.train, self.data.valid]

        def deviation(trials):
            rates, inside = data.rates[trials].astype(np.float64), data.inside[trials]
            mean = rates.sum((0, 1)) / inside.sum()  # rates are 0 after a trial's end
            return (inside * (rates - mean) ** 2).sum((0, 1)).astype(np.float32)

        rates, deviations = None, [None, None]
        if data.rates is not None:
            rates, deviations = data.rates.astype(np.float32), map(deviation, indices)
        split = (trials.astype(np.int32) for trials in indices)
        return Trials(data.counts, rates, *split, *deviations, data.lengths, data.given)

    def statistics(self) -> list[Statistics]:
        """Mean and standard deviation of each neuron over what each model trains on."""
        data, found = self.data, {}
        for key, observed in zip(self.keys, self.masks.observed, strict=True):
            if key.bandwidth not in found:  # models of one bandwidth see the same points
                found[key.bandwidth] = statistics(data.counts, observed, data.train)
        return [found[key.bandwidth] for key in self.keys]

    @cached_property
    def masks(self) -> Masks:
        """The masks of all models, stacked, without the points held out of input and training.

        Raises InputError if a bandwidth leaves a neuron without a sample in the training trials, or
        the validation trials have too few observed points to hold any out.
        """
        settings, data = self.settings, self.data
        shape = (len(self.keys), *data.counts.shape)
        observed = np.empty(shape, bool)
        folds = np.zeros(shape, np.int8) if settings.data.holdout_fraction else None
        lacking = np.zeros((len(self.keys), self.neurons), np.float32)
        for bandwidth in dict.fromkeys(key.bandwidth for key in self.keys):
            here = [key.bandwidth == bandwidth for key in self.keys]
            mask, at = observed_at(settings, data, bandwidth), f"at bandwidth {bandwidth}"
            if neurons := unobserved(mask, data.train)[1]:
                raise InputError(
                    f"{at}, nothing is observed of {_numbers('neuron', neurons)} in training "
                    "trials; give a larger bandwidth or another data.seed"
                )
            if folds is not None:
                choosing, reporting = heldout_at(settings, data, bandwidth, mask)
                if not (choosing.any() and reporting.any()):
                    raise InputError(
                        f"{at}, the validation trials have {mask[data.valid].sum()} observed "
                        f"points, and data.holdout_fraction {settings.data.holdout_fraction:g} "
                        "holds out none to choose by or none to report; raise it, or "
                        "data.valid_fraction"
                    )
                mask[data.judged] &= ~reporting
                folds[np.ix_(here, data.valid)] = choosing
            observed[here] = mask
            hides = self.train.coordinated_dropout_neurons
            lacking[here] = lacks(mask[data.train]) if hides == "auto" else hides
        return Masks(observed, folds, lacking if lacking.any() else None)


def prepare(settings: Settings, data: Dataset | None = None) -> Problem:
    """The problem that the settings describe, on `data` if given instead of what they name.

    Raises InputError as `read` and `check_trainable`.
    """
    data = read(settings) if data is None else data
    check_trainable(settings, data)
    own = settings.data.model_copy(update={"bin_width": data.bin_width})  # a recording's own
    settings = settings.model_copy(update={"data": own})
    return Problem(settings, data, tuple(models(settings, data.neurons)))


def load(settings: Settings) -> Dataset:
    """As `read`; InputError also if there are fewer neurons than a bandwidth."""
    data = read(settings)
    _check_bandwidths(settings, data)
    return data


def read(settings: Settings, *, learn: bool = True) -> Dataset:
    """The recording that the settings name, or the Lorenz set that they describe.

    learn: as of `recording.assemble`.

    Raises InputError if the recording cannot be read.
    """
    own = settings.data
    if own.path is not None:
        data = recording.read(own.path, **reading(settings), learn=learn)
    elif settings.bandwidths:
        sizes = {name: getattr(own, name) for name in LORENZ_SIZES}
        width = own.bin_width or ASSUMED_BIN_WIDTH
        data = from_lorenz(own.seed, own.valid_fraction, width, **sizes)
    else:
        remedy = "give one with --data FILE, or bandwidths such as 29"
        raise InputError(f"bandwidths is empty, which needs a recording; {remedy}")
    return data


def from_lorenz(
    seed: int = 0, valid_fraction: float = 0.2, bin_width: float = 0.02, **sizes: int
) -> Dataset:
    """A generated Lorenz set with every point observed; `sizes` as in `lorenz.generate`.

    Raises InputError if a size or width is impossible, or the set would not fit in memory.
    """
    check_memory("Lorenz set: the sizes ask for", tuple(sizes.values()))
    try:
        made = lorenz.generate(seed, bin_width=bin_width, **sizes)
        train, valid = splits.stratified(made.condition, valid_fraction, seed)
    except ValueError as error:
        raise InputError(f"Lorenz set: {error}") from None
    observed, which = np.ones(made.counts.shape, bool), made.condition
    true = {"rates": made.rates[which], "latents": made.latents[which], "readout": made.readout}
    return Dataset(made.counts, observed, train, valid, bin_width, condition=which, **true)


def reading(settings: Settings) -> dict[str, Any]:
    """How the settings ask for a recording to be read, as arguments of `recording.assemble`."""
    how = settings.data.model_dump(exclude={"path"})
    return how | {"observation": settings.model.distribution}


def observed_at(settings: Settings, data: Dataset, bandwidth: int) -> Mask:
    """Which points a model of this bandwidth has; missing in the recording stays missing."""
    if data.session is None:
        return _drawn(settings, data.counts.shape, bandwidth) & data.observed
    # Windows that overlap would see more together than the session has at this bandwidth.
    starts, length = data.session.trial_starts, data.counts.shape[1]
    drawn = session_observed_at(settings, data.session, bandwidth)
    cut = windows.cut(drawn, starts, np.minimum(starts + length, len(drawn)), length)
    return cut & data.observed


def session_observed_at(
    settings: Settings, session: Session, bandwidth: int
) -> Bool[np.ndarray, "bin neuron"]:
    """The same for a session as a whole."""
    return _drawn(settings, (1, *session.counts.shape), bandwidth)[0] & session.observed


def _drawn(settings: Settings, shape: tuple[int, int, int], bandwidth: int) -> Mask:
    own, seed = settings.data, (settings.data.seed, bandwidth)
    return masking.observe(own.pattern, shape, bandwidth, seed, block_length=own.block_length)


def heldout_at(
    settings: Settings, data: Dataset, bandwidth: int, observed: Mask
) -> tuple[Folds, JudgedMask]:
    """The points, of those observed at this bandwidth in the validation trials, that choose epochs
    and parameters, and the points that are reported and choose nothing.

    The first as the number of the validation pass, from 1, in which a point is hidden and chooses;
    0 in none. Of one pass, they are half of the held-out points; of several, all that are not
    held out, so that as many as possible choose. Validation trials are never trained on, so points
    held out there cost training nothing. If there are test trials, the points to report are theirs;
    but of either kind of points that are never input, a share of the validation trials' chooses
    nothing either if none are known in test trials, so that they can be reported on.
    """
    rng, passes = np.random.default_rng((settings.data.seed, bandwidth, 1)), settings.train.folds
    known, fraction = observed[data.valid], settings.data.holdout_fraction
    heldout = known & (rng.random(known.shape) < fraction)
    if passes == 1:
        chooses = rng.random(known.shape) < 0.5
        folds, reported = (heldout & chooses).astype(np.int8), heldout & ~chooses
        alone = heldout
    else:
        fold = rng.integers(1, passes + 1, known.shape, np.int8)
        folds, reported = np.where(known & ~heldout, fold, 0), heldout
        alone = np.where(known, fold, 0)
    if data.test is None:
        return folds, reported
    tested = observed[data.test]
    for which in data.only_predicted:
        if not tested[:, which].any():
            alone = np.where(heldout & which, 0, alone)
    rng = np.random.default_rng((settings.data.seed, bandwidth, 2))
    return alone.astype(np.int8), tested & (rng.random(tested.shape) < fraction)


def lacks(observed: Mask) -> Float[np.ndarray, " neuron"]:
    """The share of trials that have no sample of a neuron, but of others that could tell of it, as
    they were observed beside it in some trial; at most `MOST_LACKING`."""
    there = observed.any(1)
    beside = there.T.astype(np.float32) @ there > 0  # neuron neuron
    told = there.astype(np.float32) @ beside > 0
    return np.minimum((told & ~there).mean(0), MOST_LACKING)


def check_trainable(settings: Settings, data: Dataset) -> None:
    """Raise InputError, naming the remedy, if a trial or neuron has no sample to learn from, or a
    bandwidth exceeds the neurons."""
    _check_bandwidths(settings, data)
    trials, neurons = unobserved(data.observed, data.train)
    nothing = f"{settings.data.path}: nothing is observed"
    if not (len(data.train) and len(data.valid)):
        few = f"{len(data.train)} training and {len(data.valid)} validation trials"
        raise InputError(f"{settings.data.path}: {few}; at least one of each is needed to train")
    if settings.train.marginal_epochs and len(data.train) < 2:
        raise InputError(f"{settings.data.path}: train.marginal_epochs need two training trials")
    if trials:
        where = _numbers("trial", data.trial_numbers[trials].tolist())
        raise InputError(f"{nothing} in {where}; --data.drop_unobserved_trials drops such trials")
    if neurons:
        numbers = sorted({*data.neuron_numbers[neurons].tolist(), *data.dropped_neurons})
        remedy = f"--data.drop_neurons {' '.join(map(str, numbers))} drops such neurons"
        where = f"{_numbers('neuron', numbers)} in training trials"
        raise InputError(f"{nothing} of {where}; {remedy}")


def _check_bandwidths(settings: Settings, data: Dataset) -> None:
    most, path, neurons = max(settings.bandwidths, default=1), settings.data.path, data.neurons
    if most > neurons:
        there = f"{path} holds {neurons} neurons" if path else f"data.neurons is {neurons}"
        raise InputError(f"bandwidths has {most}, and {there}; give at most that many")


def _numbers(what: str, numbers: Sequence[int]) -> str:
    """For example "neuron 3" or "neurons 3, 7"."""
    return f"{what}{'s' if len(numbers) > 1 else ''} {listed(numbers)}"


def listed(numbers: Sequence[Any]) -> str:
    """For example "3, 7"; only the first ten of many."""
    rest = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return ", ".join(map(str, numbers[:10])) + rest
