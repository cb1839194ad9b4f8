"""Sampling patterns: which neurons are observed in which bins.

Every pattern is a pure function of a shape and a seed and returns True where observed. Combine it
with what the data themselves lack: `observed & ~np.isnan(counts)`. `observe` draws any row of
`PATTERNS` at a bandwidth, the number of neurons observed per bin on average.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Seed = int | Sequence[int]
Mask = Bool[np.ndarray, "trial bin neuron"]
Shape = tuple[int, int, int]  # trials, bins, neurons

MAX_DRAWS = 2**22  # random numbers held at once: 32 MiB, and as much again while they are sorted


def random(shape: Shape, bandwidth: int, seed: Seed = 0) -> Mask:
    """Observe `bandwidth` neurons in every bin of every trial, drawn without replacement.

    All sets of that many neurons are equally likely; bins are independent.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    bins, neurons = shape[1:]
    _check_bandwidth(bandwidth, neurons)
    if bandwidth == neurons:
        return np.ones(shape, bool)
    rng = np.random.default_rng(seed)

    def draw(rows):
        # float64: float32 keys tie a few times per data set, and ties would be chosen together.
        keys = rng.random((rows.stop - rows.start, bins, neurons))
        return keys < np.partition(keys, bandwidth, axis=-1)[..., bandwidth, None]

    return _by_trials(shape, draw)


def round_robin(shape: Shape, bandwidth: int, seed: Seed = 0) -> Mask:
    """Observe `bandwidth` neurons in every bin, one group after another: multiplexed electrodes.

    Neurons take turns in a cyclic order drawn once, so that the samples of one are
    neurons / bandwidth bins apart, rounded up or down. Each trial starts at a random place in it.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    trials, bins, neurons = shape
    _check_bandwidth(bandwidth, neurons)
    rng = np.random.default_rng(seed)
    place = rng.permutation(neurons)
    begin = rng.integers(neurons, size=(trials, 1, 1)) + bandwidth * np.arange(bins)[:, None]
    return _by_trials(shape, lambda rows: (place - begin[rows]) % neurons < bandwidth)


def bernoulli(shape: Shape, probability: float, seed: Seed = 0) -> Mask:
    """Observe each point with the same probability, independently of all others.

    Raises ValueError for a probability outside 0 to 1.
    """
    _check_probability(probability)
    rng = np.random.default_rng(seed)
    return _by_trials(
        shape, lambda rows: rng.random((rows.stop - rows.start, *shape[1:])) < probability
    )


def raster(
    shape: Shape,
    frame: float,
    seed: Seed = 0,
    *,
    position: Float[np.ndarray, " neuron"] | None = None,
) -> Mask:
    """Observe each neuron once per frame, when the scan reaches it: two-photon imaging.

    frame: bins that a scan of all neurons takes, at least 1 and not necessarily whole.
    position: when in the frame the scan reaches each neuron, from 0 to 1; drawn if None. Neuron n
      is sampled in the bins that contain a time (k + position[n]) * frame, k = 0, 1, 2, ... Each
      trial starts at a random moment of the scan.

    Raises ValueError for a frame shorter than a bin and for positions outside 0 to 1.
    """
    trials, bins, neurons = shape
    if not frame >= 1:
        raise ValueError(f"frame is {frame} bins; give at least 1")
    rng = np.random.default_rng(seed)
    position = rng.random(neurons) if position is None else position
    if not (position.shape == (neurons,) and (position >= 0).all() and (position <= 1).all()):
        raise ValueError(f"position must be {neurons} numbers from 0 to 1, one per neuron")
    begin = rng.random((trials, 1, 1))
    edges = np.arange(bins + 1)[:, None] / frame - position  # frames since a neuron's own sample
    return _by_trials(shape, lambda rows: np.diff(np.ceil(edges + begin[rows]), axis=1) > 0)


def blocks(shape: Shape, probability: float, seed: Seed = 0, *, length: int = 10) -> Mask:
    """Observe or miss each neuron for whole blocks of `length` bins.

    Blocks start at a random offset, separate for each neuron and trial, and each is observed with
    the same probability, independently of all others.

    Raises ValueError for a probability outside 0 to 1 and for a length below 1.
    """
    _check_probability(probability)
    if length < 1:
        raise ValueError(f"length is {length} bins; give at least 1")
    bins, neurons = shape[1:]
    choosing, beginning = np.random.default_rng(seed).spawn(2)

    def draw(rows):
        trials = rows.stop - rows.start
        most = (bins + 2 * length - 2) // length  # blocks that a trial can touch
        chosen = choosing.random((trials, most, neurons)) < probability
        offset = (beginning.random((trials, 1, neurons)) * length).astype(int)
        block = (np.arange(bins)[:, None] + offset) // length
        return np.take_along_axis(chosen, block, axis=1)

    return _by_trials(shape, draw)


def channels(shape: Shape, bandwidth: int, seed: Seed = 0) -> Mask:
    """Observe `bandwidth` neurons in each trial, from its beginning to its end.

    Raises ValueError for a bandwidth outside 1 to the number of neurons.
    """
    trials, bins, neurons = shape
    return random((trials, 1, neurons), bandwidth, seed).repeat(bins, axis=1)


class Pattern(NamedTuple):
    """A row of `PATTERNS`.

    summary: which neurons it observes, in a few words.
    draw: (shape, bandwidth, seed, block_length) -> mask, for a bandwidth below the number of
      neurons; `block_length` is the setting of that name, for patterns that have blocks.
    """

    summary: str
    draw: Callable[[Shape, int, Seed, int], Mask]


PATTERNS = {
    "random": Pattern(
        "a new random set in every bin",
        lambda shape, bandwidth, seed, _: random(shape, bandwidth, seed),
    ),
    "round_robin": Pattern(
        "groups in turn, as multiplexed electrodes",
        lambda shape, bandwidth, seed, _: round_robin(shape, bandwidth, seed),
    ),
    "bernoulli": Pattern(
        "each point by chance",
        lambda shape, bandwidth, seed, _: bernoulli(shape, bandwidth / shape[2], seed),
    ),
    "raster": Pattern(
        "each neuron once per scan, as two-photon imaging",
        lambda shape, bandwidth, seed, _: raster(shape, shape[2] / bandwidth, seed),
    ),
    "blocks": Pattern(
        "each neuron in blocks of block_length bins",
        lambda shape, bandwidth, seed, length: blocks(
            shape, bandwidth / shape[2], seed, length=length
        ),
    ),
    "channels": Pattern(
        "the same neurons throughout a trial",
        lambda shape, bandwidth, seed, _: channels(shape, bandwidth, seed),
    ),
}


def observe(
    pattern: str, shape: Shape, bandwidth: int, seed: Seed = 0, *, block_length: int = 10
) -> Mask:
    """Any pattern by its name, with `bandwidth` neurons observed per bin on average.

    A bandwidth of all neurons observes everything, whatever the pattern.

    Raises ValueError for an unknown pattern and a bandwidth outside 1 to the number of neurons.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern is {pattern}; give one of {', '.join(PATTERNS)}")
    _check_bandwidth(bandwidth, shape[2])
    if bandwidth == shape[2]:
        return np.ones(shape, bool)
    return PATTERNS[pattern].draw(shape, bandwidth, seed, block_length)


def _by_trials(shape: Shape, draw: Callable[[slice], Mask]) -> Mask:
    """A mask drawn a few trials at a time, to bound memory."""
    observed = np.empty(shape, bool)
    step = max(1, MAX_DRAWS // max(1, shape[1] * shape[2]))
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
