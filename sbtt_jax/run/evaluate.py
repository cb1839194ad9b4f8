"""Evaluation of a run: infer every trial with every model, score, write tables and figures."""

import contextlib
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from sbtt_jax import config
from sbtt_jax.config import Settings
from sbtt_jax.data import labels, problem
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model import intervals, metrics
from sbtt_jax.model.inference import Prior, infer_all, infer_with_variance
from sbtt_jax.observations import Observation
from sbtt_jax.output import messages
from sbtt_jax.run import (
    baselines,
    exports,
    ideal,
    notices,
    plots,
    priors,
    provenance,
    rates_file,
    recording_plots,
    report,
    restore,
)
from sbtt_jax.run.files import Row, atomic_write, check_writable, hdf5, write_csv
from sbtt_jax.run.folder import EVALUATED, RunFolder
from sbtt_jax.run.priors import Learner
from sbtt_jax.run.published import is_published_set
from sbtt_jax.run.restore import Trained
from sbtt_jax.run.scores import (
    COVERAGE,
    ENDS,
    HEADINGS,
    JUDGED,
    UNTUNED,
    WEIGHTS,
    View,
    cell_text,
    heading,
    view,
)

TRIALS_IN_FIGURE = 4
TRIALS_IN_SPACE = 8
FEW_TRIALS = 5  # to judge by


class Evaluation(NamedTuple):
    """The rows of metrics.csv, one per model, and of ensemble.csv, one for the mean of the rates
    that models infer which differ in seed only; and of baselines.csv, for the same scores of simple
    estimates under the same masks.

    Columns that say which model come first, then those of `View.score`. `status` is "failed" for a
    model that training gave up: its scores are those of its best epoch before (-1: of its initial
    weights), and it is in no ensemble.
    """

    models: list[Row]
    ensembles: list[Row]
    baselines: list[Row]
    out: Path  # the folder that was written
    observation: Observation
    figures: list[Path]


