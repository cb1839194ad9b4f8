"""What a recording holds and how it would be read, in words."""

from collections.abc import Iterator

import numpy as np

from sbtt_jax.config import Settings
from sbtt_jax.data import problem, readers, recording
from sbtt_jax.data.arrays import Asked, size
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import listed
from sbtt_jax.errors import InputError
from sbtt_jax.run import notices
from sbtt_jax.run.notices import split_in_words


def inspect(settings: Settings) -> Iterator[str]:
    """The arrays of the settings' recording, then the data set that they make, line by line.

    Raises InputError if there is no recording or, after its arrays, if it cannot be read.
    """
    path = settings.data.path
    if path is None:
        raise InputError("nothing to inspect; give a recording, sbtt inspect FILE or --data FILE")
    how = problem.reading(settings)
    asked = Asked.of(how)
    with readers.opened(path, asked) as arrays:
        yield f"{path} holds"
        for key, array in arrays.items():
            shape = size(array.shape) if array.shape else "one value"
            axes = "" if array.axes is None else f"  ({', '.join(array.axes)})"
            yield f"  {key:20} {shape:>20}  {array.kind}{axes}"
        for table, columns in asked.columns.items():
            yield f"  columns of {table}: {', '.join(columns)}"
        data = recording.assemble(arrays, **how)
    if unread := sorted(set(arrays) - arrays.read):
        yield f"  not read: {', '.join(unread)}"
    yield "read as"
    split = any(name.split("/")[-1].startswith("valid_") for name in arrays.read)
    for name, text in _facts(settings, data, split_here=not split).items():
        yield f"  {name:12} {text}"
    yield from data.notes
    yield from notices.unlikely(data, settings.model.distribution)
    yield from notices.silent(data, settings.model.distribution)
    problem.check_trainable(settings, data)


def _facts(settings: Settings, data: Dataset, *, split_here: bool) -> dict[str, str]:
    share = f"data.valid_fraction {settings.data.valid_fraction:g}, seed {settings.data.seed}"
    split = f"split here: {share}" if split_here else "as split in the file"
    lengths = "" if data.lengths is None else f"{data.lengths.min()} to "
    points = data.inside.sum() * data.neurons
    mean = data.counts.mean(where=data.observed, dtype=np.float64)
    least = -np.inf if data.counts.dtype.kind == "f" else 0
    most = data.counts.max(where=data.observed, initial=least)
    observation = settings.model.distribution
    per_second = f" ({mean / data.bin_width:.3g} spikes/s)" if observation.is_count else ""
    given = ""
    if data.given is not None:
        bins, neurons = data.given.any(1).sum(), data.given.any(0).sum()
        given = f"; {neurons} of them in {bins} bins are given, all others are only predicted"
    words = observation.words
    rates = f"none; models are judged by bits per {words.per} at held-out points"
    if data.rates is not None:
        scale, unit = observation.shown(data.bin_width)
        rate = data.rates.mean(where=data.observed, dtype=np.float64) * scale
        unit = "" if unit == "1" else f" {unit}"
        rates = f"{rate:.3g}{unit} on average, where observed"
    units = "" if data.unit_id is None else f": {listed(data.unit_id.tolist())}"
    names = [] if data.condition is None else data.condition_values.tolist()
    conditions = f"{len(names)}: {listed(names)}" if names else ""
    if names and (unknown := (data.condition < 0).sum()):
        conditions += f"; not known of {unknown} trials"
    session = ""
    if data.session is not None:
        seconds = len(data.session.counts) * data.bin_width
        session = f"{seconds:g} s from {data.time_start:g} s, cut into windows"
    facts = {
        "session": session,
        "trials": f"{split_in_words(data)}, {split}",
        "bins": f"{lengths}{data.counts.shape[1]} of {data.bin_width:g} s",
        "neurons": f"{data.neurons}{given}{units}",
        "conditions": conditions,
        "observed": f"{data.observed.sum() / points:.1%} of {points} points",
        words.values: f"{mean:.3g} per bin{per_second} on average, {most:.6g} at most",
        "true rates": rates,
        "without trials": ", ".join(map(str, data.dropped_trials)),
        "without neurons": ", ".join(map(str, data.dropped_neurons)),
    }
    return {name: text for name, text in facts.items() if text}
