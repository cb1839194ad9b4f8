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

LEARNED_BINS = 100_000  # of all trials together, which are enough for components
AT_ONCE = 64  # trials
MOST_NUMBERS = 2**23  # of the regressions at a time
MAX_BINS = 1000  # up to which a kernel is a matrix, whose products are several times as quick


class Scale(NamedTuple):
    """What the rates of neurons are compared by."""

    mean: PerNeuron  # per bin over the observed points; of counts, never 0
    unit: PerNeuron
    floor: PerNeuron  # which no rate falls below


class Sums(NamedTuple):
    """Sums under a Gaussian kernel, which skip what is missing. The kernel has a peak of 1, so that
    its own sum is a number of observed bins."""

    spikes: Float[np.ndarray, "*point"]
    weight: Float[np.ndarray, "*point"]  # of what was observed

    def rates(self, mean: Float[np.ndarray, "..."], prior: float) -> Float[np.ndarray, "*point"]:
        """Their quotient, with so many bins at the neuron's mean rate added."""
        return (self.spikes + prior * mean) / (self.weight + prior)

    def at(self, points: tuple[np.ndarray, ...]) -> "Sums":
        """Those of some points, which index the arrays."""
        return Sums(self.spikes[points], self.weight[points])


class Smoother(NamedTuple):
    """Each neuron's own counts in a trial under a Gaussian kernel: call it for rates of trials."""

    mean: PerNeuron
    width: float | Float[np.ndarray, ""]  # standard deviation of the kernel, in bins
    prior: float | Float[np.ndarray, ""]  # bins at the neuron's mean rate

    def __call__(self, counts: Counts, observed: Mask) -> Rates:
        return sums(counts, observed, float(self.width)).rates(self.mean, float(self.prior))


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
        return np.maximum(mean + unit * (self.factors(known) @ self.components.T), floor)

    def factors(self, known: Sums) -> Float[np.ndarray, "trial bin factor"]:
        """The factors of each bin. Regressions of many trials at once would take much memory."""
        trials, bins, _ = known.weight.shape
        found = np.empty((trials, bins, len(self.variance)))
        size = max(1, MOST_NUMBERS // (bins * len(self.variance) ** 2))
        for start in range(0, trials, size):
            part = slice(start, start + size)
            found[part] = self._factors(Sums(known.spikes[part], known.weight[part]))
        return found

    def _factors(self, known: Sums) -> Float[np.ndarray, "trial bin factor"]:
        mean, unit, _ = self.scale
        components, weight = self.components, known.weight
        products = (components[:, :, None] * components[:, None]).reshape(len(mean), -1)
        precision = (weight @ products).reshape(*weight.shape[:2], *2 * components.shape[1:])
        scaled = known.rates(mean, prior=1e-6)
        scaled -= mean
        scaled *= weight
        scaled /= unit
        target = (scaled @ components)[..., None]
        return np.linalg.solve(precision + np.diag(1 / self.variance), target)[..., 0]


def learn(counts: Counts, observed: Mask, scale: Scale, width: float) -> LowRank:
    """All components there are of training trials; `truncated` leaves some."""
    mean, unit, _ = scale
    some = max(1, LEARNED_BINS // counts.shape[1])
    trials = np.unique(np.linspace(0, len(counts) - 1, min(some, len(counts)), dtype=int))
    products, total, bins = np.zeros((len(mean), len(mean))), np.zeros(len(mean)), 0
    for start in range(0, len(trials), AT_ONCE):
        part = trials[start : start + AT_ONCE]
        known = sums(counts[part], observed[part], width)
        scaled = known.rates(mean, prior=1.0)
        scaled -= mean
        scaled /= unit
        scaled = scaled[known.weight.any(-1)]
        products += scaled.T @ scaled
        total += scaled.sum(0)
        bins += len(scaled)
    components, squares, _ = np.linalg.svd(products)
    variance = squares / bins - (total / bins @ components) ** 2
    return LowRank(scale, components, np.maximum(variance, 1e-12), width)


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
