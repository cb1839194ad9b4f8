"""A linear estimate of rates: smoothed counts explained by a few factors that all neurons share.

Principal components of the training trials' smoothed rates, in units of the square root of each
neuron's mean (of what is no count: of its standard deviation); in a new trial, each bin's factors
are the ridge regression of the neurons' smoothed rates on the components, each neuron with the
weight of what was observed of it. That is the mean of a posterior under a normal prior, whose
covariance says what is left open of rates.
"""

from collections.abc import Callable
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

    def noise(self, rates: Rates) -> Rates:
        """The variance of a bin's values about these rates: each neuron's; unless rates may be
        negative, in proportion to them, as that of Poisson counts is."""
        if np.isneginf(self.floor).all():
            return np.broadcast_to(self.unit**2, rates.shape)
        return self.unit**2 * rates / np.where(self.mean > 0, self.mean, 1.0)


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

    scale: Scale
    width: float | Float[np.ndarray, ""]  # standard deviation of the kernel, in bins
    prior: float | Float[np.ndarray, ""]  # bins at the neuron's mean rate

    def __call__(self, counts: Counts, observed: Mask) -> Rates:
        return sums(counts, observed, float(self.width)).rates(self.scale.mean, float(self.prior))

    def variance_of(self, rates: Rates, observed: Mask) -> Rates:
        """What its rates of trials leave open: the variance of a posterior to which a bin under the
        kernel adds 1 over that of its noise, and the prior so many bins."""
        return self.scale.noise(rates) / (_kernel(observed, float(self.width)) + float(self.prior))


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
        """The factors of each bin."""
        return self._by_trials(self._factors, len(self.variance), *known)

    def variance_of(self, rates: Rates, observed: Mask) -> Rates:
        """What its rates of trials leave open: the variance of their posterior under a normal prior
        of the factors, to which all bins under the kernel add 1 over that of their noise."""
        weight = _kernel(observed, float(self.width))
        return self.scale.noise(rates) * self._by_trials(self._open, rates.shape[2], weight)

    def _by_trials(self, function: Callable[..., Rates], size: int, *arrays: np.ndarray) -> Rates:
        """`function` of arrays by trial, so many numbers a bin. Those of many trials at once would
        take much memory."""
        trials, bins, _ = arrays[0].shape
        found = np.empty((trials, bins, size))
        at_once = max(1, MOST_NUMBERS // (bins * len(self.variance) ** 2))
        for start in range(0, trials, at_once):
            part = slice(start, start + at_once)
            found[part] = function(*(array[part] for array in arrays))
        return found

    @property
    def _products(self) -> Float[np.ndarray, "neuron factor_pair"]:
        components = self.components
        return (components[:, :, None] * components[:, None]).reshape(len(components), -1)

    def _precision(self, weight: Rates) -> Float[np.ndarray, "trial bin factor factor"]:
        """Of the factors, a posteriori."""
        told = (weight @ self._products).reshape(*weight.shape[:2], *2 * self.variance.shape)
        return told + np.diag(1 / self.variance)

    def _factors(self, spikes: Rates, weight: Rates) -> Float[np.ndarray, "trial bin factor"]:
        mean, unit, _ = self.scale
        scaled = Sums(spikes, weight).rates(mean, prior=1e-6)
        scaled -= mean
        scaled *= weight
        scaled /= unit
        target = (scaled @ self.components)[..., None]
        return np.linalg.solve(self._precision(weight), target)[..., 0]

    def _open(self, weight: Rates) -> Rates:
        """The variance of rates, in units of that of their noise."""
        covariance = np.linalg.inv(self._precision(weight))
        return covariance.reshape(*weight.shape[:2], -1) @ self._products.T


def learn(counts: Counts, observed: Mask, scale: Scale, width: float) -> LowRank:
    """All components there are of training trials; `truncated` leaves some."""
    mean, unit, _ = scale
    some = max(1, LEARNED_BINS // counts.shape[1])
    trials = np.unique(np.linspace(0, len(counts) - 1, min(some, len(counts)), dtype=int))
    products, together = np.zeros((2, len(mean), len(mean)))
    for start in range(0, len(trials), AT_ONCE):
        part = trials[start : start + AT_ONCE]
        known = sums(counts[part], observed[part], width)
        scaled = known.rates(mean, prior=1.0)
        scaled -= mean
        scaled /= unit
        scaled, share = (
            one.reshape(-1, len(mean)) for one in (scaled, known.weight / (known.weight + 1))
        )
        products += scaled.T @ scaled
        together += share.T @ share
    # Of each pair of neurons where both are observed, and 0 of a pair that never is.
    variance, components = np.linalg.eigh(products / (together + 1))
    variance, components = variance[::-1], components[:, ::-1]
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
