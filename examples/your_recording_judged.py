# %% [markdown]
# # Your own recording, judged
#
# Nobody knows the true firing rates of a real recording. You can still find out whether inferred
# rates are any good: hide some of the spikes that were recorded, and see how well they are
# predicted; then see whether something simpler would have done as well.
#
# This notebook goes that way from an NWB file to a figure, and to a case in which the model is
# *not* the best choice. The first part makes the file; with your own, begin at [Look before you
# train](#Look-before-you-train). It needs the extras `nwb` and `xarray`; in a checkout, `pip
# install ".[all]"` installs them.
#
# If you have an array with NaN, read [From NaNs to rates in ten minutes](from_nans_to_rates.ipynb)
# first.

# %%
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pynwb
import xarray
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter1d

from sbtt_jax import config, recipes
from sbtt_jax.data import problem
from sbtt_jax.run.evaluate import evaluate, table
from sbtt_jax.run.inspect import inspect
from sbtt_jax.run.train import train

Path("runs").mkdir(exist_ok=True)

# %% [markdown]
# ## A session
#
# An animal reaches to one of four targets after a go cue, 240 times in 22 minutes, while 24 units
# are recorded. It reacts when it is ready, 0.15 to 0.45 s after the cue, and moves faster in some
# trials than in others. Units differ in rate, in preferred direction, and in how much they care
# about a movement at all.
#
# Two things happened that happen in real sessions: unit 105 was lost between minutes 5 and 9, and
# unit 117 only appeared at minute 6. The times at which a unit was *not* recorded are not times at
# which it was silent, and the file says so in `obs_intervals`.

# %%
FILE = "runs/reaches.nwb"
TRIALS, UNITS = 240, 24
rng = np.random.default_rng(1)

start = 2 + np.cumsum(rng.uniform(4.5, 6.5, TRIALS))  # seconds
go_cue = start + rng.uniform(0.5, 1.0, TRIALS)
stop = go_cue + 1.2
session = stop[-1] + 5
target = rng.permutation(np.arange(TRIALS) % 4)
moves = go_cue + rng.uniform(0.15, 0.45, TRIALS)
vigor = rng.normal(1, 0.25, TRIALS)

clock = np.arange(0, session, 0.002)  # the simulation's own time
movement = np.zeros((len(clock), 3))  # how fast, and in which direction
for trial in range(TRIALS):
    now = (clock > moves[trial]) & (clock < moves[trial] + 0.5)
    speed = vigor[trial] * np.sin(np.pi * (clock[now] - moves[trial]) / 0.5) ** 2
    angle = np.pi / 2 * target[trial]
    movement[now] = speed[:, None] * np.array([1, np.cos(angle), np.sin(angle)])
preferred, care = rng.uniform(0, 2 * np.pi, UNITS), rng.uniform(0, 1.2, UNITS)
tuning = care * np.array([rng.normal(0.4, 0.5, UNITS), np.cos(preferred), np.sin(preferred)])
rates = rng.uniform(4, 15, UNITS) * np.exp(movement @ tuning)  # spikes/s

observed = [[[0.0, session]] for _ in range(UNITS)]
observed[5], observed[17] = [[0.0, 300.0], [540.0, session]], [[360.0, session]]
spike_times = []
for unit in range(UNITS):
    times = clock[rng.random(len(clock)) < rates[:, unit] * 0.002]
    recorded = [(times >= begin) & (times < end) for begin, end in observed[unit]]
    spike_times.append(times[np.any(recorded, axis=0)])


def write(path, trials):
    """The session as an NWB file with these trials."""
    file = pynwb.NWBFile("Simulated reaches", "reaches", datetime(2024, 5, 1, tzinfo=UTC))
    for unit in range(UNITS):
        file.add_unit(id=100 + unit, spike_times=spike_times[unit], obs_intervals=observed[unit])
    file.add_trial_column("go_cue", "when the target was shown, seconds")
    file.add_trial_column("target", "where it was")
    for trial in trials:
        own = {"go_cue": go_cue[trial], "target": ["right", "up", "left", "down"][target[trial]]}
        file.add_trial(start_time=start[trial], stop_time=stop[trial], **own)
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)


write(FILE, range(TRIALS))

# %% [markdown]
# ## Look before you train
#
# These settings are all that has to be said about the file: bins of 20 ms from 0.2 s before to 0.8
# s after the go cue, and which column of the trials is their condition. All else is the recipe for
# recordings. `inspect` says what would be read, and changes nothing.