# Threads of BLAS spin while they wait, on cores that JAX could use.
@threadpool_limits.wrap(limits=1, user_api="blas")
def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    out: str | Path | None = None,
    checkpoint: int | None = None,
    full: bool = False,
    export: str | None = None,
) -> Evaluation:
    """Restore every model of a run, infer all trials, and write tables, rates and figures.

    data: another recording than the run was trained on, of which all trials are reported on; or
      the same in another place.
    out: another folder than RUN/evaluation; for another recording, RUN/evaluation_NAME. Figures in
      it that an evaluation of another run made are removed.
    checkpoint: epochs of another checkpoint than the newest.
    full: write latents, and the mean rates of seeds with their intervals, to rates.h5 too.
    export: a format of `exports.EXPORTS` to write too.

    Raises InputError, with nothing written, if `run` holds no run, the recording does not fit it,
    or RUN/evaluation_NAME has results of another recording of that name; SaveError if a file cannot
    be written.
    """
    folder = RunFolder(run)
    settings = begun = folder.settings()
    if data is not None:
        settings = config.updated(settings, data={"path": data})
    path = settings.data.path
    if export is not None and path is None:
        raise InputError("a Lorenz set has no recording to export to")
    if data is None and path is not None and not Path(path).exists():
        reason = f"no such file, and {run} was trained on it"
        raise InputError(f"{path}: {reason}; say where it is now with --data FILE")
    observation, record = settings.model.distribution, folder.provenance()
    recording = _recording(run, settings, record, data)
    trained, untuned = restore.members(run, checkpoint), {}
    if settings.tune:
        untuned = restore.untuned(trained)
        chosen = folder.read_winners() if checkpoint is None else {}
        trained = restore.winners(trained, folder.read_history(), chosen)
    if (neurons := next(iter(trained.values())).neurons) != recording.neurons:
        other = f"{path or 'the data set'} has {recording.neurons}"
        raise InputError(f"{run}: was trained on {neurons} neurons; {other}")
    prior = folder.read_prior() if checkpoint is None else None  # it is the newest model's
    trained_on = recording
    needed = settings.model.posterior and prior is None
    alone = ""
    if prior is None and settings.model.stacked:
        alone = "; rates are the network's alone"
    elif prior is None and settings.model.latent_size:
        alone = "; latents are as the model has them"
    if differing := provenance.differing_data(record, provenance.fingerprint(recording)):
        if data is None:
            changed = "its data are no longer those that it was trained on"
            messages.warning(f"{run}: {changed}")
            if differing == "counts" and path is not None:
                if needed:
                    raise InputError(f"{run}: {changed}, from which its posterior is learned")
                messages.warning(f"{run}: no baselines, which would learn from those{alone}")
                trained_on = None
        elif differing == "counts":
            out = _own_folder(folder, data) if out is None else out
            trained_on = _trained_on(begun, record, alone, needed=needed)
            same = 0 if trained_on is None else provenance.shared_trials(recording, trained_on)
            if same:
                known = f"{same} of {len(recording.counts)} trials"
                which = "are training trials of this run; scores are of them too"
                messages.warning(f"{data}: {known} {which}")
    elif not len(recording.valid):
        recording = recording.all_judged()
    if data is not None:
        for note in notices.of_other(recording, observation, record):
            messages.warning(f"{data}: {note}")
    if export is not None:
        exports.check(export, Path(path), recording, observation)
    failed = folder.failed()
    out = folder.evaluation if out is None else Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder for the results")
    check_writable(out)
    if recording.rates is None and len(recording.judged) < FEW_TRIALS:
        what = "trials" if recording.session is None else "windows"
        few = f"scores are of {len(recording.judged)} of {len(recording.counts)} {what}"
        messages.warning(f"{few}, too few to tell whether a model is good")

    found, sections = Evaluation([], [], [], out, observation, []), []
    exported = None
    if export is not None:

        def exported(model: Row, *inferred: Any) -> None:
            what = exports.Exported(Path(path), recording, model, *inferred)
            exports.write(export, what, out, alone=len(trained) == 1)

    with (
        atomic_write(out / "rates.h5") as part,
        hdf5(part, "w") as file,
        tqdm(total=len(trained), unit="model", desc="evaluating") as bar,
        contextlib.ExitStack() as at_end,
    ):
        beside = ThreadPoolExecutor(1)  # for what takes NumPy alone
        at_end.callback(beside.shutdown, cancel_futures=True)
        observers, simple = beside.submit(ideal.observers, settings, recording), {}
        rates_file.write_recording(file, recording, path)
        for bandwidth, here in groupby(trained, lambda key: key.bandwidth):
            of_data = view(settings, recording, bandwidth)
            of_training = None
            if trained_on is not None and trained_on is not recording:
                of_training = view(begun, trained_on, bandwidth)
            learner = None
            if trained_on is not None:
                chosen = baselines.Chosen(of_training or of_data)
                learner = priors.learner(chosen.view, chosen)
                simple[bandwidth] = beside.submit(baselines.score_baselines, of_data, chosen)
            figure: Path | None = out / f"rates_bandwidth_{bandwidth:02d}.png"
            for _, keys in groupby(here, lambda key: key.sweep):
                seeds = {key: trained[key] for key in keys}
                section = _evaluate_seeds(
                    of_data, seeds, untuned, learner, failed, file, found, exported,
                    known=prior, figure=figure, full=full,
                )  # fmt: skip
                sections += [section] if section else []
                figure = None  # one per bandwidth
                bar.update(len(seeds))
        known = observers.result()
        for bandwidth, rows in simple.items():
            found.baselines.extend({"bandwidth": bandwidth, **row} for row in rows.result())
    write_csv(out / "metrics.csv", found.models)
    tables = {"ensemble": found.ensembles, "baselines": found.baselines, "ideal_observers": known}
    for name, rows in tables.items():
        (out / f"{name}.csv").unlink(missing_ok=True)
        if rows:
            write_csv(out / f"{name}.csv", rows)
    bits, r2 = out / "bits_per_spike.png", out / "r2_vs_missing.png"
    if judged := [row for row in found.models if np.isfinite(row[JUDGED])]:
        plots.save(recording_plots.quality(judged, found.baselines, observation), bits)
        found.figures.append(bits)
    if recording.rates is not None:
        how = {"ensembles": found.ensembles, "published": is_published_set(settings)}
        how["ideal"] = known
        how["baselines"] = notices.best_baselines(found.baselines)
        plots.save(plots.r2_vs_missing(found.models, **how), r2)
        found.figures.append(r2)
    drawn = (file for name in EVALUATED if name.endswith(".png") for file in out.glob(name))
    for old in set(drawn) - set(found.figures):
        old.unlink()
    tables, history = (found.models, found.baselines), folder.history_of(trained)
    figures = folder.history_figure, sorted(folder.tuning.glob("*.png"))
    report.write(out / "report.html", of_data, *tables, sections, history, *figures)
    return found


