"""Trials of different length as one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbtt_jax.data.arrays import Array


class Padded:
    """Trials, bin x neuron each, as rows that an `Array` can be made of, read as they are needed.

    What follows a trial, up to the longest, is NaN; in a mask it is 0.

    Raises ValueError if a trial is not bin x neuron, or they differ in neurons.
    """

    def __init__(self, trials: Sequence[Array], *, mask: bool = False):
        shapes = [trial.shape for trial in trials]
        if not trials or any(len(shape) != 2 for shape in shapes):
            odd = next((i for i, shape in enumerate(shapes) if len(shape) != 2), None)
            found = "no trials" if odd is None else f"trial {odd} has {len(shapes[odd])} axes"
            raise ValueError(f"{found}; expected a list of arrays, bin x neuron")
        if len({neurons for _, neurons in shapes}) > 1:
            odd = next(i for i, shape in enumerate(shapes) if shape[1] != shapes[0][1])
            raise ValueError(f"trial 0 has {shapes[0][1]} neurons and trial {odd} {shapes[odd][1]}")
        self.shape = len(trials), max(bins for bins, _ in shapes), shapes[0][1]
        self.dtype = np.result_type(*(trial.dtype for trial in trials))
        if self.dtype.kind in "biu" and len(set(shapes)) > 1 and not mask:
            self.dtype = np.result_type(self.dtype, np.float32)
        self._trials, self._fill = trials, np.nan if self.dtype.kind == "f" and not mask else 0

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = self._trials[index] if isinstance(index, slice) else self._trials
        values = np.full((len(chosen), *self.shape[1:]), self._fill, self.dtype)
        for row, trial in zip(values, chosen, strict=True):
            row[: trial.shape[0]] = trial.whole()
        return values


def bins_first(trials: Sequence[Array]) -> tuple[list[Array], str]:
    """Trials turned so that bins come before neurons, and the order they were in, in words.

    Neurons are as many in each trial and bins need not be. Where both are, bins are taken to come
    first.
    """
    first, second = ({trial.shape[axis] for trial in trials} for axis in (0, 1))
    if len(first) == 1 and len(second) > 1:
        turned = [trial.transposed((1, 0)) for trial in trials]
        return turned, "neuron x bin, since bins differ from trial to trial"
    if len(first) > 1:
        return list(trials), "bin x neuron, since bins differ from trial to trial"
    return list(trials), "bin x neuron"
