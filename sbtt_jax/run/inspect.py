"""What a recording holds and how it would be read, in words."""

from collections.abc import Iterator

import numpy as np

from sbtt_jax.config import Settings
from sbtt_jax.data import problem, readers, recording
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.errors import InputError


def inspect(settings: Settings) -> Iterator[str]:
    """The arrays of the settings' recording, then the data set that they make, line by line.

    Raises InputError if there is no recording or, after its arrays, if it cannot be read.
    """
    path = settings.data.path
    if path is None:
        raise InputError("nothing to inspect; give a recording with --data FILE")
    with readers.opened(path) as arrays:
        yield f"{path} holds"
        for key, array in arrays.items():
            shape = readers.size(array.shape) if array.shape else "one value"
            yield f"  {key:20} {shape:>20}  {array.dtype}"
        data = recording.assemble(arrays, **problem.reading(settings))
    if unread := sorted(set(arrays) - arrays.read):
        yield f"  not read: {', '.join(unread)}"
    yield "read as"
    for name, text in _facts(settings, data, split_here="spikes" in arrays.read).items():
        yield f"  {name:12} {text}"
    yield from data.notes
    problem.check_trainable(settings, data)


def _facts(settings: Settings, data: Dataset, *, split_here: bool) -> dict[str, str]:
    share = f"data.valid_fraction {settings.data.valid_fraction:g}, seed {settings.data.seed}"
    split = f"split here: {share}" if split_here else "as split in the file"
    lengths = "" if data.lengths is None else f"{data.lengths.min()} to "
    points = data.inside.sum() * data.neurons
    mean = data.counts.mean(where=data.observed, dtype=np.float64)
    rates = "none; models are judged by bits per spike at held-out points"
    if data.rates is not None:
        rate = data.rates.mean(where=data.observed, dtype=np.float64) / data.bin_width
        rates = f"{rate:.3g} spikes/s on average, where observed"
    facts = {
        "trials": f"{len(data.train)} training, {len(data.valid)} validation, {split}",
        "bins": f"{lengths}{data.counts.shape[1]} of {data.bin_width:g} s",
        "neurons": f"{data.neurons}",
        "observed": f"{data.observed.sum() / points:.1%} of {points} points",
        "counts": f"{mean:.3g} per bin ({mean / data.bin_width:.3g} spikes/s) on average, "
        f"{data.counts.max()} at most",
        "true rates": rates,
        "without trials": ", ".join(map(str, data.dropped_trials)),
        "without neurons": ", ".join(map(str, data.dropped_neurons)),
    }
    return {name: text for name, text in facts.items() if text}
