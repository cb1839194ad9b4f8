"""From Python: an array of spike counts in, a fitted model, arrays of rates out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sbtt_jax import config, grid
from sbtt_jax.data import dataset, problem, recording
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.inference import Prior, infer_all
from sbtt_jax.observations import OBSERVATIONS
from sbtt_jax.run import provenance, restore
from sbtt_jax.run.files import Row
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import Trained
from sbtt_jax.run.scores import view
from sbtt_jax.run.train import history_rows
from sbtt_jax.training import population

# Stands for the recording's path in the settings of a model that was fitted to an array.
ARRAY = "an array (sbtt_jax.fit)"


class Rates(NamedTuple):
    """What a fitted model infers about each trial; NaN after a trial's end."""

    rates: Float[np.ndarray, "trial bin neuron"]  # spikes/s
    latents: Float[np.ndarray, "trial bin latent"]
    initial_states: Float[np.ndarray, "trial unit"]
    inferred_inputs: Float[np.ndarray, "trial bin input"] | None  # None if the model has none


@dataclass(frozen=True, eq=False, repr=False)
class Fitted(Trained):
    """A trained model of a recording. It holds its own weights, so it can be pickled and copied.

    settings: every setting it was trained with.
    model: the network, at its epoch of least validation loss; `params` has its weights.
    epoch: that epoch, counted from 0; `nll` has its loss.
    prior: if the model infers by a posterior, initial conditions of the training trials.
    history: its rows of history.csv, one mapping per epoch.
    """

    history: list[Row]
    prior: Prior | None  # initial conditions of the training trials
    _key: ModelKey
    _provenance: Mapping[str, Any]

    def infer(self, spikes: Any) -> Rates:
        """Rates of every neuron in every bin of each trial, observed or not.

        spikes: counts, trial x bin x neuron, NaN where not observed. A trial ends at its last bin
          with any sample. Neurons are those of the fit; ones that data.drop_neurons names are left
          out of the rates.

        Raises InputError if these are not whole spike counts, or of other neurons than were fitted.
        """
        observation = OBSERVATIONS[self.settings.model.observation]
        counts, observed = recording.counts_of(np.asarray(spikes), observation)
        dropped = self.settings.data.drop_neurons
        expected, given = self.neurons + len(set(dropped)), counts.shape[2]
        if given != expected:
            fitted = f"the model was fitted to {expected}"
            raise InputError(f"array: spikes has {given} neurons; {fitted}")
        kept = np.setdiff1d(np.arange(given), dropped)
        counts, observed = counts[..., kept], observed[..., kept]
        lengths, width = dataset.lengths_of(observed), self.settings.data.bin_width
        inference = infer_all(self.model, counts, observed, lengths, prior=self.prior)
        rates = observation.mean(inference.output) / width
        return Rates(rates, inference.latent, inference.ic, inference.inputs)

    def save(self, folder: str | Path) -> None:
        """Write a run folder of this model, which `load` and evaluate.py read.

        Raises InputError if the folder holds a run already, SaveError if it cannot be written to.
        """
        own = {"history": self.history, "provenance": self._provenance, "prior": self.prior}
        restore.export(folder, self.settings, {self._key: self}, **own)


def fit(
    spikes: Any,
    *,
    bin_width: float = 0.02,
    condition: Any = None,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Row], bool | None] | None = None,
) -> Fitted:
    """Train a model on a recording as it is, by the recipe `configs/recording.yaml`.

    Trains in memory: nothing is written or printed, and it works in any thread.

    spikes: counts, trial x bin x neuron, NaN where not observed. Trials may be padded with NaN at
      the end.
    bin_width: seconds.
    condition: a number for each trial; each condition gives its share of validation trials.
    seed: of the split, the held-out points, the initial weights, shuffling and dropout.
    data, model, train: settings that differ from the recipe, as in `train={"epochs": 100}`; see
      `sbtt_jax.config`.
    on_epoch: called after every epoch with its row of history.csv; training stops where it returns
      true.

    Raises InputError, naming what is wrong with the array or a setting, or which setting is a list:
    several models are for train.py.
    """
    own = {"path": ARRAY, "bin_width": bin_width, "seed": seed}
    settings = config.updated(
        config.load(config.recipe("recording")),
        bandwidths=(),
        seeds=(seed,),
        data=own | dict(data or {}),
        model=dict(model or {}),
        train=dict(train or {}),
    )
    if lists := ", ".join(grid.swept(settings)):
        remedy = "give one number, or use train.py for a grid"
        raise InputError(f"{lists}: fit trains one model; {remedy}")
    condition = None if condition is None else np.asarray(condition)
    how = problem.reading(settings)
    read = recording.from_arrays(np.asarray(spikes), condition=condition, **how)
    prepared = problem.prepare(settings, read)
    (key,) = prepared.keys
    history: list[Row] = []

    def keep(state, log) -> bool | None:
        history.extend(history_rows(prepared.keys, len(history), log))
        return on_epoch and on_epoch(history[-1])

    state = population.fit(prepared, on_epoch=keep)
    trained = restore.unstack(state.best, {key: prepared.settings})[key]
    record = provenance.record(read)
    prior = view(prepared.settings, read, key.bandwidth).prior(trained.model)
    return Fitted(**vars(trained), history=history, prior=prior, _key=key, _provenance=record)


def load(
    run: str | Path, *, bandwidth: int | None = None, seed: int | None = None, **sweep: float
) -> Fitted:
    """A model of a run folder that `Fitted.save` or train.py wrote.

    `bandwidth`, `seed` and settings that are lists in the run, by name (`learning_rate=1e-3`), say
    which model if the run has several.

    Raises InputError if there is no run, if none or several models match, or if the model infers by
    a posterior and the recording that it was trained on is not where it was.
    """
    folder = RunFolder(run)
    trained = restore.restore(run)
    given = {"bandwidth": bandwidth, "seed": seed} | sweep
    given = {name: value for name, value in given.items() if value is not None}
    chosen = [k for k in trained if given.items() <= (k._asdict() | dict(k.sweep)).items()]
    if len(chosen) != 1:
        *names, last = columns = next(iter(trained)).columns
        there = [f"({', '.join(map(str, key.columns.values()))})" for key in chosen or trained]
        raise InputError(
            f"{run}: give the {', '.join(names)} and {last} of one model; there are "
            f"({', '.join(columns)}) {', '.join(there)}"
        )
    (key,) = chosen
    history = folder.history_of([key])[key]
    own = [{n: v for n, v in row.items() if n not in dict(key.sweep)} for row in history]
    alone, record = key._replace(sweep=()), folder.provenance()
    one, prior = trained[key], folder.read_prior()
    if one.model.posterior and prior is None:  # inferred again from what it was trained on
        prior = view(one.settings, problem.load(one.settings), key.bandwidth).prior(one.model)
    return Fitted(**vars(one), history=own, prior=prior, _key=alone, _provenance=record)
