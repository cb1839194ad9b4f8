"""What a recording holds and how it would be read, in words."""

from collections.abc import Iterator

import numpy as np

from sbtt_jax import array_file, dataset, experiment
from sbtt_jax.array_file import Array
from sbtt_jax.config import Settings
from sbtt_jax.dataset import Dataset
from sbtt_jax.errors import InputError


class _Noting(dict[str, Array]):
    """Arrays by name, with a note of those that were taken."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.taken: set[str] = set()

    def __getitem__(self, key: str) -> Array:
        self.taken.add(key)
        return super().__getitem__(key)


def lines(settings: Settings) -> Iterator[str]:
    """The arrays of the settings' recording, then the data set that they make, line by line.

    Raises:
      InputError: there is no recording, or, after its arrays, that it cannot be read so and why.
    """
    path = settings.data.path
    if path is None:
        raise InputError("nothing to inspect; give a recording with --data FILE")
    with array_file.opened(path) as arrays:
        arrays = _Noting(arrays)
        yield f"{path} holds"
        for key, array in arrays.items():
            shape = " x ".join(map(str, array.shape)) or "one value"
            yield f"  {key:20} {shape:>20}  {array.dtype}"
        data = dataset.assemble(path, arrays, **experiment.reading(settings))
    if unread := sorted(set(arrays) - arrays.taken):
        yield f"  not read: {', '.join(unread)}"
    yield "read as"
    for name, text in _facts(settings, data, arrays).items():
        yield f"  {name:12} {text}"
    yield from data.notes
    experiment.check_trainable(settings, data)


def _facts(settings: Settings, data: Dataset, arrays: _Noting) -> dict[str, str]:
    share = f"data.valid_fraction {settings.data.valid_fraction:g}, seed {settings.data.seed}"
    split = f"split here: {share}" if "spikes" in arrays.taken else "as split in the file"
    lengths = "" if data.lengths is None else f"{data.lengths.min()} to "
    points = data.real.sum() * data.neurons
    seen = data.observed.sum()
    mean = data.counts.sum(dtype=np.float64) / seen
    facts = {
        "trials": f"{len(data.train)} training, {len(data.valid)} validation, {split}",
        "bins": f"{lengths}{data.counts.shape[1]} of {data.bin_width:g} s",
        "neurons": f"{data.neurons}",
        "observed": f"{seen / points:.1%} of {points} points",
        "counts": f"{mean:.3g} per bin ({mean / data.bin_width:.3g} spikes/s) in the mean, "
        f"{data.counts.max()} at most",
        "true rates": "none; the figure of merit is bits per spike at held-out points",
    }
    if data.rates is not None:
        rate = data.rates.sum(where=data.observed, dtype=np.float64) / seen / data.bin_width
        facts["true rates"] = f"{rate:.3g} spikes/s in the mean, where observed"
    for what in ("trials", "neurons"):
        if dropped := getattr(data, f"dropped_{what}"):
            facts[f"without {what}"] = ", ".join(map(str, dropped))
    return facts
