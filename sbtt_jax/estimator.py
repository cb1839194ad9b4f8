"""From Python: a recording in, a fitted model out, and back from its run folder."""

import os
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sbtt_jax import config, grid, recipes, signals
from sbtt_jax.config import Settings
from sbtt_jax.data import labels, problem, recording
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.fitted import Fitted
from sbtt_jax.model.inference import Prior
from sbtt_jax.output import messages, to_terminal
from sbtt_jax.run import lineage, notices, priors, provenance, restore, winners
from sbtt_jax.run import train as run_train
from sbtt_jax.run.files import Row
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import Trained
from sbtt_jax.run.scores import view
from sbtt_jax.run.train import history_rows
from sbtt_jax.training import devices, population

# Stands for the recording's path in the settings of a model that was fitted to an array.
ARRAY = "an array (sbtt_jax.fit)"
# Settings that name what a file has.
IN_FILES = {"key", "condition", "align", "window", "units"}


def fit(
    spikes: Any,
    *,
    bin_width: Any = None,
    condition: Any = None,
    seed: int = 0,
    tune: int = 0,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    verbose: bool = False,
    progress: Callable[[Row], bool | None] | None = None,
) -> Fitted:
    """Train a model on a recording as it is, by the recipe `configs/recording.yaml`, or tune it to
    the recording, by `configs/tuned.yaml`.

    Trains in memory: nothing is written or printed unless asked for, and it works in any thread.

    spikes: counts, trial x bin x neuron, NaN where not observed, or anything else that `Recording`
      takes. Trials may be padded with NaN at the end. Or the path of a file that train.py reads.
    bin_width: seconds, or a quantity with a unit; 20 ms are assumed, with a warning, if neither
      this nor the recording says it.
    condition: a number or name for each trial; each condition gives its share of validation trials.
      Of a file, the array or column that has them.
    seed: of the split, the held-out points, the initial weights, shuffling and dropout.
    tune: how many models to train, whose settings are tuned by held-out likelihood meanwhile; the
      best is returned. 16 is a good number; 0 trains one by the recipe.
    data, model, train: settings that differ from the recipe, as in `train={"epochs": 100}`; see
      `sbtt_jax.config`.
    out: a run folder to write while training, as train.py does: every `train.checkpoint_every`
      epochs are saved, and Ctrl-C saves before it stops.
    resume: whether to continue the run in `out`, to the same numbers as if it had never stopped.
    verbose: whether to tell what is trained and show a progress bar.
    progress: called after every epoch with its row of history.csv; training stops where it returns
      true.

    Raises InputError, naming what is wrong with the recording or a setting, or a setting that is a
    list, since several models are for train.py. Raises KeyboardInterrupt, with `out`, once what was
    trained is saved. Warns if the model failed, which `Fitted.status` says too.
    """
    if not isinstance(seed, Integral):
        raise InputError(f"seed is {seed!r}; give one number, since fit trains one model")
    for name, given in {"data": data, "model": model, "train": train}.items():
        if not isinstance(given, Mapping | None):
            rule = "expected settings by name, as in train={'epochs': 100}"
            raise InputError(f"{name} is {given!r}; {rule}")
    if "path" in (data or {}):
        raise InputError("data.path: give the path itself, fit(path), not a setting of it")
    config.no_lorenz_sizes(data or {})
    own, known = {"path": ARRAY, "seed": seed}, {"bin_width": bin_width, "condition": condition}
    if not isinstance(spikes, str | Path):
        for name in IN_FILES & {name for name, value in (data or {}).items() if value is not None}:
            raise InputError(f"data.{name}: is for files, and spikes are in memory; leave it out")
    else:
        asked, known = _asked_of_file(**known), {}
        if twice := sorted(asked.keys() & dict(data or {}).keys()):
            raise InputError(f"{twice[0]}: is given both as an argument and in data; give one")
        own |= {"path": os.path.abspath(spikes)} | asked
    settings = config.updated(
        recipes.load(recipes.named("tuned" if tune else "recording")),
        bandwidths=(),
        seeds=(seed,),
        tune=tune,
        data=own | dict(data or {}),
        model=dict(model or {}),
        train=dict(train or {}),
    )
    if lists := ", ".join(grid.swept(settings)):
        remedy = "give one number, or use train.py for a grid"
        raise InputError(f"{lists}: fit trains one model; {remedy}")
    devices.cache_compiled()
    if verbose:
        to_terminal()
    read = recording.of(spikes, known, **problem.reading(settings))
    observation = settings.model.distribution
    for note in (*read.notes, *notices.unlikely(read, observation)):
        warnings.warn(note, stacklevel=2)
    if out is not None:
        if not str(out):
            raise InputError("out is empty; name the run folder to write")
        return _fit_on_disk(settings, read, Path(out), resume, verbose, progress)
    if resume:
        raise InputError("resume needs out, the run folder to continue")
    prepared = problem.prepare(settings, read)
    for note in notices.of_settings(prepared):
        warnings.warn(note, stacklevel=2)
    for line in run_train.announcement(prepared) if verbose else ():
        messages.info(line)
    history: list[Row] = []

    def keep(state, log) -> bool | None:
        rows = history_rows(prepared, len(history) // len(prepared.keys), log)
        history.extend(rows)
        bar.set_postfix_str(run_train.progress(prepared.keys, log), refresh=False)
        bar.update()
        return progress and progress(lineage.leading(rows))

    how = {"unit": "epoch", "postfix": "compiling"} | ({} if verbose else {"disable": True})
    with tqdm(total=prepared.train.all_epochs, **how) as bar:
        state = population.fit(prepared, on_epoch=keep)
        run_train.end_early(bar)
    members = {key: grid.settings_of(prepared.settings, key) for key in prepared.keys}
    trained = restore.unstack(state.best, members)
    if tune:
        found = winners.choose(prepared.settings, read, trained)
        chosen = {own: choice.member for own, choice in found.items()}
        trained = restore.winners(trained, history, chosen)
        (together,), (member,) = lineage.populations(history).values(), chosen.values()
        history = lineage.as_of_one(together, member)
    ((key, one),) = trained.items()
    record = provenance.record(read)
    prior = priors.learn(view(prepared.settings, read, key.bandwidth), one.model)
    made = {"history": history, "prior": prior, "_key": key, "_provenance": record}
    return _checked(Fitted(**vars(one), **made))


def _asked_of_file(bin_width: Any, condition: Any) -> dict[str, Any]:
    """Arguments of `fit`, where it reads a file, as settings of the data."""
    if not isinstance(condition, str | None):
        raise InputError("condition: of a file, give the name of the array or column that has them")
    try:
        width = None if bin_width is None else labels.seconds(bin_width)
    except ValueError as error:
        raise InputError(f"bin_width: {error}") from None
    asked = {"bin_width": width, "condition": condition}
    return {name: value for name, value in asked.items() if value is not None}


def _fit_on_disk(
    settings: Settings,
    data: Dataset,
    out: Path,
    resume: bool,
    verbose: bool,
    progress: Callable[[Row], bool | None] | None,
) -> Fitted:
    """`fit` with a run folder."""
    remedy = "resume=True continues it; otherwise give another folder"
    RunFolder(out).check(settings, resume=resume, remedy=remedy)
    how = {"resume": resume, "data": data, "verbose": verbose, "on_epoch": progress}
    with signals.noted() as stop:
        outcome = run_train.train(settings, out, stop=stop, **how)
    if outcome.stopped:
        again = f"fit(..., out={str(out)!r}, resume=True) continues"
        raise KeyboardInterrupt(f"stopped, and saved in {out}; {again}")
    (key, one), folder = next(iter(restore.restore(out).items())), RunFolder(out)
    prior = priors.learn(view(one.settings, data, key.bandwidth), one.model)
    if prior is not None:
        folder.write_prior(prior)
    return load(out)


def _checked(fitted: Fitted) -> Fitted:
    if fitted.status == "failed":
        warnings.warn(
            f"the model failed: its numbers did not stay finite, and its weights are those of "
            f"epoch {fitted.epoch} (-1: initial); a smaller train.learning_rate or train.clip_norm "
            "may help",
            stacklevel=3,
        )
    return fitted


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
    if unknown := given.keys() - next(iter(trained)).columns.keys():
        differ = ", ".join(next(iter(trained)).columns)
        raise InputError(f"{run}: models do not differ in {min(unknown)}, but in {differ}")
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
    own_model = one.settings.model
    needs = own_model.posterior, own_model.stacked, own_model.latent_size, own_model.rank
    if prior is None and any(needs):
        prior = _learned_again(run, one, key.bandwidth, record)
    made = {"history": own, "prior": prior, "_key": alone, "_provenance": record}
    return _checked(Fitted(**vars(one), **made))


def _learned_again(
    run: str | Path, one: Trained, bandwidth: int, record: provenance.Record
) -> Prior | None:
    """What inference needs of the training trials, from the recording that `one` was trained on.

    Raises InputError if that is not where or what it was, and the model has no rates of its own.
    """
    try:
        data = provenance.trained_on(one.settings, record)
    except InputError as error:
        if one.model.posterior:
            raise
        alone = "the network's rates alone, not stacked" if one.model.stacked else "no factors"
        warnings.warn(f"{run}: {alone}, since {error}", stacklevel=3)
        return None
    return priors.learn(view(one.settings, data, bandwidth), one.model)
