"""Every figure: arrays in, a Matplotlib figure out, which `save` writes."""

import io
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

from sbtt_jax.grid import ModelKey, short, sweep_of
from sbtt_jax.model.intervals import Interval
from sbtt_jax.observations import POISSON, Observation
from sbtt_jax.run import lineage
from sbtt_jax.run import published as literature
from sbtt_jax.run.files import Row, atomic_write

# The palette of Okabe and Ito, distinguishable with any kind of color vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
PALETTE = BLUE, ORANGE, GREEN, "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#F0E442"
MISSING = "#F2D8C4"

NEURONS_WITH_INTERVALS = 6
LEGEND_LINES = 18  # entries that fit beside axes of the usual height, in one column

PANELS = {
    "valid_nll": "NLL at observed points (nats)",
    "heldout_nll": "NLL at held-out points (nats)",
    "valid_r2": "R² against true rates",
}


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG; the file appears whole or not at all."""
    with atomic_write(Path(path)) as part:
        part.write_bytes(png(figure, dpi=150))


def png(figure: Figure, *, dpi: int) -> bytes:
    """The picture that `savefig` writes, which draws it twice if the layout is constrained."""
    figure.set_dpi(dpi)
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    imsave(file, canvas.buffer_rgba(), format="png", dpi=dpi)
    return file.getvalue()


def history(
    rows: Mapping[ModelKey, Sequence[Row]], best: Mapping[ModelKey, int], *, published: bool = False
) -> Figure:
    """Training of all models of a run: likelihoods, and R2 where true rates are known.

    rows: of history.csv. best: epochs to mark with a dot. published: add the published R2, dotted.

    One panel each for validation NLL (training NLL dashed), held-out NLL and R2, if known, against
    epoch; one color for each bandwidth and combination of settings.
    """
    names = "epoch", "train_nll", *PANELS
    curves = {
        key: {n: np.array([row[n] for row in own]) for n in names} for key, own in rows.items()
    }
    known = {n for n in PANELS if any(np.isfinite(curve[n]).any() for curve in curves.values())}
    panels = [name for name in PANELS if name in {"valid_nll", *known}]
    levels = sorted(dict.fromkeys(k._replace(seed=0) for k in curves), key=lambda k: -k.bandwidth)
    color = _colors(levels)
    columns = math.ceil((len(levels) + 4) / LEGEND_LINES)

    figure = Figure(figsize=(5.2 * len(panels) + 1.6 * columns, 4.6), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for key, curve in curves.items():
            shade, at = color[key._replace(seed=0)], curve["epoch"]
            axes.plot(at, curve[name], color=shade, lw=1.5)
            if name == "valid_nll":
                axes.plot(at, curve["train_nll"], color=shade, lw=0.8, ls="--")
            dot = curve["epoch"] == best[key]
            axes.plot(at[dot], curve[name][dot], "o", ms=6, mec="k", color=shade)
        if published and name == "valid_r2":  # likelihoods are of other data, and not comparable
            theirs = literature.history()
            for level in levels:
                if level.bandwidth in theirs:
                    epoch, r2 = theirs.pop(level.bandwidth)
                    axes.plot(epoch, r2, ":", color=color[level], lw=1.5)
        last = max(1, *(int(curve["epoch"][-1]) for curve in curves.values()))
        late = np.concatenate([curve[name][len(curve[name]) // 10 :] for curve in curves.values()])
        limits = _limits(late[np.isfinite(late)], is_r2=name == "valid_r2")
        axes.set(xlabel="Epoch", ylabel=PANELS[name], xlim=(0, 1.02 * last), ylim=limits)
        axes.spines[["top", "right"]].set_visible(False)
    handles = []
    for level in levels:
        label = ", ".join(str(v) for name, v in level.columns.items() if name != "seed")
        handles.append(Line2D([], [], color=color[level], lw=2.5, label=label))
    handles.append(Line2D([], [], color="k", lw=1.5, label="validation"))
    handles.append(Line2D([], [], color="k", lw=0.8, ls="--", label="training"))
    handles.append(Line2D([], [], color="w", marker="o", mec="k", ms=6, label="best epoch"))
    if published:
        label = f"published R²,\n{literature.CITATION}"
        handles.append(Line2D([], [], color="k", lw=1.5, ls=":", label=label))
    title = ", ".join(["Neurons observed", *dict(levels[0].sweep)])
    figure.legend(
        handles=handles, title=title, loc="outside right center", frameon=False, ncols=columns
    )
    return figure


def search(
    members: lineage.Members,
    descent: Sequence[Row],
    settings: Mapping[str, bool],
    title: str,
) -> Figure:
    """How settings were tuned: held-out loss and each setting of all members against epoch.

    members: rows of history.csv; member 0 kept the settings that the search began with.
    descent: those of the winner and, before it took over, of its ancestors.
    settings: names of those that were tuned, and whether their axis is logarithmic.
    """
    panels = {"heldout_nll": "Held-out NLL (nats)"}
    panels |= {name: name.replace("_", " ").capitalize() for name in settings}
    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(12.6, 2.7 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False).ravel()
    best = min(descent, key=lineage.loss)
    lines = [(own, {"color": GREY, "lw": 0.7, "alpha": 0.5}) for own in members.values()]
    given, winner = {"color": ORANGE, "lw": 2}, {"color": BLUE, "lw": 2}
    lines += [(members[0], given), (descent, winner)]
    for axes, (name, words) in zip(grid, panels.items(), strict=False):
        kind = "default" if name == "heldout_nll" else "steps-mid"
        for own, how in lines:
            at, values = zip(*((row["epoch"], row[name]) for row in own), strict=True)
            axes.plot(at, values, drawstyle=kind, **how)
        axes.plot(best["epoch"], best[name], "o", ms=6, mec="k", color=BLUE)
        axes.set(xlabel="Epoch", ylabel=words)
        axes.spines[["top", "right"]].set_visible(False)
        seen = {row[name] for own, _ in lines for row in own}
        if settings.get(name):
            least = min(value or 1 for value in seen)
            axes.set_yscale("symlog", linthresh=least)
            if max(seen) < 10 * least:  # or there may be no number beside the axis
                ticks = SymmetricalLogLocator(base=10, linthresh=least, subs=(1, 2, 5))
                axes.yaxis.set(major_locator=ticks, major_formatter="{x:g}")
        elif name == "latent_size":
            axes.set_yticks(sorted(seen))
    loss = np.array(
        [row["heldout_nll"] for own in members.values() for row in own[len(own) // 10 :]]
    )
    grid[0].set_ylim(_limits(loss[np.isfinite(loss)], is_r2=False))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles = [
        Line2D([], [], **winner, label="winner, and the members that it descends from"),
        Line2D([], [], **given, label="settings as given"),
        Line2D([], [], color=GREY, lw=0.7, label="other members"),
        Line2D([], [], color=BLUE, marker="o", mec="k", ls="", label="best epoch"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    return figure


def _colors(keys: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    return dict(zip(keys, colormaps["viridis"](np.linspace(0.0, 0.88, len(keys))), strict=True))


def _limits(late: np.ndarray, *, is_r2: bool) -> tuple[float, float]:
    """Axis limits from the finite values after the first tenth of training, when rates are still
    far off. A model that diverged has none."""
    if not late.size:
        return (-0.2, 1.0) if is_r2 else (0.0, 1.0)
    if is_r2:
        worst = float(np.quantile(late, 0.1))
        return (-0.2, 1.0) if worst > -0.2 else (worst, 0.1)
    low, high = float(late.min()), float(np.quantile(late, 0.995))
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def r2_vs_missing(
    rows: Sequence[Row],
    *,
    ensembles: Sequence[Row] = (),
    published: bool = False,
    ideal: Sequence[Row] = (),
    baselines: Sequence[Row] = (),
) -> Figure:
    """R2 against the share of samples that are missing: all points, observed and missing ones.

    rows: of metrics.csv. Lines go through the mean over seeds, with a dot for each seed. If models
      differ in settings, there is one line for each combination, of all points only.
    ensembles: rows of ensemble.csv, for the mean of all seeds' rates. published: add that curve.
    ideal: rows of ideal_observers.csv.
    baselines: one row of baselines.csv for each bandwidth.

    Raises ValueError if no row has an R2, because true rates are not known.
    """
    if not any(np.isfinite(row["r2"]) for row in rows):
        raise ValueError("rows hold no R2; this figure needs true rates")
    sweeps = list(dict.fromkeys(map(sweep_of, rows)))
    several = len(sweeps) > 1
    shades = _colors(sweeps) if several else {sweeps[0]: BLUE}
    columns = math.ceil((len(sweeps) + 4) / LEGEND_LINES) if several else 0
    figure = Figure(figsize=(7.4 + 2.4 * columns, 4.8), layout="constrained")
    axes = figure.subplots()
    shown = [0.0]

    def line(points, *style, of="r2", **how):
        shown.extend(point[of] for point in points)
        x = [100 * point["missing_fraction"] for point in points]
        axes.plot(x, [point[of] for point in points], *style, **how)

    def of_models(sweep, style, of="r2", **how):
        known = [row for row in rows if sweep_of(row) == sweep and np.isfinite(row[of])]
        seeds = {}
        for row in known:
            seeds.setdefault(row["missing_fraction"], []).append(row[of])
        means = [{"missing_fraction": m, of: np.mean(seeds[m])} for m in sorted(seeds)]
        line(means, style, of=of, lw=2, **how)
        if of == "r2" and len(known) > len(means):
            label = "each seed" if sweep == sweeps[0] else None
            line(known, "o", color=how["color"], ms=3, alpha=0.5, label=label)

    for sweep in sweeps:
        label = ", ".join(short(value) for _, value in sweep) if several else "all points"
        of_models(sweep, "-", color=shades[sweep], marker="o", label=label)
    if not several:
        of_models(sweeps[0], ".--", of="r2_observed", color=GREEN, label="observed points")
        of_models(sweeps[0], ".:", of="r2_missing", color=ORANGE, label="missing points")
    for sweep in sweeps:
        if here := [row for row in ensembles if sweep_of(row) == sweep]:
            label = f"mean of {max(row['models'] for row in here)} seeds' rates"
            label = label if sweep == sweeps[0] else None
            line(here, "^-", color=shades[sweep], mfc="white", lw=1, label=label)
    if published:
        levels = [level._asdict() for level in literature.LEVELS]
        label = f"published, {literature.CITATION}"
        line(levels, "s-", color=GREY, mfc="white", lw=1.5, label=label)
    missing = {int(row["bandwidth"]): row["missing_fraction"] for row in rows}
    for knows, style in zip(
        dict.fromkeys(row["knows"] for row in ideal), ("-", "--"), strict=False
    ):
        own = {row["bandwidth"]: row["r2"] for row in ideal if row["knows"] == knows}
        at = sorted(own.keys() & missing.keys(), key=missing.get)
        points = [{"missing_fraction": missing[b], "r2": own[b]} for b in at]
        line(points, style, color="k", lw=1, label=f"ideal observer: knows {knows}")
    axes.set(xlabel="Samples missing (%)", ylabel="R² against true rates")
    axes.set(xlim=(-3, 103), ylim=(min(shown) - 0.05 * (1 - min(shown)), 1.03))
    if baselines:  # once the limits are set: far below the models, they would take all the room
        names = ", ".join(dict.fromkeys(row["baseline"].replace("_", " ") for row in baselines))
        line(baselines, "x--", color=GREY, lw=1, label=f"best without a model: {names}")
    axes.axhline(0, color=GREY, lw=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    if len(missing) > 1:
        top = axes.secondary_xaxis("top")
        top.set_xticks([100 * share for share in missing.values()], list(map(str, missing)))
        top.set_xlabel("Neurons observed per bin")
    if several:
        title = ", ".join(dict(sweeps[0]))
        figure.legend(title=title, loc="outside right center", frameon=False, ncols=columns)
    else:
        axes.legend(frameon=False, loc="best")
    return figure


def latents(
    mapped: Float[np.ndarray, "trial bin 3"], true: Float[np.ndarray, "trial bin 3"], *, title: str
) -> Figure:
    """Trajectories of some trials in space: inferred states, after a linear map, beside the true
    latents, with the same colors and axes."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    limits = np.stack([true.min((0, 1)), true.max((0, 1))], axis=1)
    for place, (name, values) in enumerate(
        {"Inferred, linearly mapped": mapped, "True": true}.items()
    ):
        space = figure.add_subplot(1, 2, place + 1, projection="3d")
        for path, color in zip(
            values, colormaps["turbo"](np.linspace(0.05, 0.95, len(values))), strict=True
        ):
            space.plot(*path.T, color=color, lw=1.3)
            space.plot(*path[:1].T, "o", color=color, ms=3.5)
        space.set(title=name, xlabel="x", ylabel="y", zlabel="z")
        space.set(xlim=limits[0], ylim=limits[1], zlim=limits[2])
        space.view_init(elev=18, azim=-60)
        space.locator_params(nbins=5)
        space.set_box_aspect(None, zoom=0.93)  # or its last label is cut off
        space.tick_params(labelsize=7)
    figure.suptitle(title)
    return figure


