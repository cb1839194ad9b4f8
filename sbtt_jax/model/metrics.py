"""How good inferred rates are: against true rates, and against the observed counts.

Scores of whole data sets are NumPy in float64; `r2_from_sums` also serves training, on devices.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from sbtt_jax.observations import POISSON, Observation, output_of, predicted, safe_log

AT_ONCE = 512  # trials that ideal observers infer

Points = Bool[np.ndarray, "trial bin neuron"]
PerTrial = Float[np.ndarray, " trial"]
Rates = Float[np.ndarray, "trial bin neuron"]
Predicted = Float[np.ndarray, "trial bin output"]
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


def linear_map(
    latents: Float[np.ndarray, "trial bin latent"],
    true: Float[np.ndarray, "trial bin true_latent"],
    others: Float[np.ndarray, "other_trial bin latent"],
) -> Float[np.ndarray, "other_trial bin true_latent"]:
    """Latents of other trials under the affine map that takes these nearest to the true ones, in
    the mean square."""
    pad = ((0, 0), (0, 0), (0, 1))
    x, other = (np.pad(v.astype(np.float64), pad, constant_values=1.0) for v in (latents, others))
    x, goal = (values.reshape(-1, values.shape[-1]) for values in (x, true))
    # By the normal equations: of so many points, a decomposition takes a second.
    kernel, *_ = np.linalg.lstsq(x.T @ x, x.T @ goal, rcond=None)
    return other @ kernel


def nll(
    inferred: Predicted, counts: Counts, where: Points, observation: Observation = POISSON
) -> float:
    """Mean negative log-likelihood (nats) over the points `where` is true, as in training.

    inferred: expected counts per bin; more generally, what `observations.predicted` gives. NaN if
      there are no points.
    """
    if not where.any():
        return math.nan
    return float(point_nll(inferred, counts, where, observation).mean())


def bits_per_spike(
    inferred: Predicted, counts: Counts, where: Points, observation: Observation = POISSON
) -> float:
    """How many bits per spike the rates add to each neuron's mean rate.

    (log-likelihood of the counts under `inferred`, in expected counts per bin, minus that under
    each neuron's mean count) / (spikes * log 2), all over the points `where` is true. Pei, Ye et
    al. 2021 (arXiv 2109.04463), section 3. If the values are no counts, bits per point more than
    `null` gives. NaN if there are no spikes.
    """
    return per_spike(*bits_by_trial(inferred, counts, where, observation))


def bits_by_trial(
    inferred: Predicted, counts: Counts, where: Points, observation: Observation = POISSON
) -> tuple[PerTrial, PerTrial]:
    """What each trial adds to the two sums whose quotient is bits per spike: bits, and spikes."""
    shape = *counts.shape[:2], counts.shape[2] * observation.outputs
    simple = np.broadcast_to(null(counts, where, observation), shape)
    model, base = (point_nll(own, counts, where, observation) for own in (inferred, simple))
    bits = np.zeros(counts.shape)
    bits[where] = (base - model) / np.log(2)
    spikes = np.where(where, counts, 0) if observation.is_count else where
    return bits.sum((1, 2)), spikes.sum((1, 2), dtype=np.float64)


def per_spike(bits: PerTrial, spikes: PerTrial) -> float:
    """Bits per spike over all trials, of `bits_by_trial`; NaN if there are no spikes."""
    return float(bits.sum() / spikes.sum()) if spikes.any() else math.nan


def point_nll(
    inferred: Predicted,
    values: Counts,
    where: Points,
    observation: Observation = POISSON,
) -> Float[np.ndarray, " point"]:
    """Negative log-likelihood (nats) of each point where `where` is true; arguments as of `nll`."""
    blocks = np.split(inferred, observation.outputs, axis=-1)
    return nll_of_points(
        np.stack([block[where] for block in blocks], -1), values[where], observation
    )


def nll_of_points(
    inferred: Float[np.ndarray, "point parameter"],
    values: Num[np.ndarray, " point"],
    observation: Observation,
) -> Float[np.ndarray, " point"]:
    """Negative log-likelihood (nats) of each point, as if it were of a neuron of its own."""
    output = output_of(observation, inferred.astype(np.float64))
    return observation.nll(output, values.astype(np.float64)[:, None])[:, 0]


def null(
    values: Counts, where: Points, observation: Observation = POISSON
) -> Float[np.ndarray, " output"]:
    """The constants, of each neuron, that make its values at these points most likely, as
    `observations.predicted` has them: the mean of counts, if they are Poisson.

    Of a neuron whose values are all the same, no spread is most likely: it has that of neurons on
    average.
    """
    points = np.maximum(where.sum((0, 1)), 1)
    mean = values.sum((0, 1), where=where, dtype=np.float64) / points
    if observation.outputs == 1:
        return mean
    values = np.where(where, values, observation.fill).astype(np.float64)
    square = (np.where(where, values - mean, 0) ** 2).sum((0, 1)) / points
    varies = values.max((0, 1), where=where, initial=-np.inf) > values.min(
        (0, 1), where=where, initial=np.inf
    )
    typical = square[varies].mean() if varies.any() else 1.0
    deviation = np.sqrt(np.where(varies, square, typical))
    start = np.split(observation.from_moments(mean, deviation), observation.outputs)
    best = [
        _most_likely(observation, own, values[..., i][where[..., i]]) if varies[i] else own
        for i, own in enumerate(np.stack(start, axis=-1))
    ]
    return predicted(observation, np.stack(best, axis=-1).ravel())


def _most_likely(observation: Observation, start: np.ndarray, values: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize  # importing sbtt_jax does not wait for it

    if not values.size:
        return start
    found = minimize(lambda own: observation.nll(own, values[:, None]).mean(), start)
    return found.x if np.isfinite(found.fun) else start


def bayes_rates(
    patterns: Float[np.ndarray, "pattern bin neuron"], counts: Counts, observed: Points
) -> Rates:
    """The rates that an ideal observer infers who knows which rates are possible.

    patterns: those, in expected counts per bin, equally likely a priori; of every condition, for
      example. A trial's rates are their posterior mean given its observed counts (Bayes' rule with
      a Poisson likelihood).
    """
    rate = patterns.reshape(len(patterns), -1)  # pattern point
    log_rate, found = safe_log(rate), []
    for start in range(0, len(counts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        seen = observed[part].reshape(-1, rate.shape[1]).astype(rate.dtype)  # trial point
        count = np.where(observed[part], counts[part], 0).reshape(seen.shape).astype(rate.dtype)
        log_likelihood = count @ log_rate.T - seen @ rate.T
        posterior = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))  # trial pattern
        posterior /= posterior.sum(1, keepdims=True)
        found.append(posterior @ rate)
    return np.concatenate(found).reshape(counts.shape)
