"""rates.h5: the inferred rates of every trial and model, with axes and units."""

import h5py
import numpy as np
from jaxtyping import Float

from sbtt_jax.data.dataset import Dataset
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.autoencoder import Inference

RATES = "spikes/s", "trial bin neuron"


def write_trials(file: h5py.File, data: Dataset) -> None:
    """What the rows of all arrays are."""
    split = np.full(len(data.counts), b"train", dtype="S5")
    split[data.valid] = b"valid"
    lengths = np.full(len(split), data.counts.shape[1]) if data.lengths is None else data.lengths
    for name, values, meaning in (
        ("split", split, "train or valid"),
        ("trial_index", data.trial_numbers, "number of each trial in the recording"),
        ("length", lengths, "bins of each trial; NaN after them"),
        ("neuron_index", data.neuron_numbers, "number of each neuron in the recording"),
        ("dropped_trials", np.array(data.dropped_trials, int), "trials left out"),
        ("dropped_neurons", np.array(data.dropped_neurons, int), "neurons left out"),
    ):
        file.create_dataset(name, data=values).attrs["meaning"] = meaning
    file.attrs["bin_width"] = data.bin_width
    file.attrs["bin_width_unit"] = "s"


def write_model(
    file: h5py.File,
    key: ModelKey,
    rates: Float[np.ndarray, "trial bin neuron"],
    inference: Inference,
    *,
    latents: bool,
) -> None:
    """Rates (spikes/s) and initial conditions of a model, and its latents if asked for."""
    group = file.create_group(f"{_group(key)}/seed_{key.seed}")
    _write(group, "rates", rates, *RATES)
    _write(group, "initial_states", inference.ic, "1", "trial unit")
    if latents:
        _write(group, "latents", inference.latent, "1", "trial bin latent")


def write_ensemble(
    file: h5py.File, key: ModelKey, rates: Float[np.ndarray, "trial bin neuron"]
) -> None:
    """The mean rates (spikes/s) of all models that differ from this one in their seed only."""
    _write(file.create_group(f"{_group(key)}/ensemble"), "rates", rates, *RATES)


def _group(key: ModelKey) -> str:
    names = (
        f"{name}_{value}" for name, value in key.columns.items() if name not in ModelKey._fields
    )
    return "/".join([f"bandwidth_{key.bandwidth:02d}", *names])


def _write(group: h5py.Group, name: str, values: np.ndarray, unit: str, axes: str) -> None:
    item = group.create_dataset(name, data=values.astype(np.float32))  # would hardly compress
    item.attrs["unit"], item.attrs["axes"] = unit, axes
