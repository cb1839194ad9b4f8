"""Does tuning help on real recordings?

    python -m benchmarks.tuning --recordings FOLDER

Every HDF5 file in the folder is used as it was recorded, and thinned to a third of its neurons per
bin. The first of the models that are tuned keeps the recipe's settings to the end, so one run has
both: the recipe as it is, and the model of least loss at the points that choose. Both are scored in
bits per spike at held-out points of the validation trials, which chose nothing. For each seed there
is another split, other masks and other held-out points.

Models are kept in run folders, so that what was interrupted continues, and what is there is only
evaluated.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.recordings import (
    KINDS,
    ROOT,
    bandwidths,
    cell,
    ends,
    recordings,
    scores,
    summary,
)
from sbtt_jax import cli, config, recipes
from sbtt_jax.config import Settings
from sbtt_jax.data import problem
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import Trained, restore
from sbtt_jax.run.scores import View, view
from sbtt_jax.run.train import train
from sbtt_jax.run.winners import Choice
from sbtt_jax.training import devices

Models = dict[str, Trained]


@dataclass
class Arguments:
    """Tune the recipe for recordings on all files of a folder, and score it beside the recipe."""

    recordings: str = str(ROOT.parent / "shared" / "recordings")
    """Folder with recordings (HDF5)."""
    config: str = str(ROOT / "configs" / "tuned.yaml")
    """Settings file of the search."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the split, masks, held-out points and weights."""
    cores: int = 2
    """CPU cores, among which members are divided."""
    runs: str = str(ROOT / "runs" / "tuning")
    """Folder for the run folders."""
    out: str = str(report.RESULTS)
    """Folder for tuning.json."""


def tuned(
    recipe: Settings, file: Path, seed: int, runs: Path
) -> Iterator[tuple[View, Models, dict[str, Any]]]:
    """A search for each bandwidth: what its models see, its winner and the recipe as given, and why
    that won: its row of winners.csv, with the number of its latents."""
    settings = config.updated(recipe, seeds=[seed], data={"path": str(file), "seed": seed})
    data = problem.load(settings)
    for bandwidth in bandwidths(data.neurons)[:2]:  # all neurons, and a third of them
        thinned = {"bandwidths": [bandwidth], "data": {"bin_width": data.bin_width}}
        own, run = (
            config.updated(settings, **thinned),
            f"{report.slug(file.stem)}_{bandwidth}_{seed}",
        )
        train(own, runs / run, resume=(runs / run / "config.yaml").exists())
        (winner,) = restore(runs / run).values()
        (as_given,) = restore(runs / run, tuned=False).values()
        with RunFolder(runs / run).winners.open(newline="", encoding="utf-8") as table:
            (choice,) = csv.DictReader(table)
        why = {name: float(choice[name]) if choice[name] else None for name in Choice._fields}
        why["latents"] = winner.settings.model.latent_size
        yield view(own, data, bandwidth), {"model": winner, "recipe": as_given}, why


def table(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """A Markdown table of scores at one kind of points, one row per recording and bandwidth."""
    header = ["recording", "observed", "recipe", "**tuned**", "gain", "gain of each seed"]
    lines = []
    for row in rows:
        if (found := row["scores"].get(kind)) is None:
            continue
        each = zip(found["model"]["seeds"], found["recipe"]["seeds"], strict=True)
        which = row["recording"], f"{row['bandwidth']} of {row['neurons']}"
        means = cell(found["recipe"]), f"**{cell(found['model'])}**", ends(found["gain"], "+.3f")
        lines.append([*which, *means, ", ".join(f"{one - other:+.3f}" for one, other in each)])
    return report.table(header, lines)


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.tuning")
    recipe, runs, out = recipes.load(given.config), Path(given.runs), report.writable(given.out)
    files = recordings(given.recordings)
    devices.cache_compiled()
    devices.use_cores(given.cores)
    rows: list[dict[str, Any]] = []
    for file in files:
        found: dict[int, list[Any]] = {}
        for seed in given.seeds:
            for of_data, models, why in tuned(recipe, file, seed, runs):
                here = scores(of_data, models, baselines=False)
                found.setdefault(of_data.bandwidth, []).append((here, why))
        first = {"recording": file.stem, "neurons": of_data.data.neurons}
        for bandwidth, both in found.items():
            by_seed, choices = zip(*both, strict=True)
            kinds = {kind: summary([one[kind] for one in by_seed]) for kind in by_seed[0]}
            own = {"bandwidth": bandwidth, "choices": choices, "scores": kinds}
            rows.append(first | own)
        settings = recipe.model_dump(mode="json")
        path = report.write(out, "tuning", {"settings": settings, "recordings": rows})
    for kind, words in KINDS.items():
        print(f"\nBits per spike at {words}, means of {len(given.seeds)} seeds, 95% intervals\n")
        print(table(rows, kind))
    for kind in KINDS:
        found = [row["scores"][kind] for row in rows if kind in row["scores"]]
        mean = {name: np.mean([one[name]["mean"] for one in found]) for name in ("model", "recipe")}
        share = (mean["model"] - mean["recipe"]) / abs(mean["recipe"])  # which may be below 0
        print(
            f"\n{KINDS[kind]}: {mean['recipe']:.3f} by the recipe, {mean['model']:.3f} tuned, "
            f"{share:+.1%} on average"
        )
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
