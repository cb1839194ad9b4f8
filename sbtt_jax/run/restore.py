"""The trained models of a run folder, and run folders of trained models."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, models, settings_of, with_values
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.model.inference import Prior
from sbtt_jax.run import checkpoints, lineage
from sbtt_jax.run.files import Row
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.published import is_published_set
from sbtt_jax.training import epoch, tuning
from sbtt_jax.training.epoch import Best, Params


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """One model at its epoch of least validation loss."""

    settings: Settings  # its own, in which nothing is a list
    params: Params  # nested dicts of NumPy arrays
    nll: float
    epoch: int

    @property
    def neurons(self) -> int:
        outputs = self.settings.model.distribution.outputs
        return self.params["readout"]["bias"].shape[-1] // outputs

    @property
    def model(self) -> SequentialAutoencoder:
        return nnx.merge(epoch.graph(self.neurons, self.settings.model), self.params)


def restore(
    run: str | Path, checkpoint: int | None = None, *, tuned: bool = True
) -> dict[ModelKey, Trained]:
    """The trained models of a run; of members that were tuned together, the one that is used.

    checkpoint: the number of epochs after which it was written; the newest if None.
    tuned: if false, of members that were tuned together, the one whose settings stayed as given.

    Raises InputError if `run` holds no run, no checkpoint yet, or a damaged one.
    """
    found = members(run, checkpoint)
    if all(key.member is None for key in found):
        return found
    if not tuned:
        return untuned(found)
    folder = RunFolder(run)
    chosen = folder.read_winners() if checkpoint is None else {}  # they are of the newest
    return winners(found, folder.read_history(), chosen)


def members(run: str | Path, checkpoint: int | None = None) -> dict[ModelKey, Trained]:
    """As `restore`, with all members that were tuned together."""
    folder = RunFolder(run)
    settings = folder.settings()
    own: dict[ModelKey, Settings] = {}

    def weights(shapes: checkpoints.Shapes) -> tuple[Params, int]:
        (*_, outputs), _ = shapes.get(("params", "readout", "bias", "value"), ((0,), None))
        neurons = outputs // settings.model.distribution.outputs
        if not neurons:
            raise InputError(f"{folder.checkpoints}: best does not hold the weights of a model")
        own.update((key, settings_of(settings, key)) for key in models(settings, neurons))
        model = settings.model
        if settings.tune and model.latent_size:  # as many as the member with the most
            (*_, latents), _ = shapes.get(("params", "bottleneck", "bias", "value"), ((0,), None))
            model = model.model_copy(update={"latent_size": latents or model.latent_size})
        # Shapes only: the checkpoint has to bear out the settings before anything is allocated.
        return nnx.state(nnx.eval_shape(lambda: epoch.build(neurons, model))), len(own)

    return unstack(checkpoints.restore_best(folder.checkpoints, weights, checkpoint), own)


def untuned(trained: Mapping[ModelKey, Trained]) -> dict[ModelKey, Trained]:
    """Of each population that was tuned, the member whose settings stayed as given."""
    return {k._replace(member=None): one for k, one in trained.items() if not k.member}


def winners(
    trained: Mapping[ModelKey, Trained], history: Sequence[Row], chosen: Mapping[ModelKey, int]
) -> dict[ModelKey, Trained]:
    """Of each population that was tuned, the model that is used, with the settings of its best
    epoch as its own.

    history: rows of history.csv; without them, settings are those that the search began with.
    chosen: members that are used; of other populations, the one of least validation loss is.
    """
    every, rows, found = list(trained.values()), lineage.populations(history), {}
    for population, positions in tuning.populations(list(trained)).items():
        if population in chosen:
            one = trained[population._replace(member=chosen[population])]
        else:
            one = min((every[position] for position in positions), key=lambda one: one.nll)
        settings = one.settings
        if population in rows:
            # Its own, or of the member that had this epoch and from which it continues.
            every_row = (row for own in rows[population].values() for row in own)
            then = [row for row in every_row if row["epoch"] == one.epoch]
            if then:  # the file of an earlier part of training may be gone
                row = min(then, key=lambda row: abs(lineage.loss(row) - one.nll))
                own = {name: row[name] for name in tuning.ranges(settings)}
                settings = with_values(settings, own)
        found[population] = replace(one, settings=settings.model_copy(update={"tune": 0}))
    return found


def unstack(best: Best, settings: Mapping[ModelKey, Settings]) -> dict[ModelKey, Trained]:
    """Stacked models, one by one, each with its own settings."""
    stacked = jax.tree.map(np.asarray, best._replace(params=nnx.to_pure_dict(best.params)))
    trained = {}
    for i, (key, own) in enumerate(settings.items()):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        if own.model.latent_size:
            own, one = _of_its_latents(own, one)
        trained[key] = Trained(own, one.params, float(one.nll), int(one.epoch))
    return trained


def _of_its_latents(settings: Settings, best: Best) -> tuple[Settings, Best]:
    """A model of a search without the latents that only others have."""
    size = int(epoch.latents(best.params["bottleneck"]["kernel"]))
    model = settings.model.model_copy(update={"latent_size": size})
    bottleneck = jax.tree.map(lambda leaf: leaf[..., :size], best.params["bottleneck"])
    readout = best.params["readout"] | {"kernel": best.params["readout"]["kernel"][:size]}
    params = best.params | {"bottleneck": bottleneck, "readout": readout}
    return settings.model_copy(update={"model": model}), best._replace(params=params)


def export(
    out: str | Path,
    settings: Settings,
    trained: Mapping[ModelKey, Trained],
    *,
    history: Sequence[Row] = (),
    provenance: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
) -> RunFolder:
    """Write a run folder of trained models, which can be evaluated but not resumed.

    settings: of the run, whose models these are, in its order.
    history: rows of history.csv.
    prior: of a single model, as of `priors.learn`.

    Raises InputError if `out` holds a run, SaveError if it cannot be written to.
    """
    folder = RunFolder(out)
    folder.check(settings, remedy="give another folder")
    models = trained.values()
    # A search may have given them different numbers of latents.
    largest = nnx.state(max(models, key=lambda one: one.settings.model.latent_size or 0).model)
    weights = (epoch.filled_up(nnx.state(one.model), largest) for one in models)
    best = Best(
        jax.tree.map(lambda *leaves: np.stack(leaves), *weights),
        np.array([one.nll for one in models], np.float32),
        np.array([one.epoch for one in models], np.int32),
    )
    epochs = max(row["epoch"] for row in history) if history else int(best.epoch.max())
    checkpoints.save(folder.checkpoints, epochs + 1, best)
    if history:
        table = folder.writing_history(0, settings)
        with closing(table.file):
            table.append(history)
        draw_history(folder, settings, {key: one.epoch for key, one in trained.items()})
    if prior is not None:
        folder.write_prior(prior)
    folder.begin(settings, provenance)  # last: it makes the folder a run
    return folder


def draw_history(folder: RunFolder, settings: Settings, best: Mapping[ModelKey, int]) -> None:
    """Write history.png from history.csv, and what a search leaves; `best` has the best epoch of
    each model."""
    from sbtt_jax.run import plots  # training does not wait for Matplotlib to start

    rows = folder.history_of(best)
    figure = plots.history(rows, best, published=is_published_set(settings))
    plots.save(figure, folder.history_figure)
    if settings.tune:
        from sbtt_jax.run import tuned

        tuned.write(folder, settings)
