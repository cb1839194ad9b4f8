"""The models of a run: all combinations of bandwidths, seeds and settings that are lists."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sbtt_jax import config
from sbtt_jax.config import Settings

Varied = tuple[tuple[str, float], ...]  # names of settings, without their group, and values


class ModelKey(NamedTuple):
    """Which model of a run. `varied` has its own values of the settings that are lists."""

    bandwidth: int
    seed: int
    varied: Varied = ()

    def __str__(self) -> str:
        """Such as "bandwidth 5, seed 0, learning_rate 0.01"."""
        return described([("bandwidth", self.bandwidth), ("seed", self.seed), *self.varied])


def lists(settings: Settings) -> dict[str, tuple[float, ...]]:
    """The values of each setting that is a list, beside bandwidths and seeds."""
    return {
        name: value
        for group in (settings.model, settings.train)
        for name, value in group
        if isinstance(value, tuple)
    }


def models(settings: Settings, neurons: int) -> list[ModelKey]:
    """The models of a run, in the order in which their states are stacked."""
    values = lists(settings)
    combinations = [
        tuple(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]
    return [
        ModelKey(bandwidth, seed, varied)
        for bandwidth in settings.bandwidths or (neurons,)
        for varied in combinations
        for seed in settings.seeds
    ]


def single(settings: Settings, varied: Varied) -> Settings:
    """The same settings with these values where they have lists."""
    groups = {"model": settings.model, "train": settings.train}
    return settings.model_copy(
        update={name: config.with_values(group, dict(varied)) for name, group in groups.items()}
    )


def stacked(keys: Sequence[ModelKey]) -> dict[str, list[float]]:
    """Each model's value of every setting that is a list, by its name."""
    return {name: [dict(key.varied)[name] for key in keys] for name, _ in keys[0].varied}


def described(values: Iterable[tuple[str, float | int]]) -> str:
    """Names and values in words."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values)


def shown(value: float | int) -> str:
    """A number in few digits, if these read back as the same, else in all that it has."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
