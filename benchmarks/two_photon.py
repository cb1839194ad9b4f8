"""Two-photon imaging of a population with known rates: what its timing within a frame is worth.

    python -m benchmarks.two_photon

A population driven by a Lorenz system fires, its calcium is scanned line by line, and the frames
are deconvolved to events. Zhu, Grier et al. (2022, Nature Neuroscience 25:1724) made such data to
show that rates faster than the frames can be inferred if each neuron's own time is kept.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Integer, Num
from matplotlib.figure import Figure

import sbtt_jax
from benchmarks import report
from sbtt_jax import cli, recipes
from sbtt_jax.data import lorenz, problem
from sbtt_jax.data.frames import bin_frames
from sbtt_jax.data.objects import Recording
from sbtt_jax.data.recording import assemble
from sbtt_jax.run import baselines, plots
from sbtt_jax.run.scores import view

FINE = 5  # steps of spikes and calcium in a bin
LEAD = 20  # bins before each trial

Events = Float32[np.ndarray, "trial bin neuron"]


class TwoPhoton(NamedTuple):
    """Events of a population as imaging has them, in bins, and what they came from.

    Trials of a condition have the same rates: `rates[condition]` is aligned with the events. An
    event is what was added to a neuron's calcium since its sample in the frame before, in spikes.
    """

    subframe: Events  # NaN but in bins in which the scan met the neuron
    whole_frames: Events  # the same, as if the scan met all neurons at one moment of a frame
    spikes: Int[np.ndarray, "trial bin neuron"]
    rates: Float32[np.ndarray, "condition bin neuron"]  # expected spikes per bin
    latents: Float32[np.ndarray, "condition bin 3"]  # the Lorenz states, standardised
    condition: Int[np.ndarray, " trial"]
    offsets: Float[np.ndarray, " neuron"]  # seconds from a frame's beginning
    bin_width: float  # seconds


def simulate(
    seed: int = 0,
    *,
    frequency: float = 8.0,
    conditions: int = 20,
    trials_per_condition: int = 20,
    bins: int = 60,
    neurons: int = 60,
    bin_width: float = 0.01,
    frame_rate: float = 30.0,
    decay: float = 0.4,
    noise: float = 0.2,
    threshold: float = 2.0,
    whole_at: float = 0.0,
    mean_rate: float = 8.0,
    log_rate_sd: float = 1.0,
) -> TwoPhoton:
    """Draw a population and image it; same seed, same arrays.

    frequency: turns of the Lorenz system per second. bin_width, decay (of calcium): seconds.
    frame_rate: per second. mean_rate (spikes/s), log_rate_sd: as in `lorenz.generate`.
    noise: standard deviation of a calcium sample, as a share of what a spike adds.
    threshold: of its noise's standard deviations, how many an event must exceed; 0 keeps all that
      are positive.
    whole_at: where in a frame whole frames stand, from 0 (its beginning, half a frame too early on
      average) to 1. At 0.5, a neuron's own time is all that they lack.

    Each trial begins at a random moment of a frame.
    """
    rng = np.random.default_rng((seed, 1))
    period, step = 1 / frame_rate, bin_width / FINE
    tail = int(np.ceil(4 * period / bin_width))  # bins after it, so that samples fill its last
    made = lorenz.generate(
        seed, conditions=conditions, trials_per_condition=trials_per_condition,
        bins=FINE * (LEAD + bins + tail), neurons=neurons, bin_width=step, mean_rate=mean_rate,
        log_rate_sd=log_rate_sd, turn_duration=1 / frequency,
    )  # fmt: skip
    inside = slice(FINE * LEAD, FINE * (LEAD + bins))
    fine, (trials, steps) = made.rates[:, inside], made.counts.shape[:2]

    offsets = period * rng.random(neurons)
    begin = period * rng.random((trials, 1))  # of the first frame, from the first step
    frames = int(steps * step * frame_rate) - 1
    frame_times = begin + period * np.arange(frames)
    at = ((frame_times[..., None] + offsets) / step).astype(int)
    sampled = np.take_along_axis(calcium(made.counts, np.exp(-step / decay)), at, axis=1)
    sampled += noise * rng.standard_normal(sampled.shape, np.float32)
    events = deconvolved(sampled, np.exp(-period / decay), threshold * noise)

    # An event tells of the time between two samples, and stands in its middle.
    middle, start = frame_times[:, 1:] - period / 2, LEAD * bin_width
    binned = (
        bin_frames(events, middle, own, bin_width, start=start)[:, :bins]
        for own in (offsets, np.full(neurons, whole_at * period))
    )
    return TwoPhoton(
        *binned,
        spikes=_summed(made.counts[:, inside].astype(int)),
        rates=_summed(fine),
        latents=made.latents[:, inside][:, FINE // 2 :: FINE],
        condition=made.condition,
        offsets=offsets,
        bin_width=bin_width,
    )


def calcium(
    spikes: Integer[np.ndarray, "trial step neuron"], kept: float
) -> Float32[np.ndarray, "trial step neuron"]:
    """An autoregressive process of order 1: each spike adds 1, and a share `kept` of what was there
    is left after a step."""
    level = spikes.astype(np.float32)
    for now in range(1, level.shape[1]):
        level[:, now] += kept * level[:, now - 1]
    return level


def deconvolved(
    sampled: Float32[np.ndarray, "trial frame neuron"], kept: float, threshold: float
) -> Float32[np.ndarray, "trial frame-1 neuron"]:
    """What was added since the frame before, in spikes; 0 where that is not above a threshold.

    kept: share of what was there that is left a frame later. threshold: for a single sample; that
      of a difference is larger, as its noise is.

    What a spike adds has decayed a little when it is sampled; events are larger by as much as it
    has on average.
    """
    added = sampled[:, 1:] - kept * sampled[:, :-1]
    least = threshold * np.sqrt(1 + kept**2)
    decayed = (1 - kept) / -np.log(kept)  # on average
    return np.where(added > least, added / decayed, 0).astype(np.float32)


def _summed(fine: Num[np.ndarray, "row step neuron"]) -> Num[np.ndarray, "row bin neuron"]:
    """Over the steps of each bin."""
    rows, steps, neurons = fine.shape
    return fine.reshape(rows, steps // FINE, FINE, neurons).sum(2)


@dataclass
class Arguments:
    """Compare each neuron's own sampling time with whole frames, at several speeds."""

    frequencies: tuple[float, ...] = (3.0, 6.0, 10.0, 15.0)
    """Turns of the Lorenz system per second."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of populations, recordings and models."""
    epochs: int | None = None
    """Of training, if not as many as the recipe has."""
    out: str = str(report.RESULTS)
    """Folder for two_photon.json and two_photon.png."""


