"""Figures of a recording and of what one model makes of it, for the report page."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sbtt_jax.data import labels
from sbtt_jax.data.dataset import Dataset, Mask
from sbtt_jax.model.low_rank import Scale
from sbtt_jax.observations import Observation
from sbtt_jax.run import baselines
from sbtt_jax.run.files import Row
from sbtt_jax.run.plots import BLUE, GREY, PALETTE, axis_label, label_neurons
from sbtt_jax.run.scores import ENDS, JUDGED, Rates

PANELS_IN_ROW = 4
NEURONS_IN_FIGURE = 6
TRIALS_IN_FIGURE = 40
SMOOTHED = 2.0  # bins: standard deviation of the kernel of a PSTH

Shown = tuple[float, str]
Conditions = Int[np.ndarray, " trial"]
PerBin = Float[np.ndarray, "trial bin number"]


def holes(data: Dataset, observed: Mask, shown: Shown) -> Figure:
    """The recording and its holes: the share of trials in which a point was observed, and each
    neuron's mean rate over its observed points. shown: as of `Observation.shown`."""
    inside = np.maximum(data.inside.sum(0), 1)
    seen = (observed & data.inside).sum(0) / inside  # bin neuron
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    extent = (0, seen.shape[0] * data.bin_width, data.neurons - 0.5, -0.5)
    how = {"cmap": "Greys", "vmin": 0, "vmax": 100, "interpolation": "nearest"}
    image = left.imshow(100 * seen.T, aspect="auto", extent=extent, **how)
    left.set(xlabel="Time (s)", ylabel="Neuron", title="Observed")
    figure.colorbar(image, ax=left, label="Trials in which a point is observed (%)")
    counts = data.counts.sum((0, 1), where=observed, dtype=np.float64)
    rates = counts / np.maximum(observed.sum((0, 1)), 1) * shown[0]
    right.barh(np.arange(data.neurons), rates, height=1.0, color=GREY)
    title = "Means" if shown[1] == "1" else "Rates"
    right.set(xlabel=f"Mean {axis_label(shown[1]).lower()}", title=title)
    for axes in (left, right):
        label_neurons(axes, labels.ids(data.unit_ids))
    right.spines[["top", "right"]].set_visible(False)
    return figure