def _own_folder(folder: RunFolder, data: str) -> Path:
    """Where results of another recording go; InputError if there are those of a third there."""
    out = folder.path / f"evaluation_{Path(data).stem}"
    there = rates_file.source(out / "rates.h5")
    if there is not None and Path(there).exists() and not Path(there).samefile(data):
        raise InputError(f"{out}: has the results of {there}; name another folder with --out")
    return out


def _recording(
    run: str | Path, settings: Settings, record: provenance.Record, data: str | None
) -> Dataset:
    """What is to be evaluated, neurons as the model has them, with warnings of what was taken for
    what. data: as of `evaluate`. Raises InputError if it cannot be read or is of other neurons."""
    path, given = settings.data.path, None

    def read(dropped: Sequence[int], learn: bool = True) -> Dataset:
        nonlocal given
        own = config.updated(settings, data={"drop_neurons": dropped})
        given = problem.read(own, learn=learn)
        return given

    try:
        if data is None:
            found = provenance.read_in_order(read, settings.data.drop_neurons, record, str(path))
        else:
            found = provenance.read_judged(read, settings.data, record, str(path))
    except InputError as error:
        by = "" if data is None else f" (it is read by the settings of {run})"
        raise InputError(f"{error}{by}") from None
    there = found.neuron_numbers[found.neuron_numbers >= 0]
    if given.unit_id is not None and (np.diff(there) < 0).any():
        what = "neurons are put in the order that the model was trained on, by unit_id"
        messages.warning(f"{path}: {what}")
    if data is None:  # of another recording, all notes are told
        for note in found.notes[len(given.notes) :]:
            messages.warning(f"{path}: {note}")
    elif given.unit_id is None and "unit_id" in record:
        taken = "neurons are taken in the order that the model was trained on"
        messages.warning(f"{data}: has no unit_id; {taken}")
    return found


def _trained_on(
    begun: Settings, record: provenance.Record, besides: str, *, needed: bool
) -> Dataset | None:
    """The data that a run was trained on, if they are still there; otherwise a warning says what is
    left out, and what is so `besides`.

    Raises InputError if they are not and `needed`.
    """
    try:
        return provenance.trained_on(begun, record)
    except InputError as error:
        if needed:
            raise
        path = begun.data.path
        reason = error if path is None or Path(path).exists() else f"{path}, which is not here"
        learned = "no baselines, which would learn from what the run was trained on"
        messages.warning(f"{learned}: {reason}{besides}")
        return None