# Each neuron at its own time, but for whole frames, in the middle of which all are.
NAMES = {
    "sub-frame": "sbtt-jax",
    "whole frames": "sbtt-jax, whole frames",
    "low_rank": "low rank",
    "psth": "PSTH",
    "smoothing": "Gaussian smoothing",
}


def measure(frequency: float, seed: int, epochs: int | None = None) -> dict[str, float]:
    """Mean over neurons of the squared correlation of inferred and true rates, in validation
    trials. Events are in units of their own, so a linear scale of each neuron is free."""
    made = simulate(seed, frequency=frequency, whole_at=0.5)
    true = made.rates[made.condition]
    recipe, scores = recipes.load(recipes.named("two_photon")), {}
    train = {"epochs": epochs, "warmup_epochs": 0} if epochs else {}
    for name, events in (("sub-frame", made.subframe), ("whole frames", made.whole_frames)):
        model = recipe.model.model_dump()
        how = {"condition": made.condition, "seed": seed, "model": model, "train": train}
        fitted = sbtt_jax.fit(events, bin_width=made.bin_width, **how)
        known = Recording(events, bin_width=made.bin_width, condition=made.condition)
        data = assemble(known.arrays, **problem.reading(fitted.settings) | {"bin_width": None})
        scores[name] = correlation(fitted.infer(events).rates[data.valid], true[data.valid])
        if name == "sub-frame":
            for one in baselines.predictions(view(fitted.settings, data, data.neurons)):
                if one.baseline in NAMES:
                    rates = one.rates[..., : data.neurons]
                    scores[one.baseline] = correlation(rates, true[data.valid])
    return scores


def correlation(inferred: np.ndarray, true: np.ndarray) -> float:
    """Squared, over trials and bins that have both, mean over neurons."""
    inside = np.isfinite(inferred).all(2)
    pairs = zip(inferred[inside].T, true[inside].T, strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] ** 2 for a, b in pairs]))


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.two_photon")
    warnings.simplefilter("ignore")
    rows, out = [], report.writable(given.out)
    for frequency in given.frequencies:
        for seed in given.seeds:
            scores = measure(frequency, seed, given.epochs)
            rows.append({"frequency": frequency, "seed": seed, **scores})
            print(rows[-1], flush=True)
            report.write(out, "two_photon", {"rows": rows})
    print(table(rows))
    plots.save(figure(rows), out / "two_photon.png")
    return 0


def table(rows: Sequence[dict[str, float]]) -> str:
    """As Markdown: means over seeds, and the range of each."""
    lines = []
    for frequency in dict.fromkeys(row["frequency"] for row in rows):
        cells = [f"{frequency:g}"]
        for name in NAMES:
            values = [row[name] for row in rows if row["frequency"] == frequency]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(cells)
    return report.table(["turns/s", *NAMES.values()], lines)


def figure(rows: Sequence[dict[str, float]]) -> Figure:
    """R2 against speed; a dot per seed, lines through their means."""
    drawn = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = drawn.subplots()
    for (name, label), color in zip(NAMES.items(), plots.PALETTE, strict=False):
        speeds = sorted({row["frequency"] for row in rows})
        means = [np.mean([r[name] for r in rows if r["frequency"] == f]) for f in speeds]
        line = "--" if name in baselines.BASELINES else "-"
        axes.plot(speeds, means, line, color=color, label=label)
        axes.plot([r["frequency"] for r in rows], [r[name] for r in rows], ".", color=color)
    axes.set(xlabel="Turns of the Lorenz system per second", ylabel="R² of inferred rates")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


if __name__ == "__main__":
    sys.exit(cli.status(main, sys.argv[1:]))
