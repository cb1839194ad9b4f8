"""A linear estimate of rates: smoothed counts explained by a few factors that all neurons share.

Principal components of the training trials' smoothed rates, in units of the square root of each
neuron's mean (of what is no count: of its standard deviation); in a new trial, each bin's factors
are the ridge regression of the neurons' smoothed rates on the components, each neuron with the
weight of what was observed of it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

Counts = Num[np.ndarray, "trial bin neuron"]
Mask = Bool[np.ndarray, "trial bin neuron"]
Rates = Float[np.ndarray, "trial bin neuron"]
PerNeuron = Float[np.ndarray, " neuron"]

MAX_TRIALS = 200  # enough for components
MAX_BINS = 1000  # up to which a kernel is a matrix, whose products are several times as quick


class Scale(NamedTuple):
    """What the rates of neurons are compared by."""

    mean: PerNeuron  # per bin over the observed points; of counts, never 0
    unit: PerNeuron
    floor: PerNeuron  # which no rate falls below


class Sums(NamedTuple):
    """Sums under a Gaussian kernel, which skip what is missing. The kernel has a peak of 1, so that
    its own sum is a number of observed bins."""

    spikes: Rates
    weight: Rates  # of what was observed

    def rates(self, mean: PerNeuron, prior: float) -> Rates:
        """Their quotient, with so many bins at the neuron's mean rate added."""
        return (self.spikes + prior * mean) / (self.weight + prior)


class LowRank(NamedTuple):
    """The estimate, as learned from training trials: call it for rates of others."""

    scale: Scale
    components: Float[np.ndarray, "neuron factor"]
    variance: Float[np.ndarray, " factor"]  # of the factors
    width: float | Float[np.ndarray, ""]  # standard deviation of the Gaussian kernel, in bins

    def __call__(self, counts: Counts, observed: Mask) -> Rates:
        return self.explained(sums(counts, observed, float(self.width)))

    def explained(self, known: Sums) -> Rates:
        """The estimate, from what the kernel of this width sums up in trials."""
        mean, unit, floor = self.scale
        components, count = self.components, len(self.variance)
        products = (components[:, :, None] * components[:, None]).reshape(len(mean), -1)
        rates, weight = known.rates(mean, prior=1e-6), known.weight
        precision = (weight @ products).reshape(*weight.shape[:2], count, count)
        target = (weight * (rates - mean) / unit) @ components  # trial bin factor
        factors = np.linalg.solve(precision + np.diag(1 / self.variance), target[..., None])
        return np.maximum(mean + unit * (factors[..., 0] @ components.T), floor)


def learn(counts: Counts, observed: Mask, scale: Scale, width: float) -> LowRank:
    """All components there are of training trials; `truncated` leaves some."""
    mean, unit, _ = scale
    trials = np.unique(np.linspace(0, len(counts) - 1, MAX_TRIALS, dtype=int))
    known = sums(counts[trials], observed[trials], width)
    scaled = ((known.rates(mean, prior=1.0) - mean) / unit)[known.weight.any(-1)]
    components = np.linalg.svd(scaled.T @ scaled)[0]
    return LowRank(scale, components, np.maximum((scaled @ components).var(0), 1e-12), width)


def truncated(full: LowRank, rank: int) -> LowRank:
    """With the first factors alone."""
    first = {"components": full.components[:, :rank], "variance": full.variance[:rank]}
    return full._replace(**first)


def sums(counts: Counts | Rates, observed: Mask | Rates, width: float) -> Sums:
    """The sums of trials, with a kernel of this standard deviation in bins.

    Sums over trials may take the place of a trial; `observed` then says over how many of them.
    """
    return Sums(_kernel(np.where(observed, counts, 0), width), _kernel(observed, width))


def _kernel(values: np.ndarray, width: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d  # importing sbtt_jax does not wait for it

    bins, peak = values.shape[1], np.sqrt(2 * np.pi) * width
    values = values.astype(np.float64)
    if bins > MAX_BINS:
        return peak * gaussian_filter1d(values, width, axis=1, mode="constant")
    kernel = gaussian_filter1d(np.eye(bins), width, axis=0, mode="constant")
    return peak * np.matmul(kernel, values)
