"""How well rates are inferred: against true rates, and against the counts themselves.

Everything here is NumPy in float64: it runs once, over all trials.
"""

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy.special import gammaln, softmax

Points = Bool[np.ndarray, "trial bin neuron"]


def r2(
    rates: Float[np.ndarray, "trial bin neuron"],
    inferred: Float[np.ndarray, "trial bin neuron"],
    where: Points | None = None,
) -> float:
    """Coefficient of determination of inferred against true rates, averaged over neurons.

    Each neuron's share of variance explained, 1 - squared error / squared deviation from its own
    mean, over the points `where` is true (all of them by default); then the plain mean over
    neurons, as scikit-learn's `r2_score` has it by default. A neuron with a constant true rate
    counts 1 where it is matched exactly and 0 otherwise; one without points is left out. Both
    rates in the same unit. NaN where there are no points at all.
    """
    where = np.ones(rates.shape, bool) if where is None else where
    points = where.sum((0, 1))
    true = np.where(where, rates, 0.0).astype(np.float64)
    mean = true.sum((0, 1)) / np.maximum(points, 1)
    error = np.where(where, (true - inferred) ** 2, 0.0).sum((0, 1))
    variation = np.where(where, (true - mean) ** 2, 0.0).sum((0, 1))
    moving = variation > 0
    score = np.where(moving, 1 - error / np.where(moving, variation, 1.0), error == 0)
    return float(score[points > 0].mean()) if points.any() else float("nan")


def poisson_nll(
    inferred: Float[np.ndarray, "trial bin neuron"],
    counts: Num[np.ndarray, "trial bin neuron"],
    where: Points,
) -> float:
    """Mean of rate - count * log(rate) over the points `where` is true, in nats.

    `inferred` are expected counts per bin. The loss of training, log(count!) left out. NaN where
    there are no points.
    """
    rate, count = inferred[where].astype(np.float64), counts[where].astype(np.float64)
    return float((rate - count * np.log(np.maximum(rate, 1e-9))).mean()) if rate.size else np.nan


def bits_per_spike(
    inferred: Float[np.ndarray, "trial bin neuron"],
    counts: Num[np.ndarray, "trial bin neuron"],
    where: Points,
) -> float:
    """How many bits a spike the rates tell beyond each neuron's mean rate.

    (log-likelihood of the counts under `inferred`, in expected counts per bin, minus that under
    each neuron's mean count) / (spikes * log 2), all over the points `where` is true. Pei, Ye et
    al. 2021 (arXiv 2109.04463), section 3. NaN where there are no spikes.
    """
    counts = np.where(where, counts, 0).astype(np.float64)
    spikes = counts.sum()
    if spikes == 0:
        return float("nan")
    mean = counts.sum((0, 1)) / np.maximum(where.sum((0, 1)), 1)

    def log_likelihood(rate):
        rate = np.maximum(rate, 1e-9)  # a rate of 0 cannot have given a spike
        return np.where(where, counts * np.log(rate) - rate - gammaln(counts + 1), 0.0).sum()

    null = np.broadcast_to(mean, counts.shape)
    gain = log_likelihood(inferred.astype(np.float64)) - log_likelihood(null)
    return float(gain / spikes / np.log(2))


def bayes_rates(
    patterns: Float[np.ndarray, "condition bin neuron"],
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Points,
) -> Float[np.ndarray, "trial bin neuron"]:
    """The best rates that can be inferred from observed counts by one who knows all patterns.

    `patterns` are the true rates of every condition, in expected counts per bin, each as likely
    as the others beforehand. A trial's rates are their posterior mean given its observed counts
    alone (Bayes' rule with a Poisson likelihood), which no model that has to learn the patterns
    can be expected to beat: its score is the ceiling that the counts themselves set.
    """
    rate = patterns.reshape(len(patterns), -1).astype(np.float64)  # condition point
    seen = observed.reshape(len(observed), -1).astype(np.float64)  # trial point
    count = np.where(observed, counts, 0).reshape(seen.shape).astype(np.float64)
    log_likelihood = count @ np.log(np.maximum(rate, 1e-9)).T - seen @ rate.T
    posterior = softmax(log_likelihood, axis=1)  # trial condition
    return (posterior @ rate).reshape(counts.shape)
