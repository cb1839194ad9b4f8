"""Every figure: arrays in, a Matplotlib figure out, which `save` writes."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sbtt_jax.grid import ModelKey, short, sweep_of
from sbtt_jax.run import published as literature
from sbtt_jax.run.files import Row, atomic_write

# The palette of Okabe and Ito, distinguishable with any kind of color vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
MISSING = "#F2D8C4"


# Legend entries that fit beside axes of the usual height, in one column.
LEGEND_LINES = 18


def save(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure as PNG; the file appears whole or not at all."""
    with atomic_write(Path(path)) as part:
        figure.savefig(part, dpi=dpi, format="png")


PANELS = {
    "valid_nll": "NLL at observed points (nats)",
    "heldout_nll": "NLL at held-out points (nats)",
    "valid_r2": "R² against true rates",
}


def history(
    rows: Mapping[ModelKey, Sequence[Row]],
    best: Mapping[ModelKey, int],
    *,
    published: bool = False,
) -> Figure:
    """Training of all models of a run: likelihoods, and R2 where true rates are known.

    rows: of history.csv, by model. best: the best epoch of each model, marked with a dot.
    published: add the published R2, dotted.

    One panel each for validation NLL (training NLL dashed), held-out NLL and R2, if known, against
    epoch; one color for each bandwidth and combination of settings.
    """
    curves = {
        key: {
            name: np.array([row[name] for row in own]) for name in ("epoch", "train_nll", *PANELS)
        }
        for key, own in rows.items()
    }
    panels = [
        name
        for name in PANELS
        if name == "valid_nll" or any(np.isfinite(c[name]).any() for c in curves.values())
    ]
    levels = sorted(
        dict.fromkeys(key._replace(seed=0) for key in curves), key=lambda k: -k.bandwidth
    )
    color = _colors(levels)
    columns = _legend_columns(len(levels) + 4)

    figure = Figure(figsize=(5.2 * len(panels) + 1.6 * columns, 4.6), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for key, curve in curves.items():
            shade, at = color[key._replace(seed=0)], curve["epoch"] + 1
            axes.plot(at, curve[name], color=shade, lw=1.5)
            if name == "valid_nll":
                axes.plot(at, curve["train_nll"], color=shade, lw=0.8, ls="--")
            dot = curve["epoch"] == best[key]
            axes.plot(at[dot], curve[name][dot], "o", ms=6, mec="k", color=shade)
        if published and name == "valid_r2":  # likelihoods are of other data, and not comparable
            theirs = literature.history()
            for level in levels:
                if level.bandwidth in theirs:
                    curve = theirs.pop(level.bandwidth)
                    axes.plot(curve.epoch + 1, curve.valid_r2, ":", color=color[level], lw=1.5)
        last = max(int(c["epoch"][-1]) for c in curves.values()) + 1
        late = np.concatenate([c[name][len(c["epoch"]) // 10 :] for c in curves.values()])
        axes.set(
            xlabel="Epoch",
            ylabel=PANELS[name],
            xlim=(0, 1.02 * last),
            ylim=_limits(late[np.isfinite(late)], is_r2=name == "valid_r2"),
        )
        _open(axes)
    handles = [Line2D([], [], color=color[at], lw=2.5, label=_label(at, "seed")) for at in levels]
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


def _colors(keys: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    return dict(zip(keys, colormaps["viridis"](np.linspace(0.0, 0.88, len(keys))), strict=True))


def _legend_columns(entries: int) -> int:
    return math.ceil(entries / LEGEND_LINES)


def _label(key: ModelKey, *without: str) -> str:
    """What tells a line from others, in the order of the legend's title."""
    return ", ".join(str(v) for name, v in key.columns.items() if name not in without)


def _limits(late: np.ndarray, *, is_r2: bool) -> tuple[float, float]:
    """Axis limits from the finite values after the first tenth of training, when rates are still
    far off. A model that diverged has none."""
    if is_r2:
        worst = float(np.quantile(late, 0.1)) if late.size else 0.0
        return (-0.2, 1.0) if worst > -0.2 else (worst, 0.1)
    if not late.size:
        return 0.0, 1.0
    low, high = float(late.min()), float(np.quantile(late, 0.995))
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def r2_vs_missing(
    rows: Sequence[Row],
    *,
    ensembles: Sequence[Row] = (),
    published: bool = False,
    ceiling: Mapping[int, float] | None = None,
) -> Figure:
    """R2 against the share of samples that are missing: all points, observed and missing ones.

    rows: of metrics.csv. Lines go through the mean over seeds, with a dot for each seed. If models
      differ in settings, there is one line for each combination, of all points only.
    ensembles: rows of ensemble.csv, for the mean of all seeds' rates.
    published: add the published curve.
    ceiling: R2 of the ideal observer that knows the rate patterns, by bandwidth.

    Raises ValueError if no row has an R2, because true rates are not known.
    """
    if not any(np.isfinite(row["r2"]) for row in rows):
        raise ValueError("rows hold no R2; this figure needs true rates")
    sweeps = list(dict.fromkeys(map(sweep_of, rows)))
    several = len(sweeps) > 1
    shades = _colors(sweeps) if several else {sweeps[0]: BLUE}
    columns = _legend_columns(len(sweeps) + 4) if several else 0
    figure = Figure(figsize=(7.4 + 2.4 * columns, 4.8), layout="constrained")
    axes = figure.subplots()
    shown: list[float] = []

    def line(x, y, *style, **how):
        axes.plot(100 * np.array(x), y, *style, **how)
        shown.extend(y)

    def of_models(name, style, sweep, **how):
        known = [row for row in rows if sweep_of(row) == sweep and np.isfinite(row[name])]
        at = sorted({row["missing_fraction"] for row in known})
        mean = [np.mean([r[name] for r in known if r["missing_fraction"] == m]) for m in at]
        line(at, mean, style, lw=2, **how)
        if name == "r2" and len(known) > len(at):
            x, y = ([row[column] for row in known] for column in ("missing_fraction", "r2"))
            dots = {"color": how["color"], "ms": 3, "alpha": 0.5}
            line(x, y, "o", label="each seed" if sweep == sweeps[0] else None, **dots)

    for sweep in sweeps:
        values = ", ".join(short(value) for _, value in sweep)
        label = values if several else "all points"
        of_models("r2", "-", sweep, color=shades[sweep], marker="o", label=label)
    if not several:
        of_models("r2_observed", "--", sweeps[0], color=GREEN, label="observed points")
        of_models("r2_missing", ":", sweeps[0], color=ORANGE, label="missing points")
    for sweep in sweeps:
        here = [row for row in ensembles if sweep_of(row) == sweep]
        if here:
            label = f"mean of {max(row['models'] for row in here)} seeds' rates"
            x, y = ([row[column] for row in here] for column in ("missing_fraction", "r2"))
            label = label if sweep == sweeps[0] else None
            line(x, y, "^-", color=shades[sweep], mfc="white", lw=1, label=label)
    if published:
        x, y = zip(
            *((level.missing_fraction, level.r2) for level in literature.LEVELS), strict=True
        )
        label = f"published, {literature.CITATION}"
        line(x, y, "s-", color=GREY, mfc="white", lw=1.5, label=label)
    missing = {int(row["bandwidth"]): row["missing_fraction"] for row in rows}
    if ceiling:
        at = sorted(ceiling.keys() & missing.keys(), key=missing.get)
        y = [ceiling[b] for b in at]
        line([missing[b] for b in at], y, color="k", lw=1, label="ideal observer of the patterns")
    low = min(0.0, *shown)
    axes.set(
        xlabel="Samples missing (%)",
        ylabel="R² against true rates (validation trials)",
        xlim=(-3, 103),
        ylim=(low - 0.05 * (1 - low), 1.03),
    )
    axes.axhline(0, color=GREY, lw=0.6, zorder=0)
    top = axes.secondary_xaxis("top")
    top.set_xticks([100 * share for share in missing.values()], list(map(str, missing)))
    top.set_xlabel("Neurons observed per bin")
    if several:
        title = ", ".join(name for name, _ in sweeps[0])
        figure.legend(title=title, loc="outside right center", frameon=False, ncols=columns)
    else:
        axes.legend(frameon=False, loc="best")
    _open(axes)
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
    r2: float | None = None,
) -> Figure:
    """What a model saw, what is true and what it inferred, one row per trial.

    Counts are spikes per bin, rates expected counts per bin; rates are shown in spikes/s. `trials`
    are the numbers that label the rows; `bin_width` is in seconds. Inferred rates are NaN after a
    trial's end, where nothing is drawn.
    """
    inside = np.isfinite(inferred)
    many, bins, neurons = counts.shape
    columns = {"Observed counts": np.ma.masked_where(~observed, counts)}
    if true_rates is not None:
        columns["True rates"] = np.where(inside, true_rates / bin_width, np.nan)
    columns["Inferred rates"] = inferred / bin_width
    # Square root scales, because rates span two orders of magnitude.
    largest = float(np.nanquantile(list(columns.values())[1], 0.995))
    most = float(counts[observed].max(initial=1))
    of_counts = {
        "cmap": colormaps["Greys"].with_extremes(bad=MISSING),
        "norm": PowerNorm(0.5, vmin=0, vmax=max(most, 1.0)),
    }
    of_rates = {"cmap": "viridis", "norm": PowerNorm(0.5, vmin=0, vmax=max(largest, 1e-6))}
    extent = (0, bins * bin_width, neurons + 0.5, 0.5)

    figure = Figure(figsize=(3.7 * len(columns) + 1.4, 1.75 * many + 1.3), layout="constrained")
    grid = figure.subplots(many, len(columns), squeeze=False, sharex=True, sharey=True)
    images = {}
    for row, (trial, line) in enumerate(zip(trials, grid, strict=True)):
        for i, (axes, (title, values)) in enumerate(zip(line, columns.items(), strict=True)):
            how = of_rates if i else of_counts
            images[bool(i)] = axes.imshow(
                values[row].T, aspect="auto", interpolation="nearest", extent=extent, **how
            )
            if row == 0:
                axes.set_title(title)
            if row == many - 1:
                axes.set_xlabel("Time (s)")
        end = inside[row].any(1).sum() * bin_width
        line[0].axvspan(end, extent[1], color="w", lw=0)
        line[0].set_ylabel(f"Trial {trial}\nNeuron")
    missing = 1 - observed.sum() / max(1, inside.sum())
    which = f"{bandwidth} of {neurons} neurons" if bandwidth < neurons else "All that was recorded"
    heading = f"{which} observed per bin, {missing:.0%} of samples missing"
    figure.suptitle(heading + ("" if r2 is None else f", R² {r2:.2f}"))
    bar = {"shrink": 0.8, "aspect": 40, "pad": 0.01, "location": "bottom"}
    for image, axes, label in (
        (images[False], grid[:, 0], "Spikes per bin (square-root scale)"),
        (images[True], grid[:, 1:], "Firing rate (spikes/s, square-root scale)"),
    ):
        figure.colorbar(image, ax=axes, label=label, **bar)
    if missing > 0:
        handle = Patch(facecolor=MISSING, edgecolor=GREY, label="not observed")
        figure.legend(handles=[handle], loc="outside lower left", frameon=False)
    return figure


def _open(axes: Axes) -> None:
    """Keep only the two spines that carry the scales."""
    axes.spines[["top", "right"]].set_visible(False)
