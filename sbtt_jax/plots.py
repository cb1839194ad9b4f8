"""Every figure: arrays in, a matplotlib Figure out; `save` writes it.

Figures are built from `matplotlib.figure.Figure`, not pyplot: no display is needed, and a figure
is gone once nobody holds it. All colours can be told apart with any kind of colour vision.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from sbtt_jax import published as publication

OURS, OURS_LIGHT = "#0072B2", "#6DB6E3"
THEIRS = "#D55E00"
NEUTRAL = "0.35"
MISSING = "0.80"

# White, the colour of paper, for a count of 0; grey is left free for points without a count.
COUNT_COLOURS = LinearSegmentedColormap.from_list(
    "counts", ["#ffffff", "#9ecae1", "#2b7bba", "#08306b", "#041529"]
)
RATE_COLOURS = matplotlib.colormaps["viridis"]


class Curve(NamedTuple):
    """The training of one model, epoch by epoch; NaN where a value is unknown.

    NLL is in nats per point. heldout_nll is over validation points hidden from the model, all NaN
    where there are none; R2 is against true rates, all NaN without them. best_epoch is the value
    of `epoch` whose weights are kept.
    """

    bandwidth: int
    seed: int
    epoch: Int[np.ndarray, " epoch"]
    train_nll: Float[np.ndarray, " epoch"]
    valid_nll: Float[np.ndarray, " epoch"]
    heldout_nll: Float[np.ndarray, " epoch"]
    train_r2: Float[np.ndarray, " epoch"]
    valid_r2: Float[np.ndarray, " epoch"]
    best_epoch: int


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure in the format that the path's suffix names (PNG, PDF, SVG ...).

    The file appears whole or not at all; one already there stays until the new one is whole.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, dpi=dpi, format=path.suffix[1:] or "png")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def history(curves: Sequence[Curve], *, published: bool) -> Figure:
    """Training of all models of a run: loss, loss on held-out points and R2 against the epoch.

    A panel each, the last two where any model has them; a colour each bandwidth, all seeds alike.
    The wild first epochs may leave a panel at its edge; best and last epochs lie within.
    `published` adds the published final R2 of the same bandwidths. The published NLL is left out:
    it is of another draw of the data, and cannot be compared.

    Raises ValueError where there are no curves.
    """
    if not curves:
        raise ValueError("curves is empty; give one for each trained model")
    with_heldout = any(np.isfinite(c.heldout_nll).any() for c in curves)
    with_r2 = any(np.isfinite(c.valid_r2).any() for c in curves)
    panels = 1 + with_heldout + with_r2
    colours = _bandwidth_colours(c.bandwidth for c in curves)
    legend_columns = 1 + (len(colours) - 1) // 12

    width = {1: 5.6, 2: 4.2, 3: 3.3}[panels] * panels + 0.5 + 0.7 * legend_columns
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])

    nll = axes[0]
    nll.set(title="Loss on observed points", ylabel="Poisson NLL (nats per point)")
    _draw_training(nll, curves, colours, "valid_nll", "train_nll")
    nll_limits = _nll_limits(curves)
    nll.set_ylim(nll_limits)
    if with_heldout:
        heldout = axes[1]
        heldout.set(title="Loss on held-out points", ylabel="Poisson NLL (nats per point)")
        _draw_training(heldout, curves, colours, "heldout_nll", None)
        heldout.set_ylim(nll_limits)  # the same, so that the two losses can be compared by eye
    theirs = {}
    if with_r2:
        r2 = axes[-1]
        r2.set(title="Agreement with true rates", ylabel="R² (mean over neurons)")
        _draw_training(r2, curves, colours, "valid_r2", "train_r2")
        r2.set_ylim(_r2_limits(curves))
        if published:
            theirs = {p.bandwidth: p.r2 for p in publication.RESULTS if p.bandwidth in colours}
        for bandwidth, value in theirs.items():
            # Beside the panel, as the published training was of another length.
            r2.plot(
                1.025,
                value,
                marker="D",
                markersize=5,
                color=colours[bandwidth],
                transform=r2.get_yaxis_transform(),
                clip_on=False,
            )

    figure.legend(
        handles=[Line2D([], [], color=c, linewidth=2.5, label=f"{b}") for b, c in colours.items()],
        title="bandwidth\n(neurons\nper bin)",
        title_fontsize="medium",
        alignment="left",
        ncols=legend_columns,
        loc="outside right upper",
        frameon=False,
    )
    kinds = [
        Line2D([], [], color=NEUTRAL, linewidth=1.6, label="validation trials"),
        Line2D([], [], color=NEUTRAL, linewidth=0.9, linestyle="--", label="training trials"),
        _point("o", NEUTRAL, "best epoch, the one kept"),
    ]
    if theirs:
        kinds.append(_point("D", NEUTRAL, f"published ({publication.SHORT_CITATION})"))
    figure.legend(handles=kinds, ncols=len(kinds), loc="outside lower center", frameon=False)
    return figure


def r2_vs_missing(
    rows: Sequence[Mapping[str, float | int]],
    *,
    published: bool,
    ceiling: Mapping[int, float] | None = None,
) -> Figure:
    """R2 of inferred against true rates, as fewer and fewer points are observed.

    rows: one a model, with bandwidth, seed, missing_fraction (0 to 1), r2, r2_observed and
        r2_missing (over all points, the observed and the missing ones; NaN where there are none).
        Lines run through the mean over seeds; of `r2`, each seed is a dot and a bar spans them.
    published: draw the published curve too.
    ceiling: by bandwidth, the R2 that the best possible inference reaches from the same counts;
        drawn at the bandwidths that `rows` has.

    Raises ValueError where no row has an R2.
    """
    rows = [row for row in rows if np.isfinite(row["r2"])]
    if not rows:
        raise ValueError("no row has an r2; R2 needs true rates, which only synthetic data have")
    bandwidths = sorted({int(row["bandwidth"]) for row in rows}, reverse=True)
    models = {b: [row for row in rows if row["bandwidth"] == b] for b in bandwidths}
    missing = {b: 100 * np.mean([row["missing_fraction"] for row in models[b]]) for b in bandwidths}
    bandwidths.sort(key=missing.__getitem__)
    x = [missing[b] for b in bandwidths]

    def of_seeds(name: str) -> list[np.ndarray]:
        values = [np.array([row[name] for row in models[b]], float) for b in bandwidths]
        return [v[np.isfinite(v)] for v in values]

    def mean(name: str) -> list[float]:
        return [v.mean() if v.size else np.nan for v in of_seeds(name)]

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.subplots()
    if ceiling is not None:
        reached = [ceiling.get(b, np.nan) for b in bandwidths]
        label = "ceiling: ideal inference from the same counts"
        axes.plot(x, reached, color=NEUTRAL, linewidth=1, linestyle=":", marker="_", label=label)
    if published:
        axes.plot(
            [100 * p.missing_fraction for p in publication.RESULTS],
            [p.r2 for p in publication.RESULTS],
            color=THEIRS,
            linewidth=1.6,
            linestyle="--",
            marker="s",
            markersize=5,
            label=f"published, all points ({publication.SHORT_CITATION})",
        )
    light = {"color": OURS_LIGHT, "linewidth": 1.2, "markersize": 5, "markerfacecolor": "white"}
    axes.plot(x, mean("r2_observed"), marker="^", label="observed points", **light)
    axes.plot(x, mean("r2_missing"), marker="v", label="missing points", **light)
    each = of_seeds("r2")
    for at, values in zip(x, each, strict=True):
        if values.size > 1:
            axes.plot([at, at], [values.min(), values.max()], color=OURS, linewidth=1.2)
            axes.plot([at] * values.size, values, ".", color=OURS, markersize=4)
    label = "all points" + (", mean over seeds" if any(v.size > 1 for v in each) else "")
    axes.plot(x, mean("r2"), color=OURS, linewidth=2.2, marker="o", markersize=6, label=label)

    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    low = np.nanmin(drawn, where=np.isfinite(drawn), initial=0.0)
    if low < 0:
        label = "R² = 0: each neuron's mean rate alone"
        axes.axhline(0, color=NEUTRAL, linewidth=0.8, zorder=0, label=label)
    axes.set(
        xlim=(-3, 100),
        ylim=(low - 0.05 * (1 - low) if low < 0 else -0.02, 1 + 0.03 * (1 - low)),
        xlabel="missing neuron-timepoints (%)",
        ylabel="R² of inferred against true rates\n(mean over neurons, validation trials)",
    )
    _tidy(axes)
    # Longest and topmost last: the legend reads from what is ours to what it is held against.
    handles, labels = axes.get_legend_handles_labels()
    ranks = {"all": 0, "obs": 1, "mis": 2, "pub": 3, "cei": 4, "R² ": 5}
    order = sorted(range(len(labels)), key=lambda i: ranks[labels[i][:3]])
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="best", frameon=False
    )
    top = axes.secondary_xaxis("top")
    top.set_xlabel("bandwidth (neurons observed per bin)")
    shown = _apart(x, 3.0)
    top.set_xticks([x[i] for i in shown], [f"{bandwidths[i]}" for i in shown])
    top.spines["top"].set_visible(False)
    return figure


def rates(
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    true_rates: Float[np.ndarray, "trial bin neuron"] | None,
    inferred: Float[np.ndarray, "trial bin neuron"],
    *,
    bin_width: float,
    trials: Sequence[int],
    title_bandwidth: int,
    r2: float | None,
    conditions: Sequence[int] | None = None,
) -> Figure:
    """What the model saw of some trials, and the rates behind it: true (if known) and inferred.

    counts: spikes in each bin; not read where `observed` is false, and a NaN is missing too.
    true_rates, inferred: expected counts per bin; drawn in spikes/s, on one scale. The scale ends
        at the 99.5th percentile of the true rates, so that all models of a run share it.
    bin_width: seconds.
    trials, conditions: the label of each trial.
    title_bandwidth, r2: for the title; r2 is that over all validation trials.

    Raises ValueError where there is no trial, or not one label for each.
    """
    if not len(counts) or len(trials) != len(counts):
        raise ValueError(f"trials has {len(trials)} labels for {len(counts)} trials in counts")
    if conditions is not None and len(conditions) != len(counts):
        raise ValueError(f"conditions has {len(conditions)} labels for {len(counts)} trials")
    spikes = np.ma.masked_invalid(np.where(observed, counts, np.nan).astype(float))
    columns = {"Observed counts": spikes, "Inferred rates": inferred / bin_width}
    if true_rates is not None:
        true = true_rates / bin_width
        columns = {
            "Observed counts": spikes,
            "True rates": true,
            "Inferred rates": columns["Inferred rates"],
        }
    scale = columns.get("True rates", columns["Inferred rates"])
    finite = scale[np.isfinite(scale)]
    rate_end = float(np.quantile(finite, 0.995)) if finite.size else 1.0
    norms = [PowerNorm(0.5, 0, max(float(spikes.max()) if spikes.count() else 1.0, 1.0))]
    norms += [PowerNorm(0.5, 0, rate_end or 1.0)] * (len(columns) - 1)

    bins, neurons = counts.shape[1:]
    figure = Figure(
        figsize=(3.1 * len(columns) + 0.9, 1.55 * len(counts) + 1.5), layout="constrained"
    )
    grid = figure.add_gridspec(
        len(counts) + 1, len(columns), height_ratios=[1.0] * len(counts) + [0.09]
    )
    for column, (name, values) in enumerate(columns.items()):
        for row, trial in enumerate(trials):
            axes = figure.add_subplot(grid[row, column])
            axes.set_facecolor(MISSING)
            image = axes.imshow(
                values[row].T,
                aspect="auto",
                interpolation="nearest",
                cmap=RATE_COLOURS if column else COUNT_COLOURS,
                norm=norms[column],
                extent=(0, bins * bin_width, neurons - 0.5, -0.5),
            )
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.tick_params(labelbottom=row == len(counts) - 1, labelleft=column == 0)
            if row == 0:
                axes.set_title(name)
            if row == len(counts) - 1:
                axes.set_xlabel("time (s)")
            if column == 0:
                condition = "" if conditions is None else f"condition {conditions[row]}\n"
                axes.set_ylabel(f"trial {trial}\n{condition}neuron")
        if column == 0:
            bar = figure.colorbar(image, cax=figure.add_subplot(grid[-1, 0]), location="bottom")
            bar.set_label("spikes per bin (square-root scale)")
            _square_root_ticks(bar.ax, norms[0].vmax, whole=True)
    over = any((v > norms[-1].vmax).any() for v in list(columns.values())[1:])
    bar = figure.colorbar(
        image,
        cax=figure.add_subplot(grid[-1, 1:]),
        location="bottom",
        extend="max" if over else "neither",
        extendfrac=0.02,
    )
    bar.set_label("firing rate (spikes/s, square-root scale)")
    _square_root_ticks(bar.ax, norms[-1].vmax)

    share = 1 - spikes.count() / spikes.size
    title = f"{title_bandwidth} of {neurons} neurons observed per bin ({share:.1%} missing)"
    if r2 is not None:
        title += f", R² = {r2:.3f} on validation trials"
    figure.suptitle(title)
    if share:
        figure.legend(
            handles=[Patch(facecolor=MISSING, edgecolor=NEUTRAL, label="missing: not observed")],
            loc="outside lower left",
            frameon=False,
        )
    return figure


def _bandwidth_colours(bandwidths: Iterable[int]) -> dict[int, tuple[float, ...]]:
    """Dark for the largest bandwidth to light for the smallest, evenly by rank."""
    levels = sorted(set(bandwidths), reverse=True)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(levels)))
    return {level: tuple(map(float, c)) for level, c in zip(levels, shades, strict=True)}


def _draw_training(
    axes: Axes, curves: Sequence[Curve], colours: Mapping[int, tuple], valid: str, train: str | None
) -> None:
    crowded = len(curves) > 12
    for curve in sorted(curves, key=lambda c: -c.bandwidth):
        colour = colours[curve.bandwidth]
        dot = "." if curve.epoch.size == 1 else None
        if train:
            axes.plot(
                curve.epoch,
                getattr(curve, train),
                color=colour,
                linewidth=0.9,
                linestyle="--",
                alpha=0.35 if crowded else 0.6,
                marker=dot,
            )
        values = getattr(curve, valid)
        axes.plot(
            curve.epoch, values, color=colour, linewidth=1.0 if crowded else 1.6, marker=dot
        )
        best = curve.epoch == curve.best_epoch
        axes.plot(
            curve.epoch[best],
            values[best],
            linestyle="",
            marker="o",
            markersize=5,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3,
        )
    last = max((int(c.epoch.max()) for c in curves if c.epoch.size), default=0)
    axes.set(xlabel="epoch", xlim=(-0.02 * last, 1.02 * last) if last else (-0.5, 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _tidy(axes)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _settled(values: np.ndarray) -> np.ndarray:
    """Without the first tenth of the epochs, whose values dwarf all others."""
    return _finite(values[len(values) // 10 :])


def _nll_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the least loss to the largest after the first epochs, stray peaks left out."""
    series = [getattr(c, n) for c in curves for n in ("train_nll", "valid_nll", "heldout_nll")]
    settled = [s for s in map(_settled, series) if s.size]
    if not settled:
        return 0.0, 1.0
    low = min(s.min() for s in settled)
    high = max(max(np.quantile(s, 0.98), s[-1]) for s in settled)
    # A model that diverges must not squeeze all others flat: three times what there was to
    # learn since the first epoch is enough.
    first = max(_finite(s)[0] for s in series if _finite(s).size)
    if first > low:
        high = min(high, low + 3 * (first - low))
    room = 0.05 * (high - low) or 0.01 * max(abs(low), 1.0)
    return float(low - room), float(high + room)


