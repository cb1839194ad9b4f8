"""From settings to a `Problem`: the data, the models of the run, and what each may see.

`prepare` is the door between data and training. Behind it nothing depends on where data are from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from sbtt_jax.config import ModelSettings, Settings, TrainSettings
from sbtt_jax.data import masking, recording
from sbtt_jax.data.dataset import Dataset, from_lorenz, unobserved
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, models
from sbtt_jax.observations import OBSERVATIONS

Array = Any  # NumPy on the host, JAX on devices


class Trials(NamedTuple):
    """What all models share. `rates` are only ever reported on."""

    counts: Array  # trial bin neuron
    rates: Array | None  # trial bin neuron, expected counts per bin
    train: Array  # train_trial
    valid: Array  # valid_trial
    train_deviation: Array | None  # neuron; squared deviation of its true rates from their mean
    valid_deviation: Array | None  # neuron
    lengths: Array | None  # trial; None if all are full


class Masks(NamedTuple):
    """What each model may see, and what it is judged by; a point is in at most one of them."""

    observed: Array  # model trial bin neuron
    heldout: Array | None  # model trial bin neuron


@dataclass(frozen=True)
class Problem:
    """Everything that training works on, on the host.

    settings: of the run; training reads `model` and `train` only.
    data: the trials.
    keys: the models, in the order in which masks and states are stacked.
    """

    settings: Settings
    data: Dataset
    keys: tuple[ModelKey, ...]

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
        return max(1, math.ceil(len(self.data.train) / self.train.batch_size))

    @cached_property
    def trials(self) -> Trials:
        """The data as training takes them."""
        data = self.data

        def deviation(trials):
            if data.rates is None:
                return None
            rates, inside = data.rates[trials].astype(np.float64), data.inside[trials]
            mean = rates.sum((0, 1)) / inside.sum()  # rates are 0 after a trial's end
            return (inside * (rates - mean) ** 2).sum((0, 1)).astype(np.float32)

        return Trials(
            data.counts,
            None if data.rates is None else data.rates.astype(np.float32),
            data.train.astype(np.int32),
            data.valid.astype(np.int32),
            deviation(data.train),
            deviation(data.valid),
            data.lengths,
        )

    @cached_property
    def masks(self) -> Masks:
        """The masks of all models, stacked, without the points held out of input and training.

        Raises:
          InputError: a bandwidth leaves a neuron without a sample in the training trials, or the
            validation trials have too few observed points to hold any out.
        """
        shape = (len(self.keys), *self.data.counts.shape)
        observed = np.empty(shape, bool)
        heldout = np.zeros(shape, bool) if self.settings.data.holdout_fraction else None
        for bandwidth in dict.fromkeys(key.bandwidth for key in self.keys):
            here = [i for i, key in enumerate(self.keys) if key.bandwidth == bandwidth]
            mask = observed_at(self.settings, self.data, bandwidth)
            if neurons := unobserved(mask, self.data.train)[1]:
                raise InputError(
                    f"at bandwidth {bandwidth}, nothing is observed of "
                    f"{_numbers('neuron', neurons)} in training trials; give a larger bandwidth or "
                    "another data.seed"
                )
            if heldout is not None:
                held = heldout_at(self.settings, self.data, bandwidth, mask)
                if not held.any():
                    raise InputError(
                        f"at bandwidth {bandwidth}, the validation trials have "
                        f"{mask[self.data.valid].sum()} observed points, and data.holdout_fraction "
                        f"{self.settings.data.holdout_fraction:g} holds out none; raise it, or "
                        "data.valid_fraction"
                    )
                mask[self.data.valid] &= ~held
                for i in here:
                    heldout[i, self.data.valid] = held
            for i in here:
                observed[i] = mask
        return Masks(observed, heldout)


def prepare(settings: Settings, data: Dataset | None = None) -> Problem:
    """The problem that the settings describe, on `data` if given instead of what they name.

    Raises:
      InputError: the recording cannot be read, has fewer neurons than a bandwidth asks for, or has
        a trial or neuron without any sample to learn from.
    """
    data = load(settings) if data is None else data
    check_trainable(settings, data)
    own = settings.data.model_copy(update={"bin_width": data.bin_width})  # a recording's own
    settings = settings.model_copy(update={"data": own})
    return Problem(settings, data, tuple(models(settings, data.neurons)))


def load(settings: Settings) -> Dataset:
    """The recording that the settings name, or the Lorenz set that they describe.

    Raises:
      InputError: the recording cannot be read, or has fewer neurons than a bandwidth asks for.
    """
    data = settings.data
    if data.path is not None:
        read = recording.read(data.path, **reading(settings))
        _check_bandwidths(settings, read)
        return read
    if not settings.bandwidths:
        raise InputError(
            "bandwidths is empty, which needs a recording; give one with --data FILE, or "
            "bandwidths such as 29"
        )
    if max(settings.bandwidths) > data.neurons:
        raise InputError(
            f"bandwidths has {max(settings.bandwidths)}, and data.neurons is {data.neurons}; "
            "no more neurons can be observed than there are"
        )
    return from_lorenz(
        data.seed,
        data.valid_fraction,
        data.bin_width,
        conditions=data.conditions,
        trials_per_condition=data.trials_per_condition,
        bins=data.bins,
        neurons=data.neurons,
    )


def reading(settings: Settings) -> dict[str, Any]:
    """How the settings ask for a recording to be read, as arguments of `recording.assemble`."""
    names = (
        "bin_width", "rates_unit", "valid_fraction", "seed",
        "drop_neurons", "drop_unobserved_trials",
    )  # fmt: skip
    how = {name: getattr(settings.data, name) for name in names}
    return how | {"observation": OBSERVATIONS[settings.model.observation]}


def observed_at(
    settings: Settings, data: Dataset, bandwidth: int
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Which points a model of this bandwidth has; missing in the recording stays missing."""
    chosen = masking.observe(
        settings.data.pattern,
        data.counts.shape,
        bandwidth,
        (settings.data.seed, bandwidth),
        block_length=settings.data.block_length,
    )
    chosen &= data.observed
    return chosen


