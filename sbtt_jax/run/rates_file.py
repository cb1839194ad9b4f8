"""rates.h5: the inferred rates of every trial and model, with axes and units."""

import h5py
import numpy as np

from sbtt_jax.data.dataset import Dataset
from sbtt_jax.grid import ModelKey


def write_trials(file: h5py.File, data: Dataset) -> None:
    """What the rows of all arrays are."""
    split = np.full(len(data.counts), b"train", dtype="S5")
    split[data.valid] = b"valid"
    lengths = data.counts.shape[1] if data.lengths is None else data.lengths
    for name, values, meaning in (
        ("split", split, "train or valid"),
        ("trial_index", data.trial_numbers, "number of each trial in the recording"),
        ("length", np.full(len(split), lengths), "bins of each trial; NaN after them"),
        ("neuron_index", data.neuron_numbers, "number of each neuron in the recording"),
        ("dropped_trials", np.array(data.dropped_trials, int), "trials left out"),
        ("dropped_neurons", np.array(data.dropped_neurons, int), "neurons left out"),
    ):
        file.create_dataset(name, data=values).attrs["meaning"] = meaning
    file.attrs["bin_width"], file.attrs["bin_width_unit"] = data.bin_width, "s"


# Unit and axes of each array of a model.
ARRAYS = {
    "rates": ("spikes/s", "trial bin neuron"),
    "initial_states": ("1", "trial unit"),
    "inferred_inputs": ("1", "trial bin input"),
    "latents": ("1", "trial bin latent"),
}


def write_model(
    file: h5py.File, key: ModelKey, arrays: dict[str, np.ndarray], *, ensemble: bool = False
) -> None:
    """Arrays of a model, or of the mean over all models that differ from it in their seed only."""
    _, _, *sweep = (f"{name}_{value}" for name, value in key.columns.items())
    last = "ensemble" if ensemble else f"seed_{key.seed}"
    path = "/".join([f"bandwidth_{key.bandwidth:02d}", *sweep, last])
    for name, values in arrays.items():
        # Not compressed: it would hardly be smaller.
        item = file.create_dataset(f"{path}/{name}", data=values.astype(np.float32))
        item.attrs["unit"], item.attrs["axes"] = ARRAYS[name]
