"""Sampling patterns: which neurons are observed in which bins.

Every pattern is a pure function of a shape and a seed and returns True where observed. A NaN
already in the data stays missing when the two are combined: `observed & ~np.isnan(counts)`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

# Random keys held at once: 32 MiB of them, and as much again for their order.
BLOCK_SIZE = 2**22


def random(
    shape: tuple[int, int, int], bandwidth: int, seed: int | Sequence[int] = 0
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe `bandwidth` neurons in every bin of every trial, drawn without replacement.

    shape: numbers of trials, bins and neurons.
    bandwidth: neurons observed per bin; all sets of that many neurons are equally likely, and
        bins are drawn independently.
    Returns True where observed. A NaN already in the data stays missing when the mask is and-ed
    with the data's own: `observed & ~np.isnan(counts)`.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    trials, bins, neurons = shape
    if not 1 <= bandwidth <= neurons:
        raise ValueError(f"bandwidth is {bandwidth} of {neurons} neurons; give 1 to {neurons}")
    if bandwidth == neurons:
        return np.ones(shape, bool)
    rng = np.random.default_rng(seed)
    observed = np.zeros(shape, bool)
    block = max(1, BLOCK_SIZE // max(1, bins * neurons))
    for start in range(0, trials, block):
        rows = observed[start : start + block]
        # float64: float32 keys tie a few times a data set, and which of two equal keys comes
        # first depends on the CPU's sorting routine.
        keys = rng.random(rows.shape)
        chosen = np.argpartition(keys, bandwidth, axis=-1)[..., :bandwidth]
        np.put_along_axis(rows, chosen, True, axis=-1)
    return observed