def _evaluate_seeds(
    of_data: View,
    trained: Mapping[ModelKey, Trained],
    untuned: Mapping[ModelKey, Trained],
    learner: Learner | None,
    failed: Set[ModelKey],
    file: h5py.File,
    found: Evaluation,
    exported: Callable[..., None] | None,
    *,
    known: Prior | None,
    figure: Path | None,
    full: bool,
) -> report.Section | None:
    """Add the scores of models that differ in seed only, and of the mean of their rates, to
    `found`, beside those of the `untuned` ones where settings were tuned; their rates to `file`,
    rates and latents to `exported`, and a figure of the first to `figure`.

    Returns the part of the report about the first, if there is to be a figure.
    """
    data, total, spread, section = of_data.data, None, None, None
    scale, unit = of_data.unit
    infer = infer_with_variance if len(trained) >= intervals.MODELS else infer_all
    for key, one in trained.items():
        own_prior = learner(one.model) if known is None and learner else known
        first_here = key.bandwidth not in {row["bandwidth"] for row in found.models}
        if first_here and not len(data.train):  # another recording's conditions
            for note in notices.of_conditions(data, own_prior and own_prior.stack):
                messages.warning(note)
        inference, rates, blind = of_data.infer(one.model, own_prior, infer)
        scores = of_data.score(rates[of_data.scored], blind)
        mapped = None
        if data.latents is not None:
            mapped = of_data.mapped_latents(one.model, own_prior)
            scores["latent_r2"] = metrics.r2(data.latents[data.judged], mapped)
        if key in untuned:
            given = untuned[key].model
            blind_given = of_data.blind(given, learner(given) if learner else None)
            by_trial = of_data.heldout_by_trial(blind_given)
            scores[UNTUNED] = metrics.per_spike(*by_trial)
        first = {"missing_fraction": scores.pop("missing_fraction"), "epoch": one.epoch}
        if one.model.stacked or one.model.posterior:
            weights = own_prior.weights if own_prior else [np.nan] * len(WEIGHTS)
            scores |= dict(zip(WEIGHTS, weights, strict=True))
        status = "failed" if key in failed or one.epoch < 0 else "ok"
        found.models.append({**key.columns, **first, **scores, "status": status})
        whole = of_data.infer_session(one.model, own_prior, infer)
        written, out = (inference, rates) if whole is None else (whole, whole.output)
        arrays = {"rates": out[..., : data.neurons] * scale, "initial_states": written.ic}
        arrays |= {} if written.inputs is None else {"inferred_inputs": written.inputs}
        arrays |= {"latents": written.latent} if full else {}
        rates_file.write_model(file, key, data, arrays, unit)
        if exported is not None:
            exported(key.columns, arrays["rates"], written.latent)
        if figure is not None and key == next(iter(trained)):
            plots.save(_rates_figure(of_data, rates, found.models[-1]), figure)
            found.figures.append(figure)
            if mapped is not None:
                path = figure.with_name(f"latents_bandwidth_{key.bandwidth:02d}.png")
                plots.save(_latents_figure(of_data, mapped, found.models[-1]), path)
                found.figures.append(path)
            first = len(found.models) == 1
            section = report.details(of_data, key, inference, rates, figure, whole=first)
        if len(trained) > 1:
            own = rates[of_data.scored], blind
            total = own if total is None else jax.tree.map(np.add, total, own)
            spread = intervals.add(spread, out[..., : data.neurons], written.variance)
    count = len(trained)
    if count == 1 or trained.keys() & failed:
        return section
    mean, blind = jax.tree.map(lambda rates: rates / count, total)
    columns = {name: value for name, value in key.columns.items() if name != "seed"}
    row = {**columns, "models": count, **of_data.score(mean, blind)}
    arrays = {"rates": spread.mean * scale}
    if count >= intervals.MODELS:
        interval = intervals.bounds(spread, is_signed=of_data.observation.is_signed)
        names = "rates", "rates_sd", "rates_low", "rates_high"
        arrays = {name: v * scale for name, v in zip(names, interval, strict=True)}
        if data.rates is not None and data.session is None:
            row[COVERAGE] = _coverage(of_data, interval)
        if figure is not None:
            path = figure.with_name(f"intervals_bandwidth_{key.bandwidth:02d}.png")
            plots.save(_intervals_figure(of_data, interval, count), path)
            found.figures.append(path)
    found.ensembles.append(row)
    if exported is not None:
        ends = (arrays["rates_low"], arrays["rates_high"]) if "rates_low" in arrays else None
        exported(columns | {"ensemble_of": count}, arrays["rates"], None, ends)
    if full:
        rates_file.write_model(file, key, data, arrays, unit, ensemble=True)
    return section


