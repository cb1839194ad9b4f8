"""Sampling patterns: which neurons are observed in which bins.

`observe` draws any row of `PATTERNS` at a bandwidth, the number of neurons observed per bin on
average. A pattern is a pure function (shape, bandwidth, seed, block_length) -> mask, true where
observed, for a bandwidth below the number of neurons.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Seed = int | Sequence[int]
Mask = Bool[np.ndarray, "trial bin neuron"]
Shape = tuple[int, int, int]  # trials, bins, neurons

MAX_DRAWS = 2**22  # random numbers held at once: 32 MiB, and as much again while they are sorted


def observe(
    pattern: str, shape: Shape, bandwidth: int, seed: Seed = 0, *, block_length: int = 10
) -> Mask:
    """Any pattern by its name; a bandwidth of all neurons observes everything.

    Raises ValueError for an unknown pattern, a bandwidth outside 1 to the number of neurons and a
    block_length below 1.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern is {pattern}; give one of {', '.join(PATTERNS)}")
    if not 1 <= bandwidth <= shape[2]:
        raise ValueError(f"bandwidth is {bandwidth} of {shape[2]} neurons; give 1 to {shape[2]}")
    if block_length < 1:
        raise ValueError(f"block_length is {block_length} bins; give at least 1")
    if bandwidth == shape[2]:
        return np.ones(shape, bool)
    return PATTERNS[pattern].draw(shape, bandwidth, seed, block_length)


def random(shape: Shape, bandwidth: int, seed: Seed, block_length: int = 0) -> Mask:
    """`bandwidth` neurons in every bin of every trial, drawn without replacement.

    All sets of that many neurons are equally likely; bins are independent.
    """
    rng = np.random.default_rng(seed)

    def draw(_, part):
        # float64: float32 keys tie a few times per data set, and ties would be chosen together.
        keys = rng.random(part)
        return keys < np.partition(keys, bandwidth, axis=-1)[..., bandwidth, None]

    return _by_trials(shape, draw)


def round_robin(shape: Shape, bandwidth: int, seed: Seed, block_length: int = 0) -> Mask:
    """`bandwidth` neurons in every bin, one group after another: multiplexed electrodes.

    Neurons take turns in a cyclic order drawn once, so that the samples of one are
    neurons / bandwidth bins apart, rounded up or down. Each trial starts at a random place in it.
    """
    trials, bins, neurons = shape
    rng = np.random.default_rng(seed)
    place = rng.permutation(neurons)
    begin = rng.integers(neurons, size=(trials, 1, 1)) + bandwidth * np.arange(bins)[:, None]
    return _by_trials(shape, lambda rows, _: (place - begin[rows]) % neurons < bandwidth)


def bernoulli(shape: Shape, bandwidth: int, seed: Seed, block_length: int = 0) -> Mask:
    """Each point with the same probability, independently of all others."""
    rng = np.random.default_rng(seed)
    return _by_trials(shape, lambda _, part: rng.random(part) < bandwidth / shape[2])


def raster(
    shape: Shape,
    bandwidth: int | float,
    seed: Seed,
    block_length: int = 0,
    *,
    position: Float[np.ndarray, " neuron"] | None = None,
) -> Mask:
    """Each neuron once per frame of neurons / bandwidth bins, when the scan reaches it: two-photon
    imaging.

    position: when in the frame the scan reaches each neuron, from 0 to 1; drawn if None. Neuron n
      is sampled in the bins that contain a time (k + position[n]) * frame, k = 0, 1, 2, ... Each
      trial starts at a random moment of the scan.
    """
    trials, bins, neurons = shape
    rng, frame = np.random.default_rng(seed), neurons / bandwidth
    position = rng.random(neurons) if position is None else position
    begin = rng.random((trials, 1, 1))
    edges = np.arange(bins + 1)[:, None] / frame - position  # frames since a neuron's own sample
    return _by_trials(shape, lambda rows, _: np.diff(np.ceil(edges + begin[rows]), axis=1) > 0)


def blocks(shape: Shape, bandwidth: int, seed: Seed, block_length: int) -> Mask:
    """Each neuron for whole blocks of `block_length` bins, every block with the same probability.

    Blocks start at a random offset, separate for each neuron and trial.
    """
    choosing, beginning = np.random.default_rng(seed).spawn(2)

    def draw(_, part):
        trials, bins, neurons = part
        most = (bins + 2 * block_length - 2) // block_length  # blocks that a trial can touch
        chosen = choosing.random((trials, most, neurons)) < bandwidth / neurons
        offset = (beginning.random((trials, 1, neurons)) * block_length).astype(int)
        block = (np.arange(bins)[:, None] + offset) // block_length
        return np.take_along_axis(chosen, block, axis=1)

    return _by_trials(shape, draw)


def channels(shape: Shape, bandwidth: int, seed: Seed, block_length: int = 0) -> Mask:
    """`bandwidth` neurons in each trial, from its beginning to its end."""
    trials, bins, neurons = shape
    return random((trials, 1, neurons), bandwidth, seed).repeat(bins, axis=1)


class Pattern(NamedTuple):
    """A row of `PATTERNS`: which neurons are observed, in words, and the function."""

    summary: str
    draw: Callable[[Shape, int, Seed, int], Mask]


PATTERNS = {
    "random": Pattern("a new random set in every bin", random),
    "round_robin": Pattern("groups in turn, as multiplexed electrodes", round_robin),
    "bernoulli": Pattern("each point by chance", bernoulli),
    "raster": Pattern("each neuron once per scan, as two-photon imaging", raster),
    "blocks": Pattern("each neuron in blocks of block_length bins", blocks),
    "channels": Pattern("the same neurons throughout a trial", channels),
}


def _by_trials(shape: Shape, draw: Callable[[slice, Shape], Mask]) -> Mask:
    """A mask drawn some trials at a time, to bound memory; `draw` has their slice and shape."""
    observed = np.empty(shape, bool)
    step = max(1, MAX_DRAWS // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        observed[rows] = draw(rows, observed[rows].shape)
    return observed
