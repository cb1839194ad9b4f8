# %% [markdown]
# # From NaNs to rates in ten minutes
#
# Sometimes you cannot record every neuron all of the time. A two-photon microscope visits one part
# of the tissue after another; a probe can have many more sites than wires. What you get is an array
# of spike counts with holes in it.
#
# This notebook makes such an array, trains a model on what was sampled, and infers the firing rate
# of every neuron in every bin, sampled or not. The recording is simulated, so that we can compare
# the inferred rates with the true ones. Training takes about half a minute on two cores.

# %%
import shutil

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter1d

import sbtt_jax
from sbtt_jax.model.metrics import r2

# %% [markdown]
# ## A recording with holes
#
# Imagine 30 neurons of motor cortex while an animal turns a pedal. The population follows the
# cycle: its state goes round a circle, and each neuron fires most at a phase of its own. Every
# trial starts at another phase and is turned at another speed, between 0.8 and 2 cycles per second.
# So no trial repeats another, and there is nothing to average over.
#
# There are 30 sites and 10 wires: in each bin of 20 ms, another 10 neurons are sampled. Trials last
# between 0.8 and 1.2 s.

# %%
BIN_WIDTH = 0.02  # seconds
TRIALS, BINS, NEURONS, WIRES = 240, 60, 30, 10
rng = np.random.default_rng(0)

time = np.arange(BINS) * BIN_WIDTH
speed = rng.uniform(0.8, 2.0, (TRIALS, 1))  # cycles/s
phase = rng.uniform(0, 2 * np.pi, (TRIALS, 1)) + 2 * np.pi * speed * time  # trial x bin
preferred = rng.uniform(0, 2 * np.pi, NEURONS)
depth = rng.uniform(0.5, 1.5, NEURONS)  # how strongly a neuron follows the cycle
mean = rng.uniform(8, 30, NEURONS)
true_rates = mean * np.exp(depth * np.cos(phase[..., None] - preferred))  # spikes/s

# %% [markdown]
# The array that a recording would give us has the axes trial x bin x neuron, holds spike counts,
# and is NaN where a neuron was not sampled. Trials that end early are NaN from there on. That is
# all the bookkeeping there is.

# %%
spikes = rng.poisson(true_rates * BIN_WIDTH).astype(float)
sampled = rng.random(spikes.shape).argsort(axis=2) < WIRES  # another 10 neurons in each bin
spikes[~sampled] = np.nan
lengths = rng.integers(40, BINS + 1, TRIALS)
inside = np.arange(BINS) < lengths[:, None]  # trial x bin
spikes[~inside] = np.nan

unseen = inside[..., None] & np.isnan(spikes)
print(f"spikes: {' x '.join(map(str, spikes.shape))} (trial x bin x neuron)")
print(f"{unseen.sum() / (inside.sum() * NEURONS):.0%} of the points inside trials are missing")
print(f"{np.nansum(spikes):.0f} spikes, {np.nanmean(spikes):.2f} per sampled bin")

# %% [markdown]
# Two trials, as they were recorded. Colored points were not sampled; white ones were, without a
# spike.

# %%
MISSING, BLUE, ORANGE, GREY = "#F2D8C4", "#0072B2", "#D55E00", "#888888"
counts_map = plt.get_cmap("Greys").with_extremes(bad=MISSING)
extent = (0, BINS * BIN_WIDTH, NEURONS + 0.5, 0.5)

figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for trial, axes in enumerate(panels):
    how = {"cmap": counts_map, "vmin": 0, "vmax": 3, "extent": extent, "interpolation": "nearest"}
    image = axes.imshow(spikes[trial].T, aspect="auto", **how)
    axes.axvspan(lengths[trial] * BIN_WIDTH, extent[1], color="white")
    axes.axvline(lengths[trial] * BIN_WIDTH, color=GREY, lw=1)
    axes.set(title=f"Trial {trial}", xlabel="Time (s)")