def heldout_at(
    settings: Settings,
    data: Dataset,
    bandwidth: int,
    observed: Bool[np.ndarray, "trial bin neuron"],
) -> Bool[np.ndarray, "valid_trial bin neuron"]:
    """Which of the points observed at this bandwidth are held out, in the validation trials.

    Validation trials are never trained on, so points held out there cost training nothing.
    """
    rng = np.random.default_rng((settings.data.seed, bandwidth, 1))
    drawn = rng.random((len(data.valid), *observed.shape[1:])) < settings.data.holdout_fraction
    return observed[data.valid] & drawn


def check_trainable(settings: Settings, data: Dataset) -> None:
    """Refuse data with a trial or neuron without a sample to learn from.

    Raises:
      InputError: naming them and the setting that drops them; or a bandwidth above the neurons.
    """
    _check_bandwidths(settings, data)
    trials, neurons = unobserved(data.observed, data.train)
    if trials:
        numbers = data.trial_numbers[trials].tolist()
        raise InputError(
            f"{settings.data.path}: nothing is observed in {_numbers('trial', numbers)}; "
            "--data.drop_unobserved_trials drops such trials"
        )
    if neurons:
        numbers = sorted({*data.neuron_numbers[neurons].tolist(), *data.dropped_neurons})
        raise InputError(
            f"{settings.data.path}: nothing is observed of {_numbers('neuron', numbers)} in "
            f"training trials; --data.drop_neurons {' '.join(map(str, numbers))} drops such neurons"
        )


def _check_bandwidths(settings: Settings, data: Dataset) -> None:
    if max(settings.bandwidths, default=1) > data.neurons:
        raise InputError(
            f"bandwidths has {max(settings.bandwidths)}, and {settings.data.path} holds "
            f"{data.neurons} neurons; give fewer, or --bandwidths with nothing after it for the "
            "recording as it is"
        )


def _numbers(what: str, numbers: Sequence[int]) -> str:
    """For example "neuron 3" or "neurons 3, 7"; only the first ten of many."""
    shown = ", ".join(map(str, numbers[:10]))
    rest = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}{rest}"
