"""From Python: an array of spike counts in, a fitted model, arrays of rates out."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sbtt_jax import config, dataset, evaluation, experiment, grid
from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError
from sbtt_jax.model import SequentialAutoencoder
from sbtt_jax.run_folder import RunFolder

# What stands for the recording's path in the settings of a model that was fitted to an array.
ARRAY = "an array (sbtt_jax.fit)"

# The settings of configs/recording.yaml, which an installed package does not have beside it.
RECIPE: dict[str, dict[str, Any]] = {
    "data": {"holdout_fraction": 0.2},
    "model": {"encoder_size": 50, "decoder_size": 100, "mask_input": True, "refinement_steps": 5},
    "train": {
        "epochs": 300,
        "batch_size": 32,
        "learning_rate": 7e-3,
        "schedule": "cosine",
        "warmup_epochs": 5,
        "adam_b2": 0.99,
        "clip_norm": 1.0,
        "coordinated_dropout": 0.4,
        "coordinated_dropout_pass": 0.2,
        "coordinated_dropout_whole": 0.15,
    },
}


class Rates(NamedTuple):
    """What a fitted model says of each trial; NaN behind a trial's end."""

    rates: Float[np.ndarray, "trial bin neuron"]  # spikes/s
    latents: Float[np.ndarray, "trial bin latent"]
    initial_states: Float[np.ndarray, "trial unit"]


class Fitted:
    """A trained model of a recording.

    settings: every setting it was trained with; its own value of those that the run has lists of.
    model: the network, at its epoch of least validation loss.
    epoch: that epoch, counted from 0.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        model: SequentialAutoencoder,
        epoch: int,
        *,
        keeps: object = None,
    ):
        self.settings, self.model, self.epoch = settings, model, epoch
        self._run, self._keeps = run, keeps  # a temporary folder lives as long as what it holds

    def infer(self, spikes: Any) -> Rates:
        """Rates of every neuron in every bin of each trial, observed or not.

        spikes: counts, trial x bin x neuron, NaN where not observed. A trial ends at its last bin
          with any sample. Neurons are those that were fitted; ones that data.drop_neurons names
          are left out of the rates.

        Raises:
          InputError: not whole spike counts, or of other neurons than were fitted.
        """
        counts, observed = dataset.counts_of(np.asarray(spikes))
        dropped = self.settings.data.drop_neurons
        fitted, given = self.model.readout.out_features, counts.shape[2]
        if given != fitted + len(set(dropped)):
            raise InputError(
                f"array: spikes has {given} neurons; the model was fitted to "
                f"{fitted + len(set(dropped))}"
            )
        kept = np.setdiff1d(np.arange(given), dropped)
        counts, observed = counts[..., kept], observed[..., kept]
        lengths = dataset.lengths_of(observed)
        inference = evaluation.infer(self.model, counts, observed, lengths=lengths)
        rates = np.exp(inference.lograte) / self.settings.data.bin_width
        return Rates(rates, inference.latent, inference.ic)

    def save(self, folder: str | Path) -> None:
        """Write a run folder that `load` and evaluate.py read.

        Raises:
          InputError: the folder holds a run already.
        """
        into = RunFolder(folder)
        if into.config.exists():
            raise InputError(f"{folder}: holds a run already; give another folder")
        shutil.copytree(self._run.checkpoints, into.checkpoints, dirs_exist_ok=True)
        for name in ("history", "history_figure", "config"):  # the settings last: they make it one
            shutil.copy2(getattr(self._run, name), getattr(into, name))


def fit(
    spikes: Any,
    *,
    bin_width: float = 0.02,
    condition: Any = None,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train a model on a recording as it is, by the recommended recipe.

    spikes: counts, trial x bin x neuron, NaN where not observed. Trials may be padded with NaN at
      the end.
    bin_width: seconds.
    condition: a number for each trial; each condition gives its share of validation trials.
    seed: of the split, the held-out points, the initial weights, shuffling and dropout.
    data, model, train: settings that differ from the recipe, as in `train={"epochs": 100}`; those
      of `sbtt_jax.config`.

    Raises:
      InputError: naming what is wrong with the array or a setting, or which setting is a list:
        several models are for train.py.
      KeyboardInterrupt: stopped by Ctrl-C.
    """
    own = {"path": ARRAY, "bin_width": bin_width, "seed": seed}
    changes = {"data": own | dict(data or {}), "model": model or {}, "train": train or {}}
    groups = {name: RECIPE[name] | dict(change) for name, change in changes.items()}
    settings = config.check({"bandwidths": (), "seeds": (seed,), **groups})
    if several := grid.lists(settings):
        raise InputError(
            f"{', '.join(several)}: fit trains one model; give one number, or train.py a grid"
        )
    recording = dataset.from_arrays(
        np.asarray(spikes),
        condition=None if condition is None else np.asarray(condition),
        **experiment.reading(settings),
    )
    folder = tempfile.TemporaryDirectory(prefix="sbtt-jax-")
    if experiment.train(settings, folder.name, data=recording):
        raise KeyboardInterrupt
    return load(folder.name, _keeps=folder)


def load(
    run: str | Path,
    *,
    bandwidth: int | None = None,
    seed: int | None = None,
    _keeps: object = None,
    **varied: float | int,
) -> Fitted:
    """A model of a run folder that `Fitted.save` or train.py wrote.

    `bandwidth`, `seed` and settings that the run has lists of, by name (`learning_rate=1e-3`), say
    which, where the run has several.

    Raises:
      InputError: no run there, or none or several that fit.
    """
    folder = RunFolder(run)
    trained = evaluation.restore(run, bandwidth)
    chosen = [
        key for key in trained if seed in (None, key.seed) and varied.items() <= set(key.varied)
    ]
    if len(chosen) != 1:
        names = ["bandwidth", "seed", *(name for name, _ in next(iter(trained)).varied)]
        there = ", ".join(
            f"({', '.join(map(grid.shown, (k.bandwidth, k.seed, *dict(k.varied).values())))})"
            for k in chosen or trained
        )
        raise InputError(
            f"{run}: give the {', '.join(names[:-1])} and {names[-1]} of one model; there are "
            f"({', '.join(names)}) {there}"
        )
    (key,) = chosen
    settings = grid.single(folder.settings(), key.varied)
    return Fitted(folder, settings, *trained[key], keeps=_keeps)
