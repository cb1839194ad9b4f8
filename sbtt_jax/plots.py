"""Every figure: arrays in, a Matplotlib figure out, which `save` writes."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sbtt_jax import grid
from sbtt_jax import published as literature
from sbtt_jax.grid import Varied

# Okabe and Ito's palette, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
MISSING = "#F2D8C4"


class Curve(NamedTuple):
    """The history of one model; NaN where a figure is not known."""

    bandwidth: int
    seed: int
    epoch: Int[np.ndarray, " epoch"]
    train_nll: Float[np.ndarray, " epoch"]
    valid_nll: Float[np.ndarray, " epoch"]
    train_r2: Float[np.ndarray, " epoch"]
    valid_r2: Float[np.ndarray, " epoch"]
    heldout_nll: Float[np.ndarray, " epoch"]
    best_epoch: int
    varied: Varied = ()  # this model's values of the settings that differ between models


# Lines of a legend, in a column of it beside axes of the usual height.
LEGEND_LINES = 18


def save(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure as PNG; the file is there whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, dpi=dpi, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def history(curves: Sequence[Curve], *, published: bool = False) -> Figure:
    """Training of all models of a run: likelihoods, and R2 where true rates are known.

    A panel each for validation NLL (training NLL dashed), held-out NLL and R2, as far as they are
    known, against epoch; a colour for each bandwidth and combination of settings, a dot at each
    model's best epoch. `published` adds the published R2, dotted.
    """
    panels = [("valid_nll", "NLL at observed points (nats)")]
    if any(np.isfinite(c.heldout_nll).any() for c in curves):
        panels.append(("heldout_nll", "NLL at held-out points (nats)"))
    if any(np.isfinite(c.valid_r2).any() for c in curves):
        panels.append(("valid_r2", "R² against true rates"))
    levels = sorted(dict.fromkeys((c.bandwidth, c.varied) for c in curves), key=lambda at: -at[0])
    colour = _colours(levels)
    columns = _legend_columns(len(levels) + 4)

    figure = Figure(figsize=(5.2 * len(panels) + 1.6 * columns, 4.6), layout="constrained")
    for axes, (name, label) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for c in curves:
            values = getattr(c, name)
            shade = colour[c.bandwidth, c.varied]
            axes.plot(c.epoch + 1, values, color=shade, lw=1.5)
            if name == "valid_nll":
                axes.plot(c.epoch + 1, c.train_nll, color=shade, lw=0.8, ls="--")
            best = c.epoch == c.best_epoch
            axes.plot(c.epoch[best] + 1, values[best], "o", ms=6, mec="k", color=shade)
        if published and name == "valid_r2":  # likelihoods are of other data, and not comparable
            first = {bandwidth: colour[bandwidth, varied] for bandwidth, varied in levels[::-1]}
            for bandwidth in first.keys() & literature.history().keys():
                theirs = literature.history()[bandwidth]
                axes.plot(theirs.epoch + 1, theirs.valid_r2, ":", color=first[bandwidth], lw=1.5)
        last = max(int(c.epoch[-1]) for c in curves) + 1
        axes.set(xlabel="Epoch", ylabel=label, xlim=(0, 1.02 * last), ylim=_limits(name, curves))
        _open(axes)
    handles = [
        Line2D([], [], color=colour[level], lw=2.5, label=_values([("", level[0]), *level[1]]))
        for level in levels
    ]
    handles.append(Line2D([], [], color="k", lw=1.5, label="validation"))
    handles.append(Line2D([], [], color="k", lw=0.8, ls="--", label="training"))
    handles.append(Line2D([], [], color="w", marker="o", mec="k", ms=6, label="best epoch"))
    if published:
        label = f"published R²,\n{literature.CITATION}"
        handles.append(Line2D([], [], color="k", lw=1.5, ls=":", label=label))
    title = ", ".join(["Neurons observed", *(name for name, _ in levels[0][1])])
    figure.legend(
        handles=handles, title=title, loc="outside right center", frameon=False, ncols=columns
    )
    return figure


def _colours(keys: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    """A shade for each, in their order."""
    return dict(zip(keys, colormaps["viridis"](np.linspace(0.0, 0.88, len(keys))), strict=True))


def _legend_columns(entries: int) -> int:
    return -(-entries // LEGEND_LINES)


def _values(varied: Iterable[tuple[str, float | int]]) -> str:
    """What tells a line from others, in the order of the legend's title."""
    return ", ".join(grid.shown(value) for _, value in varied)