def _r2_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Up to 1, down to the worst of what matters: kept weights, or below 0 but not far."""
    low = -0.1
    for curve in curves:
        kept = _finite(curve.valid_r2[curve.epoch == curve.best_epoch])
        later = np.concatenate([_settled(curve.valid_r2), _settled(curve.train_r2)])
        low = min([low, *kept, *np.maximum(later, -0.5)])
    return float(low - 0.03 * (1 - low)), 1.02


def _apart(positions: Sequence[float], gap: float) -> list[int]:
    """Which of ascending positions to label so that labels stay `gap` apart, the last first."""
    chosen: list[int] = []
    for i in reversed(range(len(positions))):
        if not chosen or positions[chosen[-1]] - positions[i] >= gap:
            chosen.append(i)
    return chosen


def _square_root_ticks(axes: Axes, end: float, *, whole: bool = False) -> None:
    """Ticks at 0 and at 1, 2, 5, 10 ..., as many as a square-root scale has room for."""
    decades = 10.0 ** np.arange(np.floor(np.log10(end)) - 2, np.log10(end) + 1)
    ticks = np.sort(np.outer(decades, [1, 2, 5]).ravel())
    ticks = ticks[(ticks <= end) & (ticks >= end / 20)]
    if whole:
        ticks = ticks[ticks >= 1]
    axes.xaxis.set_major_locator(FixedLocator([0, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _point(marker: str, colour: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle="", marker=marker, markersize=5, label=label)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
