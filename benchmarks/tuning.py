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

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.recordings import KINDS, ROOT, scores, summary
from sbtt_jax import cli, config
from sbtt_jax.config import Settings
from sbtt_jax.data import problem
from sbtt_jax.errors import InputError
from sbtt_jax.run.restore import Trained, restore
from sbtt_jax.run.scores import View, view
from sbtt_jax.run.train import train
from sbtt_jax.training import devices

THINNED = 1, 3  # all neurons, and a third of them


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
    recipe: Settings, file: Path, thinned: int, seed: int, runs: Path
) -> tuple[View, dict[str, Trained], float]:
    """One search: what its models see, its winner and the recipe as given, and seconds of CPU."""
    settings = config.updated(recipe, seeds=[seed], data={"path": str(file), "seed": seed})
    data = problem.load(settings)
    bandwidth = data.neurons // thinned
    settings = config.updated(settings, bandwidths=[bandwidth], data={"bin_width": data.bin_width})
    run = runs / f"{report.slug(file.stem)}_{bandwidth}_{seed}"
    begun = time.process_time()
    train(settings, run, resume=(run / "config.yaml").exists())
    seconds = time.process_time() - begun
    (winner,), (as_given,) = restore(run).values(), restore(run, tuned=False).values()
    return view(settings, data, bandwidth), {"model": winner, "recipe": as_given}, seconds


def table(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """A Markdown table of scores at one kind of points, one row per recording and bandwidth."""
    header = ["recording", "observed", "recipe", "**tuned**", "gain", "seeds"]
    lines = []
    for row in rows:
        if (found := row["scores"].get(kind)) is None:
            continue
        each = zip(found["model"]["seeds"], found["recipe"]["seeds"], strict=True)
        lines.append(
            [
                row["recording"],
                f"{row['bandwidth']} of {row['neurons']}",
                f"{found['recipe']['mean']:.3f}",
                f"**{found['model']['mean']:.3f}**",
                "{:+.3f} ({:+.3f}, {:+.3f})".format(
                    found["gain"]["mean"], *found["gain"]["interval"]
                ),
                ", ".join(f"{one - other:+.3f}" for one, other in each),
            ]
        )
    return report.table(header, lines)


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.tuning")
    recipe = config.load(given.config)
    runs, out = Path(given.runs), report.writable(given.out)
    files = sorted(Path(given.recordings).glob("*.h5"))
    if not files:
        raise InputError(f"--recordings {given.recordings}: there is no .h5 file; name a folder")
    devices.cache_compiled()
    devices.use_cores(given.cores)
    rows: list[dict[str, Any]] = []
    for file in files:
        for thinned in THINNED:
            by_seed = []
            for seed in given.seeds:
                of_data, models, _ = tuned(recipe, file, thinned, seed, runs)
                by_seed.append(scores(of_data, models, baselines=False))
            kinds = {kind: summary([one[kind] for one in by_seed]) for kind in by_seed[0]}
            first = {"recording": file.stem, "neurons": of_data.data.neurons}
            rows.append({**first, "bandwidth": of_data.bandwidth, "scores": kinds})
            settings = recipe.model_dump(mode="json")
            path = report.write(out, "tuning", {"settings": settings, "recordings": rows})
    for kind, words in KINDS.items():
        print(f"\nBits per spike at {words}, means of {len(given.seeds)} seeds, 95% intervals\n")
        print(table(rows, kind))
    for kind in KINDS:
        found = [row["scores"][kind] for row in rows if kind in row["scores"]]
        mean = {name: np.mean([one[name]["mean"] for one in found]) for name in ("model", "recipe")}
        share = mean["model"] / mean["recipe"] - 1
        print(
            f"\n{KINDS[kind]}: {mean['recipe']:.3f} by the recipe, {mean['model']:.3f} tuned, "
            f"{share:+.1%} on average"
        )
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
