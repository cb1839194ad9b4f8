"""How good the rates of one model are, as the columns of metrics.csv."""

import numpy as np
from jaxtyping import Bool, Float

from sbtt_jax.config import Settings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import observed_at
from sbtt_jax.model import metrics
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.model.inference import infer_all
from sbtt_jax.observations import OBSERVATIONS

Mask = Bool[np.ndarray, "trial bin neuron"]
ValidMask = Bool[np.ndarray, "valid_trial bin neuron"]
ValidRates = Float[np.ndarray, "valid_trial bin neuron"]


def score(
    settings: Settings,
    data: Dataset,
    observed: Mask,
    inferred: Float[np.ndarray, "trial bin neuron"],
    unseen: ValidRates | None = None,
    heldout: ValidMask | None = None,
) -> dict[str, float]:
    """Scores of rates (expected counts per bin) over the validation trials; NaN where unknown.

    observed: the points that the model had. inferred: rates of all trials, given those.
    unseen: rates of the validation trials, inferred without the points in `heldout`.

    missing_fraction: share of points that the model did not have.
    nll (nats per point), bits_per_spike: over observed points.
    bits_per_spike_missing: over points that the mask hid but the data set knows.
    bits_per_spike_heldout: over held-out points.
    r2, r2_observed, r2_missing: against true rates over all, observed and missing points.
    """
    observation = OBSERVATIONS[settings.model.observation]
    valid = data.valid
    seen, known = observed[valid], data.observed[valid]
    inside = np.broadcast_to(data.inside[valid], seen.shape)
    counts, rates = data.counts[valid], np.where(inside, inferred[valid], 0)

    def r2(where: np.ndarray) -> float:
        if data.rates is None:
            return float("nan")
        return metrics.r2(data.rates[valid], rates, where)

    def bits(rates: np.ndarray, where: np.ndarray) -> float:
        return metrics.bits_per_spike(rates, counts, where, observation)

    return {
        "missing_fraction": float(1 - seen.sum() / max(1, inside.sum())),
        "nll": metrics.nll(rates, counts, seen, observation),
        "r2": r2(inside),
        "r2_observed": r2(seen),
        "r2_missing": r2(inside & ~seen),
        "bits_per_spike": bits(rates, seen),
        "bits_per_spike_missing": bits(rates, known & ~seen),
        "bits_per_spike_heldout": float("nan") if unseen is None else bits(unseen, heldout),
    }


def heldout_rates(
    data: Dataset, model: SequentialAutoencoder, observed: Mask, heldout: ValidMask
) -> ValidRates:
    """Expected counts per bin at the held-out points of the validation trials, inferred from the
    other points; 0 elsewhere.

    The model sees these points in no way, so their likelihood is what to judge a model of a
    recording by.
    """
    valid = data.valid
    lengths = None if data.lengths is None else data.lengths[valid]
    inference = infer_all(model, data.counts[valid], observed[valid] & ~heldout, lengths)
    return np.where(heldout, model.observation.mean(inference.output), 0)


def ceiling(settings: Settings, generated: Dataset) -> dict[int, float]:
    """R2 on a generated set's validation trials, by bandwidth, of an ideal observer that knows the
    rate patterns of all conditions, which a model has to learn."""
    valid = generated.valid
    counts, true = generated.counts[valid], generated.rates[valid]
    patterns = np.unique(generated.rates, axis=0)

    def best(bandwidth: int) -> float:
        observed = observed_at(settings, generated, bandwidth)[valid]
        return metrics.r2(true, metrics.bayes_rates(patterns, counts, observed))

    return {bandwidth: best(bandwidth) for bandwidth in settings.bandwidths}
