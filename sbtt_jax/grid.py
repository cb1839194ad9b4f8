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
    member: int | None = None  # of the models of which one is chosen, in a run that is tuned

    @property
    def columns(self) -> dict[str, int | str]:
        """The columns that tell its rows in a table from those of other models; swept values are
        texts in all their digits."""
        sweep = {name: short(value) for name, value in self.sweep}
        member = {} if self.member is None else {"member": self.member}
        return {"bandwidth": self.bandwidth, "seed": self.seed, **sweep, **member}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ModelKey":
        """The model that a row with such columns is about."""
        member = int(row["member"]) if "member" in row else None
        sweep = () if "member" in row else sweep_of(row)
        return cls(int(row["bandwidth"]), int(row["seed"]), sweep, member)

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
    members = range(settings.tune) if settings.tune else (None,)
    every = itertools.product(bandwidths, sweeps, settings.seeds, members)
    return [ModelKey(bandwidth, seed, sweep, member) for bandwidth, sweep, seed, member in every]


def settings_of(settings: Settings, key: ModelKey) -> Settings:
    """The settings of one model of the run, as if it had been trained alone."""
    bandwidths = settings.bandwidths and (key.bandwidth,)
    own = settings.model_copy(update={"seeds": (key.seed,), "bandwidths": bandwidths})
    return with_values(own, dict(key.sweep))


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with some of those replaced that can be lists, by name without their group."""
    update = {}
    for name, group in (("model", settings.model), ("train", settings.train)):
        here = {setting: values[setting] for setting in values.keys() & type(group).model_fields}
        update[name] = group.model_copy(update=here)
    return settings.model_copy(update=update)


def short(value: float | int) -> str:
    """A number in few digits if they read back as the same, else in all its digits."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)