def _coverage(of_data: View, interval: intervals.Interval) -> float:
    """The share of true rates that intervals hold."""
    data = of_data.data
    here = intervals.Interval(*(values[data.judged] for values in interval))
    inside = np.broadcast_to(data.inside[data.judged], here.mean.shape)
    return intervals.coverage(here, data.rates[data.judged], inside)


def _rates_figure(of_data: View, rates: np.ndarray, row: Row) -> Figure:
    data = of_data.data
    rows = np.linspace(0, len(data.judged) - 1, TRIALS_IN_FIGURE).astype(int)
    shown = data.judged[np.unique(rows)]
    return plots.rates(
        data.counts[shown],
        of_data.observed[shown],
        None if data.rates is None else data.rates[shown],
        rates[shown, :, : data.neurons],
        bin_width=data.bin_width,
        observation=of_data.observation,
        trials=data.trial_numbers[shown].tolist(),
        bandwidth=row["bandwidth"],
        names=labels.ids(data.unit_ids),
        r2=None if np.isnan(row["r2"]) else row["r2"],
    )


def _latents_figure(of_data: View, mapped: np.ndarray, row: Row) -> Figure:
    data = of_data.data
    rows = np.unique(np.linspace(0, len(data.judged) - 1, TRIALS_IN_SPACE).astype(int))
    which = plots.observed_in_words(row["bandwidth"], data.neurons)
    return plots.latents(
        mapped[rows],
        data.latents[data.judged][rows],
        title=f"States of {len(rows)} validation trials, {which}, R² {row['latent_r2']:.2f}",
    )


def _intervals_figure(of_data: View, interval: intervals.Interval, models: int) -> Figure:
    data = of_data.data
    trial = data.judged[0]
    if data.session is None:
        at, which = trial, f"Trial {data.trial_numbers[trial]}"
    else:
        start = data.session.trial_starts[trial]
        stop = start + data.inside[trial].sum()
        at = slice(start, stop)
        which = f"Window that starts at {data.times[start]:g} s"
    return plots.intervals(
        data.counts[trial],
        of_data.observed[trial],
        intervals.Interval(*(values[at] for values in interval)),
        None if data.rates is None else data.rates[trial],
        bin_width=data.bin_width,
        observation=of_data.observation,
        names=labels.ids(data.unit_ids),
        title=f"{which}, {models} models that differ in seed, "
        + plots.observed_in_words(of_data.bandwidth, data.neurons),
    )


def table(found: Evaluation) -> str:
    """The scores as text: one line per model, one per mean over seeds, the best baseline of every
    bandwidth, and a line where that predicts held-out points better than the models."""
    observation = found.observation
    lines = _lines(found.models, observation)
    if found.ensembles:
        lines += ["", "Mean of the rates that all seeds infer:"]
        lines += _lines(found.ensembles, observation)
    if found.baselines:
        lines += ["", "Best without a model, at the same points (all are in baselines.csv):"]
        lines += _lines(notices.best_baselines(found.baselines), observation)
    lines += notices.of_weights(found.models)
    lines += notices.better_baselines(found.models, found.baselines, observation)
    return "\n".join([*lines, *notices.no_gain(found.models, observation)])


def _lines(rows: Sequence[Row], observation: Observation) -> list[str]:
    # What says which model comes first, the share missing after it.
    names = sorted(rows[0], key=lambda name: list(HEADINGS).index(name) if name in HEADINGS else -1)
    if all(row.get("status", "ok") == "ok" for row in rows):
        names = [name for name in names if name != "status"]
    columns = []
    for name in (name for name in names if name not in {*ENDS, *WEIGHTS}):
        cells = [heading(name, observation), *(cell_text(row, name) for row in rows)]
        columns.append([cell.rjust(max(map(len, cells))) for cell in cells])
    return ["  ".join(line) for line in zip(*columns, strict=True)]
