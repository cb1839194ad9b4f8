"""evaluation/report.html: what a lab would want to see of a run, on one page to pass around."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sbtt_jax.data.problem import Problem
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.autoencoder import Inference
from sbtt_jax.observations import Observation
from sbtt_jax.run import notices, page, recording_plots
from sbtt_jax.run.files import Row
from sbtt_jax.run.notices import split_in_words
from sbtt_jax.run.page import Picture, Section, picture
from sbtt_jax.run.scores import JUDGED, UNTUNED, Rates, View, cell_text, heading

SCORES = (  # of the table
    "missing_fraction",
    JUDGED,
    UNTUNED,
    "bits_per_spike_missing",
    "bits_per_spike",
    "r2",
    "co_bps",
    "fp_bps",
)


def details(
    view: View, key: ModelKey, inference: Inference, rates: Rates, figure: Path, *, whole: bool
) -> Section:
    """What one model infers. figure: written already, counts beside rates. rates: expected counts
    per bin. whole: with all that there is to see, not the figure alone."""
    title, data, words = str(key).capitalize(), view.data, view.observation.words
    judged = "validation" if data.test is None else "test"
    what = (
        f"{words.values.capitalize()}, where observed, and inferred {words.means} of a few "
        f"{judged} trials."
    )
    pictures = [Picture(figure.read_bytes(), what)]
    if not whole:
        return Section(title, pictures)
    over = "trials" if data.condition is None else "the trials of each condition"
    drawn = [
        (
            recording_plots.holes(data, view.observed, view.unit),
            "What this model had of the recording: in how many trials each neuron was observed in "
            "each bin, and the mean over what was observed.",
        ),
        (
            recording_plots.psth(data, view.observed, rates[..., : data.neurons], view.unit),
            f"The neurons with the largest sums, averaged over {over}: observed {words.values}, "
            f"smoothed with a Gaussian of two bins (dashed), and inferred {words.means} (solid).",
        ),
        (
            recording_plots.latents(data, inference.latent),
            f"Latents in their first three principal directions: single {judged} trials (thin) "
            f"and means over {over}.",
        ),
    ]
    if inference.inputs is not None:
        of_inputs = recording_plots.inputs(data, inference.inputs)
        text = f"Inputs to the dynamics that were inferred for each bin, means over {over}."
        drawn.append((of_inputs, text))
    return Section(title, [*pictures, *(picture(*one) for one in drawn)])


def write(
    path: Path,
    view: View,
    models: Sequence[Row],
    baselines: Sequence[Row],
    sections: Sequence[Section],
    history: Mapping[ModelKey, Sequence[Row]],
    history_figure: Path,
    searches: Sequence[Path],
) -> None:
    """Write the page. view: of any bandwidth. sections: `details` of some models. searches: figures
    of how settings were tuned."""
    data, settings, observation = view.data, view.settings, view.observation
    words = observation.words
    title = Path(settings.data.path).name if settings.data.path else "Lorenz set"
    judged = [row for row in models if np.isfinite(row[JUDGED])]
    parts = [Section("The recording", lines=_recording(view))]
    if judged:
        text = (
            f"How well {words.values} are predicted that were held out, in bits per {words.per} "
            "more than each neuron's mean over those points, with 95% intervals of a bootstrap "
            "over trials. 0 is that mean, which nothing that is inferred has seen."
        )
        figure = recording_plots.quality(judged, baselines, observation)
        chart = picture(figure, "Further right is better.")
        lines = [text, *(f"{line[0].upper()}{line[1:]}." for line in notices.of_weights(models))]
        parts.append(Section("Quality", [chart], lines, _table(models, baselines, observation)))
    parts += sections
    if history_figure.is_file():
        what = "Losses after each epoch; dots mark the epochs that were kept."
        curves = Picture(history_figure.read_bytes(), what)
        parts.append(Section("Training", [curves]))
    if searches:
        text = (
            "Loss and settings of all models that were trained side by side. The worst took over "
            "from the best, with settings near theirs; the one with the best epoch is the result."
        )
        drawn = [Picture(path.read_bytes(), path.stem.replace("_", " ")) for path in searches]
        parts.append(Section("Tuning", drawn, [text]))
    steps = settings.train.steps_per_epoch
    if len(data.train):  # it is what was trained on
        steps = Problem(settings, data, ()).steps
    notes = [
        *data.notes,
        *notices.unlikely(data, observation),
        *notices.silent(data, observation),
        *notices.better_baselines(models, baselines, observation),
        *notices.no_gain(models, observation),
        *notices.of_training(history, steps),
    ]
    what = "Firing rates" if observation.is_count else words.means.capitalize()
    page.write(path, f"{what} of {title}", notes, parts)


def _recording(view: View) -> list[str]:
    data, (scale, unit) = view.data, view.unit
    trials, bins, neurons = data.counts.shape
    known = data.observed.sum() / max(1, data.inside.sum() * neurons)
    total = data.counts.sum(where=data.observed, dtype=np.float64)
    rate = total / max(1, data.observed.sum()) * scale
    mean = f"{rate:.3g} {unit} on average" if unit != "1" else f"a mean of {rate:.3g}"
    conditions = "" if data.condition is None else f", {len(data.condition_values)} conditions"
    return [
        f"{trials} trials x {bins} bins of {1000 * data.bin_width:g} ms x {neurons} neurons"
        f"{conditions}; {split_in_words(data)}.",
        f"{known:.1%} of all points were recorded, with {mean}.",
    ]


def _table(models: Sequence[Row], baselines: Sequence[Row], observation: Observation) -> list[Row]:
    rows, every = [], [*models, *baselines]
    known = [
        name for name in SCORES if any(row.get(name, np.nan) == row.get(name) for row in every)
    ]
    for row in sorted(every, key=lambda row: -row["bandwidth"]):
        if "baseline" in row:
            name = row["baseline"].replace("_", " ")
        else:  # of models of one bandwidth and seed, the settings that differ tell which it is
            _, *own = (f"{what} {value}" for what, value in ModelKey.of(row).columns.items())
            name = ", ".join(["model", *own])
        cells = {"": name, "neurons per bin": row["bandwidth"]}
        cells |= {heading(column, observation): cell_text(row, column) for column in known}
        rows.append(cells)
    return rows
