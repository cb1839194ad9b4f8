"""What each neuron's own counts in a trial say about its rate, smoothed at several widths in time.

Beside the dynamics, which all neurons share, this is the path for what one neuron does alone: cells
that each fire at a place of their own, slow drifts, and the first steps of training, in which the
dynamics have learned little. Training hides points from the input (coordinated dropout), so that
it learns to predict a count from its neighbors in time, never from itself.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

SCALES = 6
SPLINE = np.array([1, 4, 6, 4, 1]) / 16  # cubic B-spline; its variance is 1 bin
WIDTHS = np.sqrt(np.cumsum(4.0 ** np.arange(SCALES)))  # standard deviations: 1, 2.2, ..., 37 bins

# Adam moves each number by about as much per step. Those that all neurons share are learned from
# many more spikes than any other, so they may move this much faster.
SPEED = 5.0
PRIOR = 0.1  # spikes, before training
FARTHEST = 7.0  # that the log of the prior moves


class Smoothing(nnx.Module):
    """A sum over widths of log((s + p) / (m n + p)) for each neuron, with learned weights.

    s spikes in n observed bins are those under a kernel of that width, m is the neuron's mean
    count per bin, and p spikes are a prior at the mean rate, learned for each width. The weights
    begin at zero: each is one that all neurons share, plus the neuron's own.
    """

    def __init__(self, neurons: int, outputs: int = 1):
        self.shared = nnx.Param(jnp.zeros((outputs, SCALES, 1)))
        self.own = nnx.Param(jnp.zeros((outputs, SCALES, neurons)))
        self.prior = nnx.Param(jnp.zeros(SCALES))

    def __call__(
        self,
        counts: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
        mean: Float[Array, " neuron"],
        lengths: Int[Array, " trial"] | None = None,
    ) -> Float[Array, "trial bin output"]:
        """What to add to the readout.

        counts: 0 where not observed. lengths: bins of each trial, if some are padded at the end.
        """
        weights = SPEED * self.shared + self.own
        priors = PRIOR * jnp.exp(jnp.clip(SPEED * self.prior, -FARTHEST, FARTHEST))
        inside = None
        if lengths is not None:
            inside = jnp.arange(counts.shape[1])[:, None] < lengths[:, None, None]
        sums, total = jnp.stack([counts, observed * mean]), 0.0
        for scale, width in enumerate(WIDTHS):
            sums = _twice_as_wide(sums, 2**scale)
            if inside is not None:  # what spread beyond a trial's end does not come back
                sums = jnp.where(inside, sums, 0)
            spikes, expected = 2 * np.sqrt(np.pi) * width * sums  # bins of equal variance
            change = jnp.log((spikes + priors[scale]) / (expected + priors[scale]))
            total = total + change[:, :, None] * weights[:, scale]
        return total.reshape(*counts.shape[:2], -1)


def _twice_as_wide(sums: Any, step: int) -> Any:
    """One level of the starlet transform, along bins (Starck and Murtagh 2006, section 2): five
    taps, `step` bins apart, make of the kernel so far one of twice the width."""
    bins = sums.shape[2]
    padded = jnp.pad(sums, [(0, 0), (0, 0), (2 * step, 2 * step), (0, 0)])
    taps = (padded[:, :, tap * step : tap * step + bins] for tap in range(len(SPLINE)))
    return sum(weight * tap for weight, tap in zip(SPLINE, taps, strict=True))
