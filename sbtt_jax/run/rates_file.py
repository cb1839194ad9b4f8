"""rates.h5: the inferred rates of every trial and model, labelled as netCDF-4 files are.

xarray opens it: a group per model, whose arrays have named axes with coordinates and units.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data.dataset import Dataset
from sbtt_jax.grid import ModelKey

TEXT = h5py.string_dtype()

# Unit and axes of each array of a model; those of a session have no trials.
ARRAYS = {
    "rates": (None, "trial time neuron"),  # that of the observation model
    "rates_sd": (None, "trial time neuron"),
    "rates_low": (None, "trial time neuron"),
    "rates_high": (None, "trial time neuron"),
    "initial_states": ("1", "trial unit"),
    "inferred_inputs": ("1", "trial time input"),
    "latents": ("1", "trial time latent"),
}
OF_TRIALS = "split", "length", "trial_start", "condition"


def write_recording(file: h5py.File, data: Dataset, path: str | None) -> None:
    """What the recording's axes are, and what was left out. path: of its file, if it is one."""
    _write_axes(file, data)
    of_trials = "trial" if data.session is None else "training_window"
    index, dropped = {"meaning": "number in the recording"}, {"meaning": "left out"}
    for name, axis, values in (
        ("trial_index", of_trials, data.trial_numbers),
        ("neuron_index", "neuron", data.neuron_numbers),
    ):
        _write(file, name, values, index).dims[0].attach_scale(file[axis])
    _write_scale(file, "dropped_trials", np.array(data.dropped_trials, int), dropped)
    _write_scale(file, "dropped_neurons", np.array(data.dropped_neurons, int), dropped)
    file.attrs["bin_width"], file.attrs["bin_width_unit"] = data.bin_width, "s"
    if path is not None:
        file.attrs["source"] = os.path.abspath(path)


def source(path: Path) -> str | None:
    """The file that rates in a rates.h5 are of, if that is there and says it."""
    try:
        with h5py.File(path) as file:
            return file.attrs.get("source")
    except OSError:
        return None


def write_model(
    file: h5py.File,
    key: ModelKey,
    data: Dataset,
    arrays: Mapping[str, np.ndarray],
    unit: str = "spikes/s",
    *,
    ensemble: bool = False,
) -> None:
    """Arrays of a model, or of the mean over all models that differ from it in their seed only.

    unit: of the rates.
    """
    _, _, *sweep = (f"{name}_{value}" for name, value in key.columns.items())
    last = "ensemble" if ensemble else f"seed_{key.seed}"
    group = file.create_group("/".join([f"bandwidth_{key.bandwidth:02d}", *sweep, last]))
    _write_axes(group, data)
    for name, values in arrays.items():
        of_array, axes = ARRAYS[name]
        names = axes.split()
        if data.session is not None:
            names = ["window", *names[1:]] if name == "initial_states" else names[1:]
        for axis, length in zip(names, values.shape, strict=True):
            if axis not in group:
                _write_scale(group, axis, np.arange(length), {})
        # Not compressed: it would hardly be smaller.
        item = group.create_dataset(name, data=values.astype(np.float32))
        item.attrs["units"] = item.attrs["unit"] = of_array or unit
        item.attrs["axes"] = " ".join(names)
        if names[0] == "trial":  # so that xarray can group and select rates by it
            item.attrs["coordinates"] = " ".join(name for name in OF_TRIALS if name in group)
        for place, axis in enumerate(names):
            item.dims[place].attach_scale(group[axis])


def _write_axes(group: h5py.Group, data: Dataset) -> None:
    """Coordinates of the axes, and what is known of each trial."""
    _write_scale(group, "time", data.times, {"units": "s", "meaning": "beginning of each bin"})
    _write_scale(group, "neuron", data.unit_ids, {"meaning": "unit id, or number from 0"})
    if data.session is None:
        trial = {"meaning": "number of each trial in the recording, from 0"}
        _write_scale(group, "trial", data.trial_numbers, trial)
    axis = "trial"
    if data.session is not None:  # its trials are not those that rates are of
        axis = "training_window"
        _write_scale(group, axis, np.arange(len(data.counts)), {})
    lengths = data.counts.shape[1] if data.lengths is None else data.lengths
    known: dict[str, tuple[Any, dict[str, str]]] = {
        "split": (np.array(data.split, object), {"meaning": "train, valid or test"}),
        "length": (
            np.full(len(data.counts), lengths),
            {"meaning": "bins of each trial; NaN after them"},
        ),
    }
    if data.trial_start is not None:
        meaning = {"units": "s", "meaning": "when the first bin begins in the recording's clock"}
        known["trial_start"] = data.trial_start, meaning
    if data.condition is not None:
        names = data.condition_names
        if names is None or (data.condition < 0).any():  # of trials that have none
            names = np.array([*map(str, data.condition_values), ""])
        known["condition"] = names[data.condition], {"meaning": "condition of each trial"}
    for name, (values, says) in known.items():
        item = _write(group, name, values, says)
        item.dims[0].attach_scale(group[axis])


def _write_scale(group: h5py.Group, name: str, values: np.ndarray, says: dict[str, str]) -> None:
    _write(group, name, values, says).make_scale(name)


def _write(group: h5py.Group, name: str, values: Any, says: dict[str, str]) -> h5py.Dataset:
    values = np.asarray(values)
    how = {"dtype": TEXT} if values.dtype.kind in "OUS" else {}
    if how:
        values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], object)
    item = group.create_dataset(name, data=values, **how)
    item.attrs.update(says)
    return item
