"""Evaluation of a run: infer every trial with every model, score, write tables and figures."""

import sys
from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from sbtt_jax import config
from sbtt_jax.config import Settings
from sbtt_jax.data import problem
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.inference import infer_all
from sbtt_jax.run import plots, provenance, rates_file
from sbtt_jax.run.files import Row, atomic_write, write_csv
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.published import is_published_set
from sbtt_jax.run.restore import Trained, restore
from sbtt_jax.run.scores import ceiling, heldout_rates, score

TRIALS_IN_FIGURE = 4


class Evaluation(NamedTuple):
    """The rows of metrics.csv, one per model, and of ensemble.csv, one per group of models that
    differ in seed only, for the mean of the rates they infer. Columns are those of
    `scores.score`, after those that say which model; `status` is "failed" for a model that training
    gave up, whose scores are those of its best epoch before (-1: of its initial weights)."""

    models: list[Row]
    ensembles: list[Row]


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    out: str | Path | None = None,
    checkpoint: int | None = None,
    full: bool = False,
) -> Evaluation:
    """Restore every model of a run, infer all trials, and write tables, rates and figures.

    data: another recording than the run was trained on.
    out: another folder than RUN/evaluation.
    checkpoint: epochs of another checkpoint than the newest.
    full: write latents and the mean rates of seeds to rates.h5 too.

    Raises InputError if `run` holds no run, or the recording does not fit it. Nothing is written
    then.
    """
    folder = RunFolder(run)
    settings = folder.settings()
    recorded = settings.data.path
    if data is not None:
        settings = config.updated(settings, data={"path": data})
    elif recorded is not None and not Path(recorded).is_file():
        raise InputError(
            f"{recorded}: no such file, and {run} was trained on it; say where it is now with "
            "--data FILE"
        )
    recording = problem.load(settings)
    trained = restore(run, checkpoint=checkpoint)
    if (neurons := next(iter(trained.values())).neurons) != recording.neurons:
        raise InputError(
            f"{run}: was trained on {neurons} neurons; {settings.data.path or 'the data set'} has "
            f"{recording.neurons}"
        )
    if data is None and provenance.differing_data(
        folder.provenance(), provenance.fingerprint(recording)
    ):
        print(f"{run}: its data are no longer those that it was trained on", file=sys.stderr)
    failed = folder.failed()
    out = folder.evaluation if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)

    found = Evaluation([], [])
    with (
        atomic_write(out / "rates.h5") as part,
        h5py.File(part, "w") as file,
        tqdm(total=len(trained), unit="model", desc="evaluating") as bar,
    ):
        rates_file.write_trials(file, recording)
        for bandwidth, here in groupby(trained, lambda key: key.bandwidth):
            observed = problem.observed_at(settings, recording, bandwidth)
            heldout = None
            if settings.data.holdout_fraction:
                heldout = problem.heldout_at(settings, recording, bandwidth, observed)
            view = _View(settings, recording, observed, heldout)
            for i, (_, keys) in enumerate(groupby(here, lambda key: key.sweep)):
                seeds = {key: trained[key] for key in keys}
                figure = None if i else out / f"rates_bandwidth_{bandwidth:02d}.png"
                _evaluate_seeds(view, seeds, failed, file, found, bar, figure=figure, full=full)
    _write_tables(settings, recording, out, found)
    return found


class _View(NamedTuple):
    """What the models of one bandwidth see of the data."""

    settings: Settings
    data: Dataset
    observed: np.ndarray  # trial bin neuron
    heldout: np.ndarray | None  # valid_trial bin neuron


