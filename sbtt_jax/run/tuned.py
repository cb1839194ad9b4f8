"""What a search leaves in the run folder for people: a figure, and the winner's settings."""

import itertools
from collections.abc import Iterable, Sequence

from sbtt_jax import config, grid, recipes
from sbtt_jax.config import Settings
from sbtt_jax.run import lineage, plots
from sbtt_jax.run.files import Row, atomic_write, saving
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.training import tuning


def write(folder: RunFolder, settings: Settings) -> None:
    """Draw the search for each model of a run, and write settings that train it again without a
    search: those of the winner's line of descent."""
    tuned, chosen = tuning.ranges(settings), folder.read_winners()
    logarithmic = {name: own.log for name, own in tuned.items()}
    for key, members in lineage.populations(folder.read_history()).items():
        path = folder.tuning / f"bandwidth_{key.bandwidth:02d}_seed_{key.seed}"
        with saving(path):
            folder.tuning.mkdir(exist_ok=True)
            descent = lineage.descent(members, chosen.get(key, lineage.winner(members)))
            if "latent_size" in descent[0]:
                logarithmic["latent_size"] = False
            drawn = plots.search(members, descent, logarithmic, str(key))
            plots.save(drawn, path.with_suffix(".png"))
            if descent[0]["epoch"]:  # what it began with is not known
                continue
            again = recipes.dump(schedule(grid.settings_of(settings, key), descent, logarithmic))
            with atomic_write(path.with_suffix(".yaml")) as part:
                part.write_text(again, encoding="utf-8")


def schedule(settings: Settings, rows: Sequence[Row], names: Iterable[str]) -> Settings:
    """The settings of a run that trains one model with what the rows of history.csv say of each
    epoch."""
    changes = [
        (after["epoch"], name, after[name])
        for before, after in itertools.pairwise(rows)
        for name in names
        if after[name] != before[name]
    ]
    settings = grid.with_values(settings, {name: rows[0][name] for name in names})
    return config.updated(settings, tune=0, changes=changes)