panels[0].set_ylabel("Neuron")
_ = figure.colorbar(image, ax=panels, label="Spikes per bin", ticks=range(4))
# %% [markdown]
# ## Fit
#
# `sbtt_jax.fit` needs the array and the bin width. We keep the last 40 trials for ourselves, to
# judge the result by, and give it the first 200. Of those it sets a fifth aside for validation, and
# ends training when nothing more is gained there. Add `verbose=True` to see a progress bar.
# Everything else is the recipe for recordings, `configs/recording.yaml`; `data`, `model` and
# `train` change it.

# %%
given, later = slice(0, 200), slice(200, 240)
fitted = sbtt_jax.fit(spikes[given], bin_width=BIN_WIDTH)
fitted

# %% [markdown]
# `fitted.history` has a row per epoch. `heldout_nll` is the negative log-likelihood of points of
# validation trials that were sampled but hidden from the model, so copying the input does not help.
# The weights that are kept are those of the epoch where it was least. From there on, the model only
# learned the noise of its training trials.

# %%
epoch = [row["epoch"] for row in fitted.history]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
train = [row["train_nll"] for row in fitted.history]
hidden = [row["heldout_nll"] for row in fitted.history]
axes.plot(epoch, train, color=GREY, label="training")
axes.plot(epoch, hidden, color=BLUE, label="validation, hidden points")
axes.plot(fitted.epoch, hidden[fitted.epoch], "o", color=BLUE, label="kept")
axes.set(xlabel="Epoch", ylabel="Negative log-likelihood\n(nats per point)")
axes.spines[["top", "right"]].set_visible(False)
_ = axes.legend(frameon=False)
# %% [markdown]
# ## Infer
#
# `infer` takes trials of the same neurons, whether the model has seen them or not, and returns
# rates in spikes/s at all points. Only what comes after a trial's end stays NaN.

# %%
inferred = fitted.infer(spikes)
everywhere = np.array_equal(np.isfinite(inferred.rates).all(2), inside)
print(f"rates: {' x '.join(map(str, inferred.rates.shape))} (trial x bin x neuron)")
print(f"a rate at every point inside trials, and NaN after them: {everywhere}")

# %% [markdown]
# Four neurons of a later trial. A dot is a sampled bin; one spike in 20 ms is 50 spikes/s. Where
# there is no dot, that neuron was not sampled.

# %%
trial = 203
figure, panels = plt.subplots(4, 1, figsize=(8, 7), sharex=True, layout="constrained")
for neuron, axes in zip((3, 10, 17, 24), panels, strict=True):
    axes.plot(time, spikes[trial, :, neuron] / BIN_WIDTH, "k.", ms=5, label="sampled counts")
    axes.plot(time, true_rates[trial, :, neuron], color=GREY, lw=4, alpha=0.5, label="true rate")
    axes.plot(time, inferred.rates[trial, :, neuron], color=ORANGE, label="inferred rate")
    axes.set_ylabel(f"Neuron {neuron}\n(spikes/s)")
    axes.spines[["top", "right"]].set_visible(False)
axes.set(xlabel="Time (s)", xlim=(-0.01, (lengths[trial] - 1) * BIN_WIDTH + 0.01))
handles, labels = axes.get_legend_handles_labels()
_ = figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)

# %% [markdown]
# ## How good is it?
#
# We score the later trials, at the points that were *not* sampled: R² is the fraction of a neuron's
# variance that is explained, averaged over neurons.
#
# Beside it is what you might do without a model: smooth each neuron's own counts with a Gaussian
# that skips what is missing, and pull the result toward the neuron's mean where little was sampled.
# We give smoothing an advantage: its width and its pull are the ones with the best R² against the
# true rates, which nobody knows for a real recording. The model never saw a true rate.

# %%
average = np.nanmean(spikes[given], (0, 1))  # of each neuron, spikes per bin


