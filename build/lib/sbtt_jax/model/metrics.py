"""How good inferred rates are: against true rates, and against the observed counts.

Scores of whole data sets are NumPy in float64; `r2_from_sums` also serves training, on devices.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from sbtt_jax.observations import MIN_RATE, POISSON, Observation

Points = Bool[np.ndarray, "trial bin neuron"]
PerTrial = Float[np.ndarray, " trial"]
Rates = Float[np.ndarray, "trial bin neuron"]
Counts = Num[np.ndarray, "trial bin neuron"]


def r2(rates: Rates, inferred: Rates, where: Points | None = None) -> float:
    """Coefficient of determination of inferred against true rates, in the same unit.

    Each neuron's fraction of variance explained over the points `where` is true (default: all),
    then the mean over neurons, as scikit-learn's `r2_score` averages by default. A neuron with a
    constant true rate counts as 1 if it is matched exactly and as 0 otherwise; one without points
    is left out. NaN if there are no points at all.
    """
    where = np.ones(rates.shape, bool) if where is None else where
    points = where.sum((0, 1))
    true = np.where(where, rates, 0.0).astype(np.float64)
    mean = true.sum((0, 1)) / np.maximum(points, 1)
    sums = [np.where(where, (true - r) ** 2, 0.0).sum((0, 1)) for r in (inferred, mean)]
    return float(r2_from_sums(*(s[points > 0] for s in sums))) if points.any() else math.nan


def r2_from_sums(squared_error: Any, squared_deviation: Any) -> Any:
    """R2 averaged over neurons, from each neuron's summed squared error and squared deviation of
    its true rates from their mean (NumPy or JAX arrays)."""
    xp = squared_error.__array_namespace__()
    varies = squared_deviation > 0
    explained = 1 - squared_error / xp.where(varies, squared_deviation, 1)
    return xp.where(varies, explained, squared_error == 0).mean()


def nll(
    inferred: Rates, counts: Counts, where: Points, observation: Observation = POISSON
) -> float:
    """Mean negative log-likelihood (nats) over the points `where` is true, as in training.

    inferred: expected counts per bin. NaN if there are no points.
    """
    points = inferred[where].astype(np.float64), counts[where].astype(np.float64)
    return float(_nll(observation, *points).mean()) if points[0].size else math.nan


def bits_per_spike(
    inferred: Rates, counts: Counts, where: Points, observation: Observation = POISSON
) -> float:
    """How many bits per spike the rates add to each neuron's mean rate.

    (log-likelihood of the counts under `inferred`, in expected counts per bin, minus that under
    each neuron's mean count) / (spikes * log 2), all over the points `where` is true. Pei, Ye et
    al. 2021 (arXiv 2109.04463), section 3. Bits per point if the values are no counts. NaN if there
    are no spikes.
    """
    return per_spike(*bits_by_trial(inferred, counts, where, observation))


def bits_by_trial(
    inferred: Rates, counts: Counts, where: Points, observation: Observation = POISSON
) -> tuple[PerTrial, PerTrial]:
    """What each trial adds to the two sums whose quotient is bits per spike: bits, and spikes."""
    counts = np.where(where, counts, 0).astype(np.float64)
    mean = np.broadcast_to(counts.sum((0, 1)) / np.maximum(where.sum((0, 1)), 1), counts.shape)
    bits, points = np.zeros(counts.shape), counts[where]
    model = _nll(observation, inferred[where].astype(np.float64), points)
    bits[where] = (_nll(observation, mean[where], points) - model) / np.log(2)
    spikes = counts if observation.is_count else where
    return bits.sum((1, 2)), spikes.sum((1, 2), dtype=np.float64)


def per_spike(bits: PerTrial, spikes: PerTrial) -> float:
    """Bits per spike over all trials, of `bits_by_trial`; NaN if there are no spikes."""
    return float(bits.sum() / spikes.sum()) if spikes.any() else math.nan


def _nll(observation: Observation, mean: np.ndarray, values: np.ndarray) -> np.ndarray:
    return observation.nll(observation.from_mean(mean), values)


def bayes_rates(
    patterns: Float[np.ndarray, "condition bin neuron"], counts: Counts, observed: Points
) -> Rates:
    """The rates that an ideal observer infers who knows the rate patterns of all conditions.

    patterns: the true rates of every condition, in expected counts per bin, equally likely a
      priori. A trial's rates are their posterior mean given its observed counts (Bayes' rule with
      a Poisson likelihood). A model has to learn the patterns, so this score is its ceiling.
    """
    rate = patterns.reshape(len(patterns), -1).astype(np.float64)  # condition point
    seen = observed.reshape(len(observed), -1).astype(np.float64)  # trial point
    count = np.where(observed, counts, 0).reshape(seen.shape).astype(np.float64)
    log_likelihood = count @ np.log(np.maximum(rate, MIN_RATE)).T - seen @ rate.T
    posterior = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))  # trial condition
    posterior /= posterior.sum(1, keepdims=True)
    return (posterior @ rate).reshape(counts.shape)
