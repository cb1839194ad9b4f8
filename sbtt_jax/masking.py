"""Sampling patterns: which neurons are observed in which bins.

Every pattern is a pure function of a shape and a seed and returns True where observed. A NaN
already in the data stays missing when the two are combined: `observed & ~np.isnan(counts)`.
`observe` gives any pattern by its name, at a bandwidth: neurons observed per bin, on average.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

Pattern = Literal["random", "round_robin", "bernoulli", "raster", "blocks", "channels"]
Seed = int | Sequence[int]

# Random keys held at once: 32 MiB of them, and as much again in another order.
BLOCK_SIZE = 2**22


def observe(
    pattern: str,
    shape: tuple[int, int, int],
    bandwidth: int,
    seed: Seed = 0,
    *,
    block_length: int = 10,
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Any pattern by its name, with `bandwidth` neurons observed per bin on average.

    block_length: bins in a stretch of `blocks`; of no meaning to the others.

    Raises ValueError for a pattern there is not, and for a bandwidth outside 1 to the number of
    neurons, which is observed whole.
    """
    if pattern not in get_args(Pattern):
        raise ValueError(f"pattern is {pattern}; give one of {', '.join(get_args(Pattern))}")
    neurons = shape[2]
    _check_bandwidth(bandwidth, neurons)
    if bandwidth == neurons:
        return np.ones(shape, bool)
    if pattern == "bernoulli":
        return bernoulli(shape, bandwidth / neurons, seed)
    if pattern == "raster":
        return raster(shape, neurons / bandwidth, seed)
    if pattern == "blocks":
        return blocks(shape, bandwidth / neurons, seed, length=block_length)
    by_bandwidth = {"random": random, "round_robin": round_robin, "channels": channels}
    return by_bandwidth[pattern](shape, bandwidth, seed)


def random(
    shape: tuple[int, int, int], bandwidth: int, seed: Seed = 0
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe `bandwidth` neurons in every bin of every trial, drawn without replacement.

    shape: numbers of trials, bins and neurons.
    bandwidth: neurons observed per bin; all sets of that many neurons are equally likely, and
        bins are drawn independently.
    Returns True where observed. A NaN already in the data stays missing when the mask is and-ed
    with the data's own: `observed & ~np.isnan(counts)`.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    bins, neurons = shape[1:]
    _check_bandwidth(bandwidth, neurons)
    if bandwidth == neurons:
        return np.ones(shape, bool)
    rng = np.random.default_rng(seed)

    def draw(rows):
        # float64: float32 keys tie a few times a data set, and would be chosen together.
        keys = rng.random((rows.stop - rows.start, bins, neurons))
        return keys < np.partition(keys, bandwidth, axis=-1)[..., bandwidth, None]

    return _by_trials(shape, draw)


def round_robin(
    shape: tuple[int, int, int], bandwidth: int, seed: Seed = 0
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe `bandwidth` neurons in every bin, one group after another: multiplexed electrodes.

    The neurons of a bin are those that follow the last bin's, in an order drawn once and around
    again, so that a neuron's samples lie neurons / bandwidth bins apart, rounded up or down. Each
    trial begins at a random place of the order.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    trials, bins, neurons = shape
    _check_bandwidth(bandwidth, neurons)
    rng = np.random.default_rng(seed)
    place = rng.permutation(neurons)
    begin = rng.integers(neurons, size=(trials, 1, 1)) + bandwidth * np.arange(bins)[:, None]
    return _by_trials(shape, lambda rows: (place - begin[rows]) % neurons < bandwidth)


def bernoulli(
    shape: tuple[int, int, int], probability: float, seed: Seed = 0
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe each point with the same probability, independently of all others.

    Raises ValueError for a probability outside 0 to 1.
    """
    _check_probability(probability)
    rng = np.random.default_rng(seed)
    return _by_trials(
        shape, lambda rows: rng.random((rows.stop - rows.start, *shape[1:])) < probability
    )


def raster(
    shape: tuple[int, int, int],
    frame: float,
    seed: Seed = 0,
    *,
    position: Float[np.ndarray, " neuron"] | None = None,
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe each neuron once a frame, when the scan comes by: two-photon imaging.

    frame: bins that a scan of all neurons takes; at least 1, and not always a whole number.
    position: when in the frame the scan is at each neuron, from 0 to 1; drawn from the seed where
      none is given. Neuron n is sampled in the bins that contain a time (k + position[n]) * frame,
      k = 0, 1, 2, ... Each trial begins at a random moment of the scan.

    Raises ValueError for a frame shorter than a bin, and for positions outside 0 to 1.
    """
    trials, bins, neurons = shape
    if not frame >= 1:
        raise ValueError(f"frame is {frame} bins; give at least 1")
    rng = np.random.default_rng(seed)
    position = rng.random(neurons) if position is None else position
    if not (position.shape == (neurons,) and (position >= 0).all() and (position <= 1).all()):
        raise ValueError(f"position must be {neurons} numbers from 0 to 1, one a neuron")
    begin = rng.random((trials, 1, 1))
    edges = np.arange(bins + 1)[:, None] / frame - position  # frames since a neuron's own sample
    return _by_trials(shape, lambda rows: np.diff(np.ceil(edges + begin[rows]), axis=1) > 0)


def blocks(
    shape: tuple[int, int, int], probability: float, seed: Seed = 0, *, length: int = 10
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe or miss each neuron for whole stretches of `length` bins.

    Stretches follow each other from a random beginning, of each neuron in each trial for itself,
    and each is observed with the same probability, independently of all others.

    Raises ValueError for a probability outside 0 to 1, and for a length below 1.
    """
    _check_probability(probability)
    if length < 1:
        raise ValueError(f"length is {length} bins; give at least 1")
    bins, neurons = shape[1:]
    choosing, beginning = np.random.default_rng(seed).spawn(2)

    def draw(rows):
        trials = rows.stop - rows.start
        stretches = (bins + 2 * length - 2) // length  # the most that a trial can touch
        chosen = choosing.random((trials, stretches, neurons)) < probability
        begun = (beginning.random((trials, 1, neurons)) * length).astype(int)
        stretch = (np.arange(bins)[:, None] + begun) // length
        return np.take_along_axis(chosen, stretch, axis=1)

    return _by_trials(shape, draw)


def channels(
    shape: tuple[int, int, int], bandwidth: int, seed: Seed = 0
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Observe `bandwidth` neurons in each trial, from its beginning to its end.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    trials, bins, neurons = shape
    return random((trials, 1, neurons), bandwidth, seed).repeat(bins, axis=1)


def _by_trials(shape: tuple[int, int, int], draw) -> np.ndarray:
    """A mask put together of what `draw` makes of a few trials at once."""
    observed = np.empty(shape, bool)
    step = max(1, BLOCK_SIZE // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        observed[rows] = draw(rows)
    return observed


def _check_bandwidth(bandwidth: int, neurons: int) -> None:
    if not 1 <= bandwidth <= neurons:
        raise ValueError(f"bandwidth is {bandwidth} of {neurons} neurons; give 1 to {neurons}")


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; give a number from 0 to 1")