def smoothed(width, pull):
    """Smoothed counts in spikes/s; width in bins, pull in bins at the neuron's mean rate."""
    kernel = {"sigma": width, "axis": 1, "mode": "constant"}
    peak = width * np.sqrt(2 * np.pi)  # a kernel of height 1, whose sum is a number of bins
    total = peak * gaussian_filter1d(np.nan_to_num(spikes[later]), **kernel)
    seen = peak * gaussian_filter1d(np.isfinite(spikes[later]).astype(float), **kernel)
    return (total + pull * average) / (seen + pull) / BIN_WIDTH


def score(rates):
    return r2(true_rates[later], rates, unseen[later])


choices = [(width, pull) for width in (1, 2, 3, 4, 6, 8, 12) for pull in (0.3, 1, 3, 10, 30)]
best = max(choices, key=lambda choice: score(smoothed(*choice)))
print("R2 at points that were not sampled")
print(f"  smoothing  {score(smoothed(*best)):.2f}, at its best (a width of {20 * best[0]} ms)")
print(f"  sbtt-jax   {score(inferred.rates[later]):.2f}")

# %% [markdown]
# Smoothing knows only what one neuron did around that time. The model has learned how the
# population moves, so a sample of any neuron says something about where this trial is in its cycle,
# and thus about all the others. That works because these neurons do share a cycle, and in a
# simulation they share it perfectly. With a real recording, measure it: the notebook *Your own
# recording, judged* shows how.
#
# ## Latents
#
# `inferred.latents` are the factors that all rates follow, eight numbers per bin, those of most
# variance first. Here the first two hold nearly all of it. On the left, every bin of the later
# trials, with its true phase as its color. On the right, the first factor of three of those trials
# over time: each goes round at the speed of its own trial, though the model was never told that
# there is a cycle.

# %%
plane = inferred.latents[later][..., :2]
variance = inferred.latents[later][inside[later]].var(0)
print(f"variance in two factors: {variance[:2].sum() / variance.sum():.0%}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
colors = {"c": phase[later][inside[later]] % (2 * np.pi), "vmin": 0, "vmax": 2 * np.pi}
points = left.scatter(*plane[inside[later]].T, s=3, cmap="twilight", **colors)
left.set(xlabel="Factor 1", ylabel="Factor 2", aspect="equal")
bar = figure.colorbar(points, ax=left, label="True phase", ticks=[0, np.pi, 2 * np.pi])
bar.ax.set_yticklabels(["0", "π", "2π"])
order = np.argsort(speed[later][:, 0])
for trial, color in zip(order[[2, 20, 37]], (BLUE, GREY, ORANGE), strict=True):
    label = f"{speed[later][trial, 0]:.1f} cycles/s"
    right.plot(time, plane[trial, :, 0], color=color, label=label)
right.set(xlabel="Time (s)", ylabel="Factor 1")
right.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Save and load
#
# `save` writes a run folder, as `python train.py` does, and `load` reads one. (`save` does not
# overwrite a run, so the first line makes room when you run this notebook again.)

# %%
shutil.rmtree("runs/from_nans_to_rates", ignore_errors=True)
fitted.save("runs/from_nans_to_rates")
again = sbtt_jax.load("runs/from_nans_to_rates")
same = np.array_equal(again.infer(spikes).rates, inferred.rates, equal_nan=True)
print(f"the same rates after loading: {same}")

# %% [markdown]
# ## With your own array
#
# ```python
# fitted = sbtt_jax.fit(spikes, bin_width=0.02)  # trial x bin x neuron, NaN where not sampled
# rates = fitted.infer(spikes).rates             # spikes/s
# fitted.score(spikes)                           # bits per spike at points that it was not shown
# ```
#
# `sbtt_jax.Recording` takes what else you may have: lists of trials, masked and labelled arrays,
# spike times. If your trials have conditions, give `condition=`, so that each has its share of
# validation trials. Next: [Your own recording, judged](your_recording_judged.ipynb), on a recording
# whose true rates nobody knows.
