"""How well does the recipe for recordings predict, beside simple estimates, on real recordings?

    python -m benchmarks.recordings --recordings FOLDER

Every HDF5 file in the folder is used as it was recorded, and thinned to a third and a tenth of its
neurons per bin (not below three); with `--pattern channels`, to a half and a third of them per
trial. For each seed there is another split into training and validation trials, other masks and
other held-out points. Scores are bits per spike at two kinds of points of the validation trials:
held-out ones, and those that were recorded and thinned out. Neither kind was seen by any model or
baseline, nor chose anything: no epoch, and no parameter of a baseline.

Models are kept in run folders, so that what was interrupted continues, and what is there is only
evaluated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import report
from sbtt_jax import cli, config, recipes
from sbtt_jax.config import Settings
from sbtt_jax.data import problem
from sbtt_jax.errors import InputError
from sbtt_jax.model import metrics
from sbtt_jax.run import priors
from sbtt_jax.run.baselines import BASELINES, predictions
from sbtt_jax.run.restore import Trained, restore
from sbtt_jax.run.scores import View, interval, view
from sbtt_jax.run.train import train
from sbtt_jax.training import devices

ROOT = Path(__file__).parent.parent
LEAST = 3  # neurons per bin
PARTS = 1, 3, 10  # of the neurons
PARTS_OF_TRIALS = 2, 3
Score = Mapping[str, tuple[np.ndarray, np.ndarray]]  # bits, and spikes, of each trial

KINDS = {"heldout": "held-out points", "thinned": "points that were thinned out"}


@dataclass
class Arguments:
    """Train the recipe for recordings on all files of a folder, and score it beside baselines."""

    recordings: str = str(ROOT.parent / "shared" / "recordings")
    """Folder with recordings (HDF5)."""
    config: str = str(ROOT / "configs" / "recording.yaml")
    """Settings file of the recipe."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the split, masks, held-out points and weights."""
    pattern: Literal["random", "channels"] = "random"
    """Thinned to so many neurons of each bin, or of each trial."""
    runs: str = str(ROOT / "runs" / "recordings")
    """Folder for the run folders."""
    out: str = str(report.RESULTS)
    """Folder for recordings.json, or recordings_channels.json."""


def recordings(folder: str) -> list[Path]:
    """The HDF5 files of a folder; InputError if there are none."""
    if files := sorted(Path(folder).glob("*.h5")):
        return files
    raise InputError(f"--recordings {folder}: there is no .h5 file; name a folder")


def bandwidths(neurons: int, parts: Sequence[int] = PARTS) -> tuple[int, ...]:
    """These parts of all neurons: a half is 2."""
    return tuple(dict.fromkeys(min(neurons, max(LEAST, neurons // part)) for part in parts))


def trained(
    recipe: Settings, file: Path, seed: int, runs: Path, pattern: str = "random"
) -> Iterator[tuple[View, Any]]:
    """The models of one recording and seed, each with what it sees of the data."""
    settings = config.updated(recipe, seeds=[seed], data={"path": str(file), "seed": seed})
    data, run = problem.load(settings), f"{report.slug(file.stem)}_{seed}"
    thinned = bandwidths(data.neurons)
    if pattern == "channels":
        thinned, run = bandwidths(data.neurons, PARTS_OF_TRIALS), f"{run}_{pattern}"
    own = {"bin_width": data.bin_width, "pattern": pattern}
    settings, run = config.updated(settings, bandwidths=thinned, data=own), runs / run
    train(settings, run, resume=(run / "config.yaml").exists())
    for key, model in restore(run).items():
        yield view(settings, data, key.bandwidth), model


def scores(of_data: View, models: Mapping[str, Trained], *, baselines: bool) -> dict[str, Score]:
    """Of each kind of points, `metrics.bits_by_trial` by what predicted them."""
    blind = {}
    if baselines:
        blind = {found.baseline: np.array(found.blind) for found in predictions(of_data)}
    for name, one in models.items():
        blind[name] = of_data.blind(one.model, priors.learn(of_data, one.model))
    data, valid = of_data.data, of_data.data.valid
    points = {"heldout": of_data.reporting}
    if (thinned := data.observed[valid] & ~of_data.observed[valid]).any():
        points["thinned"] = thinned
    return {
        kind: {n: metrics.bits_by_trial(r, data.counts[valid], where) for n, r in blind.items()}
        for kind, where in points.items()
    }


def summary(by_seed: Sequence[Score]) -> dict[str, Any]:
    """Of one recording and bandwidth: means over seeds, and intervals over the trials of all."""
    pooled = {
        name: [np.concatenate(parts) for parts in zip(*(one[name] for one in by_seed), strict=True)]
        for name in by_seed[0]
    }
    found: dict[str, Any] = {}
    for name, (bits, spikes) in pooled.items():
        each = [metrics.per_spike(*one[name]) for one in by_seed]
        found[name] = {"mean": float(np.mean(each)), "seeds": each}
        found[name]["interval"] = interval(bits, spikes)
    best = max(found.keys() - {"model"}, key=lambda name: found[name]["mean"])
    (bits, spikes), (simple, _) = pooled["model"], pooled[best]
    gain = found["model"]["mean"] - found[best]["mean"]
    found["gain"] = {"over": best, "mean": gain, "interval": interval(bits - simple, spikes)}
    return found


def cell(one: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """A mean of `summary`."""
    return "-" if one is None else format(one["mean"], form)


def ends(one: Mapping[str, Any], form: str = ".3f") -> str:
    """The same with its interval."""
    return f"{cell(one, form)} ({', '.join(format(end, form) for end in one['interval'])})"


def table(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """A Markdown table of scores at one kind of points, one row per recording and bandwidth."""

    names = [name.replace("_", " ") for name in BASELINES]
    header = ["recording", "observed", *names, "**sbtt-jax**", "above the best of them by"]
    lines = []
    for row in rows:
        if (found := row["scores"].get(kind)) is None:
            continue
        simple = (cell(found.get(name)) for name in BASELINES)
        which = row["recording"], f"{row['bandwidth']} of {row['neurons']}"
        lines.append([*which, *simple, f"**{ends(found['model'])}**", ends(found["gain"], "+.3f")])
    return report.table(header, lines)


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.recordings")
    recipe, runs, out = recipes.load(given.config), Path(given.runs), report.writable(given.out)
    files = recordings(given.recordings)
    devices.cache_compiled()
    devices.use_cores(1)
    rows: list[dict[str, Any]] = []
    for file in files:
        found: dict[int, list[Any]] = {}
        for seed in given.seeds:
            for of_data, model in trained(recipe, file, seed, runs, given.pattern):
                bandwidth = model.settings.bandwidths[0]
                here = scores(of_data, {"model": model}, baselines=True)
                found.setdefault(bandwidth, []).append(here)
        first = {"recording": file.stem, "neurons": of_data.data.neurons}
        for bandwidth, by_seed in found.items():
            kinds = {kind: summary([one[kind] for one in by_seed]) for kind in by_seed[0]}
            rows.append({**first, "bandwidth": bandwidth, "scores": kinds})
        settings = recipe.model_dump(mode="json")
        name = "recordings" if given.pattern == "random" else f"recordings_{given.pattern}"
        path = report.write(out, name, {"settings": settings, "recordings": rows})
    for kind, words in KINDS.items():
        print(f"\nBits per spike at {words}, means of {len(given.seeds)} seeds, 95% intervals\n")
        print(table(rows, kind))
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