# %%
settings = config.updated(
    recipes.load(recipes.named("recording")),
    data={
        "path": FILE,
        "bin_width": 0.02,
        "align": "go_cue",
        "window": (-0.2, 0.8),
        "condition": "target",
    },
)
print("\n".join(inspect(settings)))

# %% [markdown]
# Check the numbers: are there as many trials and units as you think, are the rates believable? Here
# some points are not observed, because of the two units; that a bin which was lost and a bin
# without a spike are told apart is what `obs_intervals` are for. A file without them gets a note.
#
# ## Train and judge
#
# In a terminal, it takes two commands:
#
#     sbtt train --config recording --data runs/reaches.nwb --data.bin_width 0.02 \
#         --data.align go_cue --data.window -0.2 0.8 --data.condition target --out runs/reaches
#     sbtt evaluate runs/reaches
#
# In a checkout they are `python train.py` and `python evaluate.py`. These are the functions behind
# them:

# %%
train(settings, "runs/reaches", overwrite=True)
found = evaluate("runs/reaches")

# %% [markdown]
# Everything is in the run folder now: `evaluation/metrics.csv` has the scores of the model, and
# `evaluation/baselines.csv` those of what you could have done without one, at the same points. The
# parameters of the baselines were chosen by the same points that chose the model's epoch.

# %%
SHOWN = {"parameters": "parameters", "bits_per_spike_heldout": "bits per spike"}
SHOWN |= {f"bits_per_spike_heldout_{end}": end for end in ("low", "high")}


def judged(run):
    """Scores at held-out points, best first."""
    model = pandas.read_csv(f"{run}/evaluation/metrics.csv").assign(baseline="sbtt-jax")
    scores = pandas.concat([pandas.read_csv(f"{run}/evaluation/baselines.csv"), model])
    scores = scores.set_index("baseline").rename_axis(None)
    scores = scores[list(SHOWN)].rename(columns=SHOWN).fillna({"parameters": ""})
    return scores.sort_values("bits per spike", ascending=False).round(3)


judged("runs/reaches")

# %%
BLUE, ORANGE, GREEN, GREY, MISSING = "#0072B2", "#D55E00", "#009E73", "#888888", "#F2D8C4"


def draw(scores):
    axes = plt.figure(figsize=(7, 2.8), layout="constrained").add_subplot()
    for place, (name, row) in enumerate(scores[::-1].iterrows()):
        color = ORANGE if name == "sbtt-jax" else GREY
        axes.plot([row.low, row.high], [place, place], color=color, lw=2)
        axes.plot(row["bits per spike"], place, "o", color=color)
    axes.axvline(0, color="k", lw=0.6)
    axes.set_yticks(range(len(scores)), [name.replace("_", " ") for name in scores.index[::-1]])
    axes.set_xlabel("Bits per spike at held-out points of validation trials")
    axes.spines[["top", "right"]].set_visible(False)


draw(judged("runs/reaches"))

# %% [markdown]
# How to read this:
#
# - *Bits per spike* is how much better the rates predict counts than the mean count of each neuron
#   does. The counts are a fifth of those of the validation trials, chosen at random. They were
#   hidden when the rates were inferred, and chose nothing: no epoch, no parameter.
# - Lines are 95% intervals of a bootstrap over trials. All rows are scored at the same points, so
#   they rise and fall together, and a difference is surer than two intervals that overlap look.
#   These files do not say how sure; run again with other validation trials (`--data.seed 1`), and
#   see whether the order stays.
# - Small numbers are normal. Most of what a neuron does in 20 ms is chance, and no rate predicts
#   it. Compare with the baselines, not with numbers of other recordings.
# - 0 is the mean over the very points that are judged, which nobody knows beforehand. That is why
#   even `mean_rate`, the mean over the training trials, is a little below.
#
# `metrics.csv` also has `bits_per_spike`, at points that *were* given. Do not judge by it.
# Smoothing looks splendid there, because it is shown the spikes that it then predicts:

# %%
smoothing = next(row for row in found.baselines if row["baseline"] == "smoothing")
for name, row in (("smoothing", smoothing), ("sbtt-jax", found.models[0])):
    given, hidden = row["bits_per_spike"], row["bits_per_spike_heldout"]
    print(f"{name:9}  at points given {given:.3f},  at points held out {hidden:.3f}")

# %% [markdown]
# ## The rates
#
# `rates.h5` has the rates of all trials. xarray opens it, with units by their own ids and times
# around the go cue. Its groups are named after the number of neurons per bin and the seed.