def quality(models: Sequence[Row], simple: Sequence[Row], observation: Observation) -> Figure:
    """Bits per spike at held-out points, of models and baselines, with 95% intervals; one panel per
    bandwidth. models, simple: rows of metrics.csv and of baselines.csv."""
    bandwidths = list(dict.fromkeys(row["bandwidth"] for row in models))
    lines = -(-len(bandwidths) // PANELS_IN_ROW)
    names = list(dict.fromkeys(row["baseline"].replace("_", " ") for row in simple))
    across = min(len(bandwidths), PANELS_IN_ROW)
    height = 0.9 + 0.27 * (len(names) + 1)
    figure = Figure(figsize=(1.6 + 3.1 * across, height * lines), layout="constrained")
    panels = figure.subplots(lines, across, squeeze=False, sharey=True)
    label = f"Bits/{observation.words.per} at held-out points"
    for axes in panels.ravel()[len(bandwidths) :]:
        axes.set_visible(False)
    for axes, bandwidth in zip(panels.ravel(), bandwidths, strict=False):
        own = [row for row in models if row["bandwidth"] == bandwidth]
        others = [row for row in simple if row["bandwidth"] == bandwidth]
        places = np.linspace(-0.25, 0.25, len(own)) if len(own) > 1 else [0.0]
        points = [(place, row, BLUE) for place, row in zip(places, own, strict=True)]
        places = (names.index(row["baseline"].replace("_", " ")) + 1 for row in others)
        points += [(place, row, GREY) for place, row in zip(places, others, strict=True)]
        for place, row, color in points:
            axes.plot([row[end] for end in ENDS], [place, place], "-", color=color, lw=1.5)
            axes.plot(row[JUDGED], place, "o", color=color, ms=6 if color == BLUE else 4)
        axes.set_yticks(range(len(names) + 1), ["this model", *names])
        axes.set(title=f"{bandwidth} neurons per bin", xlabel=label)
        axes.set_ylim(len(names) + 0.6, -0.6)
        axes.axvline(0, color=GREY, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    what = "lines: 95% intervals; 0: each neuron's mean at these points"
    figure.supxlabel(what, fontsize="small")
    return figure


def psth(data: Dataset, observed: Mask, rates: Rates, shown: Shown) -> Figure:
    """Means over the trials of each condition: of observed counts, smoothed (dashed), and of
    inferred rates (solid), of the neurons with the largest sums. rates: expected counts per bin.
    shown: as of `Observation.shown`."""
    condition, shades = _conditions(data.condition, len(data.counts))
    sums = data.counts.sum((0, 1), where=observed, dtype=np.float64)
    neurons = np.sort(np.argsort(-sums)[:NEURONS_IN_FIGURE])
    names = labels.ids(data.unit_ids[neurons])
    figure, panels = _panels(len(neurons), sharey=False)
    time = (np.arange(data.counts.shape[1]) + 0.5) * data.bin_width
    own = data.counts[..., neurons], observed[..., neurons]
    none = np.zeros(len(neurons))
    average = baselines.psth(baselines.Training(*own, condition, Scale(none, none, none), none[:0]))
    with np.errstate(invalid="ignore"):  # no trial has a bin near: a gap in the line
        at = baselines.everywhere((len(shades), *own[0].shape[1:]))  # condition bin neuron
        recorded = average(SMOOTHED)(*own, np.array(list(shades)), at)(0.0)
    for place, (axes, neuron) in enumerate(zip(panels, neurons, strict=False)):
        for (value, color), line in zip(shades.items(), recorded[..., place], strict=True):
            axes.plot(time, line * shown[0], "--", color=color, lw=1)
            inferred = _mean(rates[condition == value][..., neuron])
            axes.plot(time, inferred * shown[0], "-", color=color, lw=1.6)
        axes.set(title=f"Neuron {names[place]}", xlabel="Time (s)")
        if axes.get_ylim()[1] > 0 and data.counts.min(where=observed, initial=0) >= 0:
            axes.set_ylim(bottom=0)
    panels[0].set_ylabel(axis_label(shown[1]))
    _legend(figure, shades, data.condition_values)
    return figure


def latents(data: Dataset, latent: PerBin) -> Figure:
    """Latents in their first three principal directions, single trials and means over conditions:
    in space, and in time."""
    condition, shades = _conditions(data.condition, len(data.counts))
    inside = np.isfinite(latent).all(2)
    center = latent[inside].mean(0)
    directions = np.linalg.svd(latent[inside] - center, full_matrices=False)[2][:3]
    pad = ((0, 0), (0, 0), (0, 3 - len(directions)))  # a model may have fewer
    projected = np.pad((latent - center) @ directions.T, pad)
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    space = figure.add_subplot(1, 2, 1, projection="3d")
    step = max(1, len(data.judged) // TRIALS_IN_FIGURE)
    for trial in data.judged[::step]:
        color = shades.get(condition[trial], GREY)
        space.plot(*projected[trial].T, color=color, lw=0.5, alpha=0.4)
    time = (np.arange(latent.shape[1]) + 0.5) * data.bin_width
    panels = [figure.add_subplot(3, 2, 2 * (place + 1)) for place in range(3)]
    for value, color in shades.items():
        mean = _mean(projected[condition == value])
        space.plot(*mean.T, color=color, lw=2)
        for place, axes in enumerate(panels):
            axes.plot(time, mean[:, place], color=color, lw=1.5)
    for place, axes in enumerate(panels):
        axes.set_ylabel(f"PC {place + 1}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("Time (s)")
    space.set(xlabel="PC 1", ylabel="PC 2", zlabel="PC 3")
    space.set_box_aspect(None, zoom=0.85)  # or its last label is cut off
    space.tick_params(labelsize=7)
    _legend(figure, shades, data.condition_values)
    return figure


def inputs(data: Dataset, inferred: PerBin) -> Figure:
    """Inferred inputs: the mean over the trials of each condition."""
    condition, shades = _conditions(data.condition, len(data.counts))
    figure, panels = _panels(inferred.shape[2], sharey=True)
    time = (np.arange(inferred.shape[1]) + 0.5) * data.bin_width
    for number, axes in enumerate(panels[: inferred.shape[2]]):
        for value, color in shades.items():
            own = inferred[condition == value][..., number]
            axes.plot(time, _mean(own), color=color, lw=1.5)
        axes.axhline(0, color=GREY, lw=0.6)
        axes.set(title=f"Input {number}", xlabel="Time (s)")
    _legend(figure, shades, data.condition_values)
    return figure


def _panels(count: int, *, sharey: bool) -> tuple[Figure, np.ndarray]:
    across = min(count, 3)
    down = -(-count // across)
    figure = Figure(figsize=(3.6 * across, 2.3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=sharey).ravel()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _conditions(condition: Conditions | None, trials: int) -> tuple[Conditions, dict[int, object]]:
    """Each trial's condition, and colors of the most frequent ones; one color if there are none."""
    if condition is None:
        return np.zeros(trials, int), {0: BLUE}
    values, counts = np.unique(condition[condition >= 0], return_counts=True)
    kept = np.sort(values[np.argsort(-counts, kind="stable")[: len(PALETTE)]]).tolist()
    return condition, dict(zip(kept, PALETTE, strict=False))


def _legend(figure: Figure, shades: dict[int, object], names: np.ndarray) -> None:
    if len(shades) > 1:
        lines = [
            Line2D([], [], color=color, label=str(names[value])) for value, color in shades.items()
        ]
        how = {"title": "Condition", "loc": "outside right center", "frameon": False}
        figure.legend(handles=lines, **how)


def _mean(values: Float[np.ndarray, "trial bin ..."]) -> Float[np.ndarray, "bin ..."]:
    """Over the trials that have not ended; NaN where all have."""
    return np.ma.masked_invalid(values).mean(0).filled(np.nan)
