"""Trials of different length as one array."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

Trial = Shaped[np.ndarray, "bin neuron"]


def stack(
    trials: Sequence[Trial],
) -> tuple[Shaped[np.ndarray, "trial bin neuron"], Bool[np.ndarray, "trial bin neuron"]]:
    """Trials, bin x neuron each, padded to the longest, and where they and their masks, if they are
    masked arrays, have values.

    Raises ValueError if one is not bin x neuron, or they differ in neurons.
    """
    shapes = [np.shape(trial) for trial in trials]
    if not trials or any(len(shape) != 2 for shape in shapes):
        odd = next((i for i, shape in enumerate(shapes) if len(shape) != 2), None)
        found = "no trials" if odd is None else f"trial {odd} has {len(shapes[odd])} axes"
        raise ValueError(f"{found}; expected a list of arrays, bin x neuron")
    if len({neurons for _, neurons in shapes}) > 1:
        odd = next(i for i, shape in enumerate(shapes) if shape[1] != shapes[0][1])
        raise ValueError(f"trial 0 has {shapes[0][1]} neurons and trial {odd} {shapes[odd][1]}")
    whole = len(trials), max(bins for bins, _ in shapes), shapes[0][1]
    values = np.zeros(whole, np.result_type(*(np.asanyarray(trial).dtype for trial in trials)))
    mask = np.zeros(whole, bool)
    for row, trial in enumerate(trials):
        values[row, : len(trial)] = np.ma.getdata(trial)
        mask[row, : len(trial)] = ~np.ma.getmaskarray(trial)
    return values, mask


def bins_first(trials: Sequence[Trial]) -> tuple[list[Trial], str]:
    """Trials turned so that bins come before neurons, and the order they were in, in words.

    Neurons are as many in each trial and bins need not be. Where both are, bins are taken to come
    first.
    """
    first, second = ({np.shape(trial)[axis] for trial in trials} for axis in (0, 1))
    if len(first) == 1 and len(second) > 1:
        return [trial.T for trial in trials], "neuron x bin, since bins differ from trial to trial"
    if len(first) > 1:
        return list(trials), "bin x neuron, since bins differ from trial to trial"
    return list(trials), "bin x neuron"