# %%
rates = xarray.open_dataset(
    "runs/reaches/evaluation/rates.h5",
    group=f"bandwidth_{UNITS}/seed_0",
    engine="h5netcdf",
)
print(rates)

# %% [markdown]
# Does what you know of the recording come out? Here are three units, averaged over the validation
# trials to each target: counts, smoothed with a Gaussian of 40 ms (dashed), and inferred rates
# (solid). Some peaks are lower or rounder than those of the counts; where the two differ by more
# than the noise of a dozen trials, ask why. The counts are read with the same settings, so they are
# those that the model was given.

# %%
data = problem.load(settings)
counts = np.where(data.observed, data.counts, np.nan) / data.bin_width  # spikes/s
valid = rates.split.values == "valid"
spread = rates.rates.mean("trial").std("time")  # units that change most
shown = rates.neuron.values[np.argsort(-spread.values)[:3]]

figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), sharex=True, layout="constrained")
for unit, axes in zip(shown, panels, strict=True):
    column = list(rates.neuron.values).index(unit)
    for place, color in {"down": BLUE, "left": ORANGE, "right": GREEN, "up": "k"}.items():
        some = valid & (rates.condition.values == place)
        average = np.nanmean(counts[some, :, column], axis=0)
        axes.plot(rates.time, gaussian_filter1d(average, 2), "--", color=color, lw=1)
        inferred = rates.rates.sel(neuron=unit)[some].mean("trial")
        axes.plot(rates.time, inferred, color=color, label=place)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set(title=f"Unit {unit}", xlabel="Time from go cue (s)")
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("Firing rate (spikes/s)")
_ = panels[0].legend(title="Target", frameon=False)
# %% [markdown]
# And this is unit 105, which was lost for a while (colored). The model infers its rates there from
# the other units.

# %%
column = list(rates.neuron.values).index(105)
figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, layout="constrained")
extent = (-0.2, 0.8, TRIALS, 0)
seen = plt.get_cmap("Greys").with_extremes(bad=MISSING)
for axes, image, cmap, most, label in (
    (panels[0], counts[..., column] * data.bin_width, seen, 3, "Spikes per bin"),
    (panels[1], rates.rates.sel(neuron=105), "viridis", None, "Inferred rate (spikes/s)"),
):
    how = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    drawn = axes.imshow(image, cmap=cmap, vmin=0, vmax=most, **how)
    figure.colorbar(drawn, ax=axes, label=label, ticks=MaxNLocator(integer=True))
    axes.set_xlabel("Time from go cue (s)")
_ = panels[0].set_ylabel("Trial")
# %% [markdown]
# Nothing can tell how good the rates of those trials are: there are no counts to compare with. The
# held-out points are of times at which units *were* recorded, and mostly single bins of neurons
# whose other bins were given. If you want to use rates where a neuron was lost for long, measure
# that: hide a neuron that you have. `--bandwidths 12 6 --data.pattern channels` trains models that
# are given 12 and 6 of the neurons in each trial, and `bits_per_spike_missing` says how well they
# infer the rest.
#
# `runs/reaches/evaluation/report.html` has all of this on one page to pass around: holes, scores,
# counts and rates of single trials, PSTHs, latents, inferred inputs, training curves, and what to
# be careful about.
#
# ## When the model is not better
#
# Suppose that there were only the last 16 trials of the session, and do the same with them:

# %%
write("runs/few.nwb", range(TRIALS - 16, TRIALS))
few = config.updated(settings, data={"path": "runs/few.nwb"})
train(few, "runs/few", overwrite=True)
found = evaluate("runs/few")
draw(judged("runs/few"))

# %%
print(table(found).splitlines()[-1])
judged("runs/few")

# %% [markdown]
# That is what it looks like: the model is behind something simpler, and `evaluate` ends with a line
# that says so. Averaging the trials to each target (`psth`) would have done better, and even that
# is not above zero: thirteen trials tell little about the mean rates, and with three trials to
# judge by, no interval means much, as `evaluate` warned. In such a case:
#
# - **Do not use the rates of the model.** Use the baseline that predicts best, if it is above zero.
# - **Look at the training curves** in `history.png`. If `heldout_nll` is still falling at the end,
#   train for more epochs. If it rises soon after its minimum, as with few trials, the model has too
#   little to learn from: more trials help, also ones of other conditions or blocks.
# - **Is there something to find?** If units have little in common, no model of a population can
#   beat smoothing each of them. If `psth` is best, trials of a condition may just be alike.
# - **Choose settings by `heldout_nll`** in `history.csv`, with the same `data.seed`, and never by
#   the column that you report. Otherwise it means no more than the points that were given.