def _limits(name: str, curves: Sequence[Curve]) -> tuple[float, float]:
    """Axis limits that leave out the first epochs, when rates are still far off."""
    # After the first tenth of training. A model that diverged has nothing finite to show.
    late = np.concatenate([getattr(c, name)[len(c.epoch) // 10 :] for c in curves])
    late = late[np.isfinite(late)]
    if name == "valid_r2":
        worst = float(np.quantile(late, 0.1)) if late.size else 0.0
        return (-0.2, 1.0) if worst > -0.2 else (worst, 0.1)
    if not late.size:
        return 0.0, 1.0
    low, high = float(late.min()), float(np.quantile(late, 0.995))
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def r2_vs_missing(
    rows: Sequence[Mapping[str, Any]],
    *,
    ensembles: Sequence[Mapping[str, Any]] = (),
    published: bool = False,
    ceiling: Mapping[int, float] | None = None,
) -> Figure:
    """R2 against the share of samples that are missing: all points, observed and missing ones.

    `rows` are those of metrics.csv, a row a model. Lines go through the mean over seeds, with a
    dot for each seed; `ensembles`, rows of ensemble.csv, are those of all seeds' mean rates.
    Where settings differ between models (`varied` of a row), there is a line for each combination,
    of all points alone. `published` puts the published curve beside it, `ceiling` (by bandwidth)
    the best that the counts allow.

    Raises:
      ValueError: no row has an R2, as where true rates are not known.
    """
    if not any(np.isfinite(row["r2"]) for row in rows):
        raise ValueError("rows hold no R2; this figure needs true rates")
    combinations = list(dict.fromkeys(row.get("varied", ()) for row in rows))
    several = len(combinations) > 1
    shades = _colours(combinations) if several else {combinations[0]: BLUE}
    lines = [
        ("r2", _values(varied) if several else "all points", shades[varied], "-", varied)
        for varied in combinations
    ]
    if not several:
        lines.append(("r2_observed", "observed points", GREEN, "--", combinations[0]))
        lines.append(("r2_missing", "missing points", ORANGE, ":", combinations[0]))
    columns = _legend_columns(len(combinations) + 4) if several else 0
    figure = Figure(figsize=(7.4 + 2.4 * columns, 4.8), layout="constrained")
    axes = figure.subplots()
    shown = []
    for name, label, colour, style, varied in lines:
        here = [row for row in rows if row.get("varied", ()) == varied]
        known = [row for row in here if np.isfinite(row[name])]
        at = sorted({row["missing_fraction"] for row in known})
        mean = [np.mean([r[name] for r in known if r["missing_fraction"] == m]) for m in at]
        marker = "o" if name == "r2" else None
        axes.plot(100 * np.array(at), mean, style, color=colour, lw=2, marker=marker, label=label)
        if name == "r2" and len(known) > len(at):
            x = [100 * row["missing_fraction"] for row in known]
            y = [row[name] for row in known]
            once = "each seed" if varied == combinations[0] else None
            axes.plot(x, y, "o", color=colour, ms=3, alpha=0.5, label=once)
        shown += mean
    for varied in combinations:
        here = [row for row in ensembles if row.get("varied", ()) == varied]
        if not here:
            continue
        x = [100 * row["missing_fraction"] for row in here]
        y = [row["r2"] for row in here]
        once = f"mean of {max(row['models'] for row in here)} seeds' rates"
        once = once if varied == combinations[0] else None
        axes.plot(x, y, "^-", color=shades[varied], mfc="white", lw=1, label=once)
        shown += y
    if published:
        x = [100 * level.missing_fraction for level in literature.LEVELS]
        y = [level.r2 for level in literature.LEVELS]
        label = f"published, {literature.CITATION}"
        axes.plot(x, y, "s-", color=GREY, mfc="white", lw=1.5, label=label)
        shown += y
    if ceiling:
        missing = {int(row["bandwidth"]): 100 * row["missing_fraction"] for row in rows}
        at = sorted(ceiling.keys() & missing.keys(), key=missing.get)
        y = [ceiling[b] for b in at]
        axes.plot([missing[b] for b in at], y, color="k", lw=1, label="ceiling (Bayes)")
        shown += y
    low = min(0.0, *shown)
    axes.set(
        xlabel="Samples missing (%)",
        ylabel="R² against true rates (validation trials)",
        xlim=(-3, 103),
        ylim=(low - 0.05 * (1 - low), 1.03),
    )
    axes.axhline(0, color=GREY, lw=0.6, zorder=0)
    missing = {row["missing_fraction"]: int(row["bandwidth"]) for row in rows}
    top = axes.secondary_xaxis("top")
    top.set_xticks([100 * share for share in missing], [str(b) for b in missing.values()])
    top.set_xlabel("Neurons observed per bin")
    if several:
        title = ", ".join(name for name, _ in combinations[0])
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
    """What a model saw, what is true and what it inferred, a row a trial.

    Counts are spikes per bin, rates expected counts per bin; they are shown in spikes/s. `trials`
    are the numbers to name the rows by; `bin_width` is in seconds. Inferred rates are NaN behind a
    trial's end, where nothing is drawn.
    """
    real = np.isfinite(inferred)
    many, bins, neurons = counts.shape
    columns = {"Observed counts": np.ma.masked_where(~observed, counts)}
    if true_rates is not None:
        columns["True rates"] = np.where(real, true_rates / bin_width, np.nan)
    columns["Inferred rates"] = inferred / bin_width
    largest = np.nanquantile(
        columns["True rates" if true_rates is not None else "Inferred rates"], 0.995
    )
    # A square root, because rates spread over two orders of magnitude.
    rate_norm = PowerNorm(0.5, vmin=0, vmax=max(float(largest), 1e-6))
    count_norm = PowerNorm(0.5, vmin=0, vmax=max(float(counts[observed].max(initial=1)), 1.0))
    extent = (0, bins * bin_width, neurons + 0.5, 0.5)

    figure = Figure(figsize=(3.7 * len(columns) + 1.4, 1.75 * many + 1.3), layout="constrained")
    grid = figure.subplots(many, len(columns), squeeze=False, sharex=True, sharey=True)
    count_map = colormaps["Greys"].with_extremes(bad=MISSING)
    for row, (trial, line) in enumerate(zip(trials, grid, strict=True)):
        for axes, (title, values) in zip(line, columns.items(), strict=True):
            is_count = title == "Observed counts"
            image = axes.imshow(
                values[row].T, aspect="auto", interpolation="nearest", extent=extent,
                **({"cmap": count_map, "norm": count_norm} if is_count
                   else {"cmap": "viridis", "norm": rate_norm}),
            )  # fmt: skip
            if is_count:
                count_image = image
                end = real[row].any(1).sum() * bin_width
                axes.axvspan(end, extent[1], color="w", lw=0)
                axes.set_ylabel(f"Trial {trial}\nNeuron")
            else:
                rate_image = image
            if row == 0:
                axes.set_title(title)
            if row == many - 1:
                axes.set_xlabel("Time (s)")
    missing = 1 - observed.sum() / max(1, real.sum())
    which = f"{bandwidth} of {neurons} neurons" if bandwidth < neurons else "All that was recorded"
    heading = f"{which} observed per bin, {missing:.0%} of samples missing"
    figure.suptitle(heading + ("" if r2 is None else f", R² {r2:.2f}"))
    bar = {"shrink": 0.8, "aspect": 40, "pad": 0.01, "location": "bottom"}
    figure.colorbar(count_image, ax=grid[:, 0], label="Spikes per bin (square-root scale)", **bar)
    figure.colorbar(
        rate_image, ax=grid[:, 1:], label="Firing rate (spikes/s, square-root scale)", **bar
    )
    if missing > 0:
        handle = Patch(facecolor=MISSING, edgecolor=GREY, label="not observed")
        figure.legend(handles=[handle], loc="outside lower left", frameon=False)
    return figure


def _open(axes: Axes) -> None:
    """Leave the two spines that carry the scales."""
    axes.spines[["top", "right"]].set_visible(False)
