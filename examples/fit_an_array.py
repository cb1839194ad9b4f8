# %% [markdown]
# # Rates from an array with holes
#
# A recording is an array of spike counts, trial x bin x neuron, NaN where a neuron was not sampled.
# This one is simulated: a population follows one of four rhythms, each bin samples about a third of
# the neurons, and trials last between 30 and 40 bins.

# %%
import os

import numpy as np

import sbtt_jax

BIN_WIDTH = 0.02  # seconds
EPOCHS = int(os.environ.get("EXAMPLE_EPOCHS", "150"))

rng = np.random.default_rng(0)
trials, bins, neurons = 240, 40, 15
condition = np.arange(trials) % 4
time = np.arange(bins) * BIN_WIDTH
phase = np.linspace(0, np.pi, neurons)
frequency = np.array([1.0, 1.5, 2.0, 3.0])[condition]  # cycles/s
angle = 2 * np.pi * frequency[:, None, None] * time[:, None]
rates = 25 * np.exp(np.sin(angle + phase))  # spikes/s
spikes = rng.poisson(rates * BIN_WIDTH).astype(float)
spikes[rng.random(spikes.shape) > 1 / 3] = np.nan
lengths = rng.integers(30, bins + 1, trials)
for trial, length in enumerate(lengths):
    spikes[trial, length:] = np.nan
print(f"{np.isnan(spikes).mean():.0%} of the array is missing")

# %% [markdown]
# ## Fit
#
# Only the array and the bin width are needed. A fifth of the trials, the same share of each
# condition if there are any, is kept for validation; `data`, `model` and `train` change the recipe.
# Training is in memory and writes nothing; `history` has the losses of every epoch.

# %%
fitted = sbtt_jax.fit(
    spikes,
    bin_width=BIN_WIDTH,
    condition=condition,
    model={"encoder_size": 30, "decoder_size": 40},
    train={"epochs": EPOCHS, "warmup_epochs": 1},
)
best = fitted.history[fitted.epoch]
print(f"best epoch: {fitted.epoch}, NLL at held-out points {best['heldout_nll']:.3f}")

# %% [markdown]
# ## Infer
#
# Rates of all points, in spikes/s; NaN only after a trial's end. The data are simulated, so the
# true rates are known, and the inferred ones can be compared with them where nothing was sampled.

# %%
inferred = fitted.infer(spikes)
inside = np.isfinite(inferred.rates)
unseen = inside & np.isnan(spikes)
error = np.mean((inferred.rates - rates)[unseen] ** 2) / np.var(rates[unseen])
print(f"rates {inferred.rates.shape}, latents {inferred.latents.shape}")
print(f"R2 at points that were not sampled: {1 - error:.2f}")

# %% [markdown]
# ## Save
#
# `fitted.save("runs/rhythms")` writes a run folder, which `sbtt_jax.load("runs/rhythms")` and
# `python evaluate.py runs/rhythms --data FILE` read.
