"""What a search leaves in the run folder for people: a figure of it for each population."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sbtt_jax.run.lineage import Members, descent, loss, winner
from sbtt_jax.run.plots import BLUE, GREY, ORANGE
from sbtt_jax.training.tuning import Range

PANELS_IN_ROW = 3


def figure(population: Members, ranges: Mapping[str, Range], title: str) -> Figure:
    """Held-out loss and each setting of all members against epoch; in color, where the winner comes
    from, and the member with the settings that the search began with."""
    panels = ["heldout_nll", *ranges]
    rows = -(-len(panels) // PANELS_IN_ROW)
    drawn = Figure(figsize=(4.2 * PANELS_IN_ROW, 2.7 * rows + 0.6), layout="constrained")
    grid = drawn.subplots(rows, PANELS_IN_ROW, squeeze=False, sharex=True).ravel()
    special = {
        "the winner's line of descent": (descent(population, winner(population)), BLUE),
        "settings as given": (population[0], ORANGE),
    }
    for axes, name in zip(grid, panels, strict=False):
        for own in population.values():
            _line(axes, own, name, color=GREY, lw=0.7, alpha=0.5)
        for own, color in reversed(special.values()):
            _line(axes, own, name, color=color, lw=2)
        best = min(special["the winner's line of descent"][0], key=loss)
        axes.plot(best["epoch"] + 1, best[name], "o", ms=6, mec="k", color=BLUE)
        axes.set_title(
            name.replace("_", " ").replace("heldout nll", "NLL at the points that choose")
        )
        axes.spines[["top", "right"]].set_visible(False)
        if name in ranges and ranges[name].log:
            axes.set_yscale("symlog", linthresh=ranges[name].low)
        if name == "heldout_nll":
            late = np.array([row[name] for own in population.values() for row in own[1:]])
            if late.size and np.isfinite(late).any():
                low, high = np.nanmin(late), np.nanquantile(late, 0.9)
                axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - PANELS_IN_ROW) : len(panels)]:
        axes.set_xlabel("Epoch")
        axes.xaxis.set_tick_params(labelbottom=True)
    handles = [
        Line2D([], [], color=color, lw=2, label=label) for label, (_, color) in special.items()
    ]
    handles.append(Line2D([], [], color=GREY, lw=0.7, label="other members"))
    handles.append(Line2D([], [], color=BLUE, marker="o", mec="k", ls="", label="best epoch"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    drawn.suptitle(title)
    return drawn


def _line(axes, rows, name, **how):
    axes.plot([row["epoch"] + 1 for row in rows], [row[name] for row in rows], **how)
