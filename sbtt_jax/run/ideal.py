"""How much could be known of a Lorenz set: the R2 of ideal observers, which no model has to reach
to be good, and which no model that knows less can pass."""

from collections.abc import Callable

import numpy as np

from sbtt_jax.config import Settings
from sbtt_jax.data import lorenz
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import observed_at
from sbtt_jax.model import metrics
from sbtt_jax.model.metrics import Rates
from sbtt_jax.run.files import Row

TRAJECTORIES = 60_000  # of the attractor; R2 at 29 of 29 neurons still rises with their number
LEAST_TRAJECTORIES = 10_000  # below, what they say would be too low
MAX_RATES = 2**27  # of all trajectories, which are in memory at once


def _patterns(data: Dataset) -> Rates:
    return np.unique(data.rates, axis=0)


def _trajectories(data: Dataset) -> Rates | None:
    _, bins, neurons = data.counts.shape
    count = min(TRAJECTORIES, MAX_RATES // (bins * neurons))
    if count < LEAST_TRAJECTORIES:
        return None
    return lorenz.sample_rates(data.readout, count, bins, bin_width=data.bin_width)


# By what they know: the rates that a trial may have, all alike before anything is observed.
OBSERVERS: dict[str, Callable[[Dataset], Rates | None]] = {
    "all rate patterns": _patterns,
    "dynamics and readout": _trajectories,
}


def observers(settings: Settings, data: Dataset) -> list[Row]:
    """R2 on a generated set's validation trials, by bandwidth, of the posterior mean rates of each
    observer that can be computed in memory; none of a recording."""
    if data.readout is None:
        return []
    valid, rows = data.valid, []
    counts, true = data.counts[valid], data.rates[valid]
    for knows, possible in OBSERVERS.items():
        if (rates := possible(data)) is None:
            continue
        levels = settings.bandwidths
        observed = [observed_at(settings, data, level)[valid] for level in levels]
        inferred = metrics.bayes_rates(
            rates, np.tile(counts, (len(levels), 1, 1)), np.concatenate(observed)
        )
        for bandwidth, own in zip(levels, np.split(inferred, len(levels)), strict=True):
            rows.append({"bandwidth": bandwidth, "knows": knows, "r2": metrics.r2(true, own)})
    return rows
