"""Do intervals of rates hold as much as they say, and what are several seeds worth?

    python -m benchmarks.intervals --run RUN --recordings FOLDER

Of a run on a Lorenz set, with three seeds or more, the share of true rates of the validation trials
inside their 90% intervals. Of recordings, whose rates nobody knows, that of held-out counts inside
the 90% intervals that follow for counts: negative binomial ones, of the rates' mean and variance.
Counts are whole, so these hold more than 90%; what they should hold is beside it. Bits per spike at
the same points are of single models, and of the mean of their rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import nbinom

from benchmarks import report
from benchmarks.recordings import ROOT, bandwidths, recordings
from sbtt_jax import cli, config, recipes
from sbtt_jax.config import Settings
from sbtt_jax.data import problem
from sbtt_jax.errors import InputError
from sbtt_jax.model import intervals, metrics
from sbtt_jax.model.inference import infer_with_variance
from sbtt_jax.observations import predicted
from sbtt_jax.run import priors
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.restore import restore
from sbtt_jax.run.scores import COVERAGE, View, view
from sbtt_jax.run.train import train
from sbtt_jax.training import devices


@dataclass
class Arguments:
    """Count true rates, and held-out counts, inside their intervals."""

    run: str = str(ROOT / "checkpoints" / "lorenz")
    """Run folder of models of a Lorenz set."""
    recordings: str | None = None
    """Folder with recordings (HDF5), which the recipe for recordings is trained on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the models of each recording."""
    runs: str = str(ROOT / "runs" / "intervals")
    """Folder for the run folders."""
    out: str = str(report.RESULTS)
    """Folder for intervals.json."""


def of_counts(view: View, models: Sequence[Any]) -> dict[str, Any]:
    """The share of held-out counts inside their intervals, and the share that should be; bits per
    spike of each model, and of the mean of their rates."""
    data, spread, learn, bits = view.data, None, priors.learner(view), []
    judged = data.judged
    for one in models:
        how = {"prior": learn(one.model), "condition": data.conditions_of(judged)}
        found = infer_with_variance(one.model, *view.of(judged, view.shown), **how)
        rates = predicted(view.observation, found.output)
        spread = intervals.add(spread, rates, found.variance)
        bits.append(metrics.per_spike(*view.heldout_by_trial(rates)))
    of_mean = metrics.per_spike(*view.heldout_by_trial(spread.mean))
    interval = intervals.bounds(spread)
    mean, sd = (values[view.reporting].astype(np.float64) for values in interval[:2])
    counts = data.counts[judged][view.reporting]
    size = mean**2 / np.maximum(sd**2, 1e-9 * mean**2)
    distribution = nbinom(size, size / (size + mean))
    tail = (1 - intervals.LEVEL) / 2
    low, high = distribution.ppf(tail), distribution.ppf(1 - tail)
    should = distribution.cdf(high) - distribution.cdf(low - 1)
    inside = float(((low <= counts) & (counts <= high)).mean())
    return {"inside": inside, "should": float(should.mean()), "bits": bits, "bits_of_mean": of_mean}


def of_recording(recipe: Settings, file: Path, seeds: Sequence[int], runs: Path) -> list[Any]:
    """A row for all neurons of a recording and for a third of them."""
    settings = config.updated(recipe, seeds=seeds, data={"path": str(file)})
    data = problem.load(settings)
    some = bandwidths(data.neurons)[:2]
    settings = config.updated(settings, bandwidths=some, data={"bin_width": data.bin_width})
    run = runs / report.slug(file.stem)
    train(settings, run, resume=(run / "config.yaml").exists())
    models, rows = restore(run), []
    for bandwidth in some:
        own = [one for key, one in models.items() if key.bandwidth == bandwidth]
        which = {"recording": file.stem, "bandwidth": bandwidth, "neurons": data.neurons}
        rows.append(which | of_counts(view(settings, data, bandwidth), own))
    return rows


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.intervals")
    recipe, out = recipes.load(recipes.named("recording")), report.writable(given.out)
    files = recordings(given.recordings) if given.recordings else []
    devices.cache_compiled()
    devices.use_cores(len(given.seeds))
    runs = Path(given.runs)
    found = evaluate(given.run, out=runs / "evaluation").ensembles
    if not found or COVERAGE not in found[0]:
        raise InputError(f"{given.run}: intervals take true rates, and three seeds or more")
    of_rates = [{"bandwidth": row["bandwidth"], "inside": row[COVERAGE]} for row in found]
    print(f"True rates inside their 90% intervals, {given.run}\n")
    rows = [(row["bandwidth"], f"{row['inside']:.1%}") for row in of_rates]
    print(report.table(["observed", "inside"], rows))
    counts = [row for file in files for row in of_recording(recipe, file, given.seeds, runs)]
    if counts:
        print("\nHeld-out counts inside the intervals that follow for counts\n")
        rows = [
            (
                row["recording"],
                f"{row['bandwidth']} of {row['neurons']}",
                f"{row['inside']:.1%}",
                f"{row['should']:.1%}",
                f"{np.mean(row['bits']):.3f}",
                f"{row['bits_of_mean']:.3f}",
            )
            for row in counts
        ]
        heads = ["recording", "observed", "inside", "should be", "bits/spike", "of mean rates"]
        print(report.table(heads, rows))
    path = report.write(out, "intervals", {"rates": of_rates, "counts": counts})
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