def axis_label(unit: str) -> str:
    """For an axis of expected values in a unit, as of `Observation.shown`."""
    return "Expected value" if unit == "1" else f"Rate ({unit})"


def observed_in_words(bandwidth: int, neurons: int) -> str:
    """Of which points a model was given; a recording may have holes of its own besides."""
    if bandwidth == neurons:
        return "all that was recorded"
    return f"{bandwidth} of {neurons} neurons observed per bin"


def label_neurons(axes: Axes, names: Sequence[Any]) -> None:
    """Call neurons, which are drawn from 0 downwards, by their names."""

    def name(place: float, _: int) -> str:
        return str(names[int(place)]) if place in range(len(names)) else ""

    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.yaxis.set(major_locator=MaxNLocator(6, integer=True), major_formatter=name)


def intervals(
    counts: Num[np.ndarray, "bin neuron"],
    observed: Bool[np.ndarray, "bin neuron"],
    interval: Interval,
    true_rates: Float[np.ndarray, "bin neuron"] | None,
    *,
    bin_width: float,
    title: str,
    names: Sequence[Any] | None = None,
    observation: Observation = POISSON,
) -> Figure:
    """Rates of some neurons in one trial with their intervals, observed counts below, true rates if
    known. Units and names as of `rates`."""
    names = range(counts.shape[1]) if names is None else names
    scale, unit = observation.shown(bin_width)
    bins = int(np.isfinite(interval.mean).any(1).sum())
    order = np.argsort(np.nan_to_num(interval.mean[:bins]).mean(0))[::-1]
    shown = order[np.unique(np.linspace(0, len(order) - 1, NEURONS_WITH_INTERVALS).astype(int))]
    time = (np.arange(bins) + 0.5) * bin_width
    figure = Figure(figsize=(11.5, 5.4), layout="constrained")
    grid = figure.subplots(2, -(-len(shown) // 2), squeeze=False, sharex=True).ravel()
    for axes, neuron in zip(grid, shown, strict=False):
        mean, _, low, high = (values[:bins, neuron] * scale for values in interval)
        axes.fill_between(time, low, high, color=BLUE, alpha=0.25, lw=0)
        axes.plot(time, mean, color=BLUE, lw=1.6)
        if true_rates is not None:
            axes.plot(time, true_rates[:bins, neuron] * scale, color=ORANGE, lw=1.2)
        here = observed[:bins, neuron]
        axes.plot(time[here], np.zeros(here.sum()), "|", color=GREY, ms=4)
        spikes = here & (counts[:bins, neuron] > 0)
        axes.plot(time[spikes], np.zeros(spikes.sum()), "|", color="k", ms=9)
        axes.set_title(f"Neuron {names[neuron]}")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[-(-len(shown) // 2) : len(shown)]:
        axes.set_xlabel("Time (s)")
    for axes in grid[:: -(-len(shown) // 2)]:
        axes.set_ylabel(axis_label(unit))
    above = "with spikes" if observation.is_count else "above 0"
    truth = f"true {observation.words.means}"
    handles = [
        Line2D([], [], color=BLUE, lw=1.6, label="mean of the models"),
        Patch(facecolor=BLUE, alpha=0.25, label="90% interval"),
        Line2D([], [], color=GREY, marker="|", ls="", label="observed bin"),
        Line2D([], [], color="k", marker="|", ls="", ms=9, label=above),
    ]
    if true_rates is not None:
        handles.insert(2, Line2D([], [], color=ORANGE, lw=1.2, label=truth))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title)
    return figure


def rates(
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    true_rates: Float[np.ndarray, "trial bin neuron"] | None,
    inferred: Float[np.ndarray, "trial bin neuron"],
    *,
    bin_width: float,
    trials: Sequence[int],
    bandwidth: int,
    names: Sequence[Any] | None = None,
    r2: float | None = None,
    observation: Observation = POISSON,
) -> Figure:
    """What a model saw, what is true and what it inferred, one row per trial.

    Counts are spikes per bin, rates expected counts per bin; rates are shown in spikes/s, other
    values as they are. `trials` are the numbers that label the rows, `names` those of the neurons,
    by default numbers from 0; `bin_width` is in seconds.
    Inferred rates are NaN after a trial's end, where nothing is drawn.
    """
    scale, unit = observation.shown(bin_width)
    inside = np.isfinite(inferred)
    many, bins, neurons = counts.shape
    words = observation.words
    columns = {f"Observed {words.values}": np.ma.masked_where(~observed, counts)}
    if true_rates is not None:
        columns[f"True {words.means}"] = np.where(inside, true_rates * scale, np.nan)
    columns[f"Inferred {words.means}"] = inferred * scale
    seen = counts[observed]
    largest = max(1e-6, float(np.nanquantile(list(columns.values())[1], 0.995)))
    if observation.is_signed:
        ends = [(seen.min(initial=0), seen.max(initial=1)), (np.nanmin(inferred), largest)]
        norms, scaled = [Normalize(*own) for own in ends], ""
    else:  # because rates span two orders of magnitude
        most = float(seen.max(initial=1 if observation.is_count else 0))
        norms = [PowerNorm(0.5, vmin=0, vmax=top) for top in (most, largest)]
        scaled = "square-root scale"
    cmap = colormaps["Greys"].with_extremes(bad=MISSING)
    of_counts, of_rates = {"cmap": cmap, "norm": norms[0]}, {"cmap": "viridis", "norm": norms[1]}
    extent = (0, bins * bin_width, neurons - 0.5, -0.5)

    figure = Figure(figsize=(3.7 * len(columns) + 1.4, 1.75 * many + 1.3), layout="constrained")
    grid = figure.subplots(many, len(columns), squeeze=False, sharex=True, sharey=True)
    for column, (title, values) in zip(grid.T, columns.items(), strict=True):
        how = of_counts if column[0] is grid[0, 0] else of_rates
        for axes, image in zip(column, values, strict=True):
            axes.imshow(image.T, aspect="auto", interpolation="nearest", extent=extent, **how)
        column[0].set_title(title)
        column[-1].set_xlabel("Time (s)")
    for trial, axes, length in zip(trials, grid[:, 0], inside.any(2).sum(1), strict=True):
        axes.axvspan(length * bin_width, extent[1], color="w", lw=0)
        axes.set_ylabel(f"Trial {trial}\nNeuron")
    label_neurons(grid[0, 0], range(neurons) if names is None else names)
    missing = 1 - observed.sum() / max(1, inside.sum())
    which = observed_in_words(bandwidth, neurons).capitalize()
    heading = f"{which}, {missing:.0%} of samples missing"
    figure.suptitle(heading + ("" if r2 is None else f", R² {r2:.2f}"))
    bar = {"shrink": 0.8, "aspect": 40, "pad": 0.01, "location": "bottom"}
    of_means = ", ".join(filter(None, (unit if observation.is_count else "", scaled)))
    for part, name, details in (
        (grid[:, :1], "Spikes per bin" if observation.is_count else "Value", scaled),
        (grid[:, 1:], "Firing rate" if observation.is_count else "Expected value", of_means),
    ):
        label = f"{name} ({details})" if details else name
        figure.colorbar(part[0, 0].images[0], ax=part, label=label, **bar)
    if missing > 0:
        handle = Patch(facecolor=MISSING, edgecolor=GREY, label="not observed")
        figure.legend(handles=[handle], loc="outside lower left", frameon=False)
    return figure
