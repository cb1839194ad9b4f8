"""Which member of a search is used: the one of least loss, if that is no chance.

The best of many epochs of many members is better at the points that choose even where all members
are equally good. So it has to be better than member 0, which has the settings that the search began
with, by more than the standard error that the validation trials leave: the one-standard-error
rule, by which the simplest model is used unless another is better by as much (Breiman et al. 1984,
Classification and Regression Trees, section 3.4.3).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sbtt_jax.config import Settings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.grid import ModelKey
from sbtt_jax.model import metrics
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.inference import Prior, infer_all
from sbtt_jax.model.metrics import PerTrial
from sbtt_jax.observations import predicted
from sbtt_jax.run import priors
from sbtt_jax.run.restore import Trained
from sbtt_jax.run.scores import View, view
from sbtt_jax.training import tuning

ERRORS = 1  # standard errors that the best has to be ahead by


class Choice(NamedTuple):
    """The member that is used of a population. gain: what the best one is ahead of member 0 by at
    the points that choose, in bits per spike, NaN if member 0 is the best; standard_error: of that,
    over the validation trials."""

    member: int
    gain: float
    standard_error: float


def choose(
    settings: Settings, data: Dataset, trained: Mapping[ModelKey, Trained]
) -> dict[ModelKey, Choice]:
    """The member that is used of each population.

    trained: all members, as of `restore.members`.
    """
    found, keys = {}, list(trained)
    for population, positions in tuning.populations(keys).items():
        own = [keys[position] for position in positions]
        best = min(own, key=lambda key: trained[key].nll)
        if best.member == 0 or not np.isfinite(trained[own[0]].nll):
            found[population] = Choice(best.member, np.nan, np.nan)
            continue
        of_data = view(settings, data, population.bandwidth)
        learner = priors.learner(of_data)
        models = (trained[key].model for key in (best, own[0]))
        (bits, spikes), (recipe, _) = (_bits(of_data, model, learner(model)) for model in models)
        ahead, total = bits - recipe, spikes.sum()
        error = np.sqrt(len(ahead)) * ahead.std(ddof=1) / total if len(ahead) > 1 else np.inf
        gain = ahead.sum() / total
        member = best.member if gain > ERRORS * error else 0
        found[population] = Choice(member, float(gain), float(error))
    return found


def _bits(of_data: View, model: Model, prior: Prior | None) -> tuple[PerTrial, PerTrial]:
    """As of `metrics.bits_by_trial`, at the points that choose."""
    how = {"prior": prior, "condition": of_data.data.conditions_of(of_data.data.valid)}

    def estimates(*given):
        return [predicted(model.observation, infer_all(model, *given, **how).output)]

    (rates,), *points = of_data.hidden(estimates)
    return metrics.bits_by_trial(rates, *points, of_data.observation)
