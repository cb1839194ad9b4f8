"""The models of a run: all combinations of bandwidths, seeds and settings that are lists."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from sbtt_jax.config import ModelSettings, Settings, TrainSettings

Sweep = tuple[tuple[str, float], ...]  # names of settings, without their group, and values


class ModelKey(NamedTuple):
    """Which model of a run; `sweep` has its own value of every setting that is a list."""

    bandwidth: int
    seed: int
    sweep: Sweep = ()

    @property
    def columns(self) -> dict[str, int | str]:
        """The columns that tell its rows in a table from those of other models; swept values are
        texts in all their digits."""
        sweep = {name: short(value) for name, value in self.sweep}
        return {"bandwidth": self.bandwidth, "seed": self.seed, **sweep}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ModelKey":
        """The model that a row with such columns is about."""
        return cls(int(row["bandwidth"]), int(row["seed"]), sweep_of(row))

    def __str__(self) -> str:
        """For example "bandwidth 5, seed 0, learning_rate 0.01"."""
        return ", ".join(f"{name} {value}" for name, value in self.columns.items())


def sweep_of(row: Mapping[str, Any]) -> Sweep:
    """The values of settings among the columns of a row."""
    settings = ModelSettings.model_fields | TrainSettings.model_fields
    return tuple((name, float(row[name])) for name in row if name in settings)


def swept(settings: Settings) -> dict[str, tuple[float, ...]]:
    """The values of each setting that is a list, besides bandwidths and seeds."""
    values = itertools.chain(settings.model, settings.train)
    return {name: value for name, value in values if isinstance(value, tuple)}


def models(settings: Settings, neurons: int) -> list[ModelKey]:
    """The models of a run, in the order in which their states are stacked.

    neurons: the bandwidth where the settings name none.
    """
    pairs = ([(name, value) for value in values] for name, values in swept(settings).items())
    bandwidths, sweeps = settings.bandwidths or (neurons,), itertools.product(*pairs)
    every = itertools.product(bandwidths, sweeps, settings.seeds)
    return [ModelKey(bandwidth, seed, sweep) for bandwidth, sweep, seed in every]


def settings_of(settings: Settings, key: ModelKey) -> Settings:
    """The settings of one model of the run, as if it had been trained alone."""
    own = dict(key.sweep)
    update = {"seeds": (key.seed,), "bandwidths": settings.bandwidths and (key.bandwidth,)}
    for name, group in (("model", settings.model), ("train", settings.train)):
        here = {setting: own[setting] for setting in own.keys() & type(group).model_fields}
        update[name] = group.model_copy(update=here)
    return settings.model_copy(update=update)


def short(value: float | int) -> str:
    """A number in few digits if they read back as the same, else in all its digits."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)