def _evaluate_seeds(
    view: _View,
    trained: Mapping[ModelKey, Trained],
    failed: Set[ModelKey],
    file: h5py.File,
    found: Evaluation,
    bar: tqdm,
    *,
    figure: Path | None,
    full: bool,
) -> None:
    """Add the scores of models that differ in seed only, and of the mean of their rates, to
    `found`; their rates to `file`, and a figure of the first to `figure`."""
    data, several = view.data, len(trained) > 1
    total, total_unseen = 0.0, 0.0
    for key, one in trained.items():
        model = one.model
        inference = infer_all(model, data.counts, view.observed, data.lengths)
        rates, unseen = model.observation.mean(inference.output), None
        if view.heldout is not None:
            unseen = heldout_rates(data, model, view.observed, view.heldout)
        scores = score(view.settings, data, view.observed, rates, unseen, view.heldout)
        status = "failed" if key in failed else "ok"
        missing = scores.pop("missing_fraction")
        first = {**key.columns, "missing_fraction": missing, "epoch": one.epoch}
        found.models.append({**first, **scores, "status": status})
        arrays = {"rates": rates / data.bin_width, "initial_states": inference.ic}
        rates_file.write_model(file, key, arrays | ({"latents": inference.latent} if full else {}))
        if figure is not None and key == next(iter(trained)):
            plots.save(_rates_figure(view, rates, found.models[-1]), figure)
        if several:
            total = total + rates
            total_unseen = None if unseen is None else total_unseen + unseen
        bar.update()
    if not several or trained.keys() & failed:
        return
    mean, unseen = total / len(trained), None
    if view.heldout is not None:
        unseen = total_unseen / len(trained)
    columns = {name: value for name, value in key.columns.items() if name != "seed"}
    scores = score(view.settings, data, view.observed, mean, unseen, view.heldout)
    found.ensembles.append({**columns, "models": len(trained), **scores})
    if full:
        rates_file.write_model(file, key, {"rates": mean / data.bin_width}, ensemble=True)


def _rates_figure(view: _View, rates: np.ndarray, row: Row) -> Figure:
    data = view.data
    rows = np.linspace(0, len(data.valid) - 1, TRIALS_IN_FIGURE).astype(int)
    shown = data.valid[np.unique(rows)]
    return plots.rates(
        data.counts[shown],
        view.observed[shown],
        None if data.rates is None else data.rates[shown],
        rates[shown],
        bin_width=data.bin_width,
        trials=data.trial_numbers[shown].tolist(),
        bandwidth=row["bandwidth"],
        r2=None if np.isnan(row["r2"]) else row["r2"],
    )


def _write_tables(settings: Settings, data: Dataset, out: Path, found: Evaluation) -> None:
    write_csv(out / "metrics.csv", found.models)
    (out / "ensemble.csv").unlink(missing_ok=True)
    if found.ensembles:
        write_csv(out / "ensemble.csv", found.ensembles)
    if data.rates is not None:
        figure = plots.r2_vs_missing(
            found.models,
            ensembles=found.ensembles,
            published=is_published_set(settings),
            ceiling=ceiling(settings, data) if settings.data.path is None else None,
        )
        plots.save(figure, out / "r2_vs_missing.png")


HEADINGS = {
    "missing_fraction": ("missing", ".1%"),
    "nll": ("NLL", ".4f"),
    "r2": ("R2", ".3f"),
    "r2_observed": ("R2 observed", ".3f"),
    "r2_missing": ("R2 missing", ".3f"),
    "bits_per_spike": ("bits/spike", ".3f"),
    "bits_per_spike_missing": ("bits/spike missing", ".3f"),
    "bits_per_spike_heldout": ("bits/spike held out", ".3f"),
}


def table(found: Evaluation) -> str:
    """The scores as text: one line per model, then one per mean over seeds."""
    lines = _lines(found.models)
    if found.ensembles:
        lines += ["", "Mean of the rates that all seeds infer:", *_lines(found.ensembles)]
    return "\n".join(lines)


def _lines(rows: Sequence[Row]) -> list[str]:
    # What says which model comes first, the share missing after it.
    names = sorted(rows[0], key=lambda name: list(HEADINGS).index(name) if name in HEADINGS else -1)
    if all(row.get("status", "ok") == "ok" for row in rows):
        names = [name for name in names if name != "status"]

    def cell(name: str, value: Any) -> str:
        if name not in HEADINGS:
            return str(value)
        return "-" if np.isnan(value) else format(value, HEADINGS[name][1])

    cells = [[HEADINGS[name][0] if name in HEADINGS else name for name in names]]
    cells += [[cell(name, row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
