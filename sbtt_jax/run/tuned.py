"""What a search leaves in the run folder for people: a figure, and the winner's settings."""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sbtt_jax import config, grid
from sbtt_jax.config import Settings
from sbtt_jax.grid import ModelKey
from sbtt_jax.run import lineage, plots
from sbtt_jax.run.files import atomic_write, saving
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.lineage import Members
from sbtt_jax.run.plots import BLUE, GREY, ORANGE
from sbtt_jax.training import tuning
from sbtt_jax.training.tuning import Range

PANELS_IN_ROW = 3


def write(folder: RunFolder, settings: Settings) -> None:
    """Draw the search for each model of a run, and write settings that train it again without a
    search: those of the winner's line of descent."""
    history, tuned = folder.read_history(), tuning.ranges(settings)
    for key in dict.fromkeys(key._replace(member=None) for key in map(ModelKey.of, history)):
        members = lineage.members(history, key)
        path = folder.tuning / f"bandwidth_{key.bandwidth:02d}_seed_{key.seed}"
        with saving(path):
            folder.tuning.mkdir(exist_ok=True)
            plots.save(figure(members, tuned, str(key)), path.with_suffix(".png"))
            again = config.dump(schedule(grid.settings_of(settings, key), members, tuned))
            with atomic_write(path.with_suffix(".yaml")) as part:
                part.write_text(again, encoding="utf-8")


def schedule(settings: Settings, population: Members, names: Iterable[str]) -> Settings:
    """The settings of a run that trains one model, with those that the winner and its ancestors had
    in each epoch."""
    rows = lineage.descent(population, lineage.winner(population))
    changes = [
        (after["epoch"], name, after[name])
        for before, after in itertools.pairwise(rows)
        for name in names
        if after[name] != before[name]
    ]
    settings = grid.with_values(settings, {name: rows[0][name] for name in names})
    return config.updated(settings, tune=0, changes=changes)


def figure(population: Members, ranges: Mapping[str, Range], title: str) -> Figure:
    """Held-out loss and each setting of all members against epoch; in color, where the winner comes
    from, and the member with the settings that the search began with."""
    panels = ["heldout_nll", *ranges]
    rows = -(-len(panels) // PANELS_IN_ROW)
    drawn = Figure(figsize=(4.2 * PANELS_IN_ROW, 2.7 * rows + 0.6), layout="constrained")
    grid = drawn.subplots(rows, PANELS_IN_ROW, squeeze=False, sharex=True).ravel()
    special = {
        "the winner's line of descent": (
            lineage.descent(population, lineage.winner(population)),
            BLUE,
        ),
        "settings as given": (population[0], ORANGE),
    }
    for axes, name in zip(grid, panels, strict=False):
        for own in population.values():
            _line(axes, own, name, color=GREY, lw=0.7, alpha=0.5)
        for own, color in reversed(special.values()):
            _line(axes, own, name, color=color, lw=2)
        best = min(special["the winner's line of descent"][0], key=lineage.loss)
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
