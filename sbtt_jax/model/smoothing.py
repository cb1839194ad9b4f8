"""What each neuron's own values in a trial say about its rate, smoothed at several widths in time.

Beside the dynamics, which all neurons share, this is the path for what one neuron does alone: cells
that each fire at a place of their own, slow drifts, and the first steps of training, in which the
dynamics have learned little. A bin's own value plays no part in its rate, or it would be copied.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Num

from sbtt_jax.observations import Observation

WIDTHS = 2.0 ** np.arange(6)  # time constants of the kernels, in bins
MOST_AT_ONCE = 1000  # bins, whose pairs take 24 MB

# Adam moves each number by about as much per step. Those that all neurons share are learned from
# many more spikes than any other, so they may move this much faster.
SPEED = 5.0
PRIOR = 0.1  # spikes (of signed values, bins), before training
FARTHEST = 7.0  # that the log of a prior moves


class Smoothing(nnx.Module):
    """A sum over widths w of log((s + p) / (m n + p)) for each neuron, with learned weights.

    s and n are the spikes and the observed bins around a bin, each counted exp(-d / w) if it is d
    bins away; m is the neuron's mean count per bin; p spikes are a prior at the mean rate, learned
    for each width. The weights begin at zero: each is one that all neurons share, plus the neuron's
    own. Of signed values, it is a sum of (s - m n) / (n + p), in units of their deviations.
    """

    def __init__(self, neurons: int, observation: Observation):
        outputs = observation.outputs - observation.constant
        self.is_signed, self.constants = observation.is_signed, observation.constant * neurons
        self.shared = nnx.Param(jnp.zeros((outputs, len(WIDTHS), 1)))
        self.own = nnx.Param(jnp.zeros((outputs, len(WIDTHS), neurons)))
        self.prior = nnx.Param(jnp.zeros(len(WIDTHS)))

    def __call__(
        self,
        values: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
        mean: Float[Array, " neuron"],
        deviation: Float[Array, " neuron"],
    ) -> Float[Array, "trial bin output"]:
        """What to add to the readout. values: 0 where not observed. mean, deviation: of all."""
        weights = SPEED * self.shared + self.own
        priors = PRIOR * jnp.exp(jnp.clip(SPEED * self.prior, -FARTHEST, FARTHEST))
        both = values, observed * mean
        if self.is_signed:
            both = (values - observed * mean) / deviation, observed.astype(values.dtype)
        both = around(jnp.stack(both).swapaxes(0, 2))  # bin width trial both neuron
        here, expected = jnp.moveaxis(both, 3, 0)
        priors = priors[:, None, None]
        expected = expected + priors
        change = here / expected if self.is_signed else jnp.log((here + priors) / expected)
        total = jnp.einsum("twbn,own->tbon", change, weights)
        total = total.swapaxes(0, 1).reshape(*values.shape[:2], -1)
        return jnp.pad(total, ((0, 0), (0, 0), (0, self.constants))) if self.constants else total


def around(values: Float[Array, "bin ..."]) -> Float[Array, "bin width ..."]:
    """Sums over all other bins, with weights that decay exponentially, of each of `WIDTHS`."""
    # A GPU makes one product of all pairs of bins sooner than it takes one bin after the other.
    by_bin = jax.default_backend() == "cpu" or len(values) > MOST_AT_ONCE
    return _by_bin(values) if by_bin else _at_once(values)


def _by_bin(values):
    decay = np.exp(-1 / WIDTHS).reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)

    def advance(before, value):
        return decay * (before + value), before

    rest = jnp.zeros((len(WIDTHS), *values.shape[1:]), values.dtype)
    past, future = (
        lax.scan(advance, rest, values, reverse=reverse)[1] for reverse in (False, True)
    )
    return past + future


def _at_once(values):
    bins = np.arange(len(values))
    distance = abs(bins[:, None] - bins)
    weights = np.where(distance > 0, np.exp(-distance / WIDTHS[:, None, None]), 0)
    weights = weights.astype(np.float32)
    return jnp.einsum("wts,s...->tw...", weights, values, precision=lax.Precision.HIGHEST)
