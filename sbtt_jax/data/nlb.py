"""The tensors of the Neural Latents Benchmark (Pei, Ye et al. 2021, arXiv 2109.04463).

Some neurons are never given as input in evaluation ("heldout"), nor are the bins that follow each
trial ("forward"): both are predicted. Here they come after the others in one array, and `given`
says which points may be input.
"""

import numpy as np

from sbtt_jax.data import labels
from sbtt_jax.data.arrays import Array, Arrays, size

FIRST = "train_spikes_heldin"
PARTS = "heldin", "heldout", "heldin_forward", "heldout_forward"


def as_recording(arrays: Arrays) -> Arrays:
    """The training tensors as `spikes`, the evaluation tensors as `test_data`, NaN where they hold
    nothing, and `given`; other arrays as they are.

    Raises InputError if the tensors do not fit together.
    """
    bins, neurons = _shape(arrays, FIRST)[1:]
    heldout, ahead = (arrays.get(f"train_spikes_{part}") for part in PARTS[1:3])
    sizes = (
        bins + (0 if ahead is None else _shape(arrays, f"train_spikes_{PARTS[2]}")[1]),
        neurons + (0 if heldout is None else _shape(arrays, f"train_spikes_{PARTS[1]}")[2]),
    )
    places = {
        part: (
            slice(bins, None) if part.endswith("forward") else slice(0, bins),
            slice(neurons, None) if part.startswith("heldout") else slice(0, neurons),
        )
        for part in PARTS
    }
    tensors = {f"{split}_spikes_{part}" for split in ("train", "eval") for part in PARTS}
    made = {key: array for key, array in arrays.items() if key not in tensors}
    for split, name in (("train", "spikes"), ("eval", "test_data")):
        first = f"{split}_spikes_heldin"
        if first not in arrays:
            continue
        whole = np.full((_shape(arrays, first)[0], *sizes), np.nan, np.float32)
        says = {}
        for part, place in places.items():
            if (key := f"{split}_spikes_{part}") not in arrays:
                continue
            there = whole[:, *place]
            expected = f"{size(there.shape)} counts, to fit {FIRST} and the others"
            array = labels.oriented(arrays, key)
            arrays.check(key, array.shape == there.shape and array.is_real, expected)
            fills = labels.fills_of_counts(arrays, key)
            for rows, block in array.blocks():
                there[rows] = np.where(labels.filled(block, fills), np.nan, block)
            says = {k: v for k, v in array.says.items() if k not in labels.FILLS} | says
        made[name] = Array(whole, says)
    given = np.zeros(sizes, bool)
    given[places["heldin"]] = True
    made["given"] = Array(given)
    return Arrays(arrays.source, made, arrays.notes)


def _shape(arrays: Arrays, key: str) -> tuple[int, ...]:
    shape = labels.oriented(arrays, key).shape
    arrays.check(key, len(shape) == 3 and 0 not in shape, "trial x bin x neuron")
    return shape
