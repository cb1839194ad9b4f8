"""Synthetic population recordings: Poisson spike counts driven by the Lorenz system.

Each condition is one trajectory of the Lorenz (1963) attractor. Every neuron's log-rate is a
weighted sum of the trajectory's coordinates, and each trial of a condition is a fresh Poisson
draw from the same rates. The defaults give the statistics of the published SBTT data set.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt

Latents = Float[np.ndarray, "condition bin 3"]
Rates = Float32[np.ndarray, "condition bin neuron"]
Weights = Float[np.ndarray, "3 neuron"]
Counts = UInt[np.ndarray, "trial bin neuron"]
States = Float[np.ndarray, "condition 3"]

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0

# Mean time between successive maxima of z on the attractor, in the system's time unit.
TURN_TIME = 0.751

# With this step RK4 is off by about 2e-4 per time unit, on an attractor about 40 across.
MAX_STEP = 0.01

# Differences grow about e-fold per time unit, so 25 units spread nearby starts over the whole
# attractor.
BURN_IN = 25.0

# Trajectories that are drawn from one start, one after the other.
IN_A_ROW = 15

# Above this rate exp(-rate), the first Poisson probability, nears the smallest float64.
MAX_RATE = 500.0

# What is valid for arguments of `generate` that are not whole numbers.
POSITIVE = {
    "bin_width": "positive number of seconds",
    "mean_rate": "positive number of spikes/s",
    "log_rate_sd": "positive number",
    "turn_duration": "positive number of seconds",
}


class Readout(NamedTuple):
    """How neurons follow the system: log-rates are x, y, z, in its own units, times `kernel`, plus
    `bias`."""

    kernel: Float[np.ndarray, "3 neuron"]
    bias: Float[np.ndarray, " neuron"]


class LorenzSet(NamedTuple):
    """Spike counts with the rates and latents they were drawn from.

    Trials of a condition are neighbours and have the same rates; `rates[condition]` is aligned with
    `counts`.
    """

    counts: Counts  # uint8 if all fit, else uint16
    rates: Rates  # expected counts per bin
    latents: Float32[np.ndarray, "condition bin 3"]  # x, y, z, of mean 0 and standard deviation 1
    condition: Int[np.ndarray, " trial"]
    readout: Readout


def generate(
    seed: int = 0,
    *,
    conditions: int = 65,
    trials_per_condition: int = 24,
    bins: int = 50,
    neurons: int = 29,
    bin_width: float = 0.02,
    mean_rate: float = 12.8,
    log_rate_sd: float = 1.3,
    turn_duration: float = 0.23,
) -> LorenzSet:
    """Draw a population's spike counts under a Lorenz attractor; same seed, same arrays.

    bin_width and turn_duration (mean time of one turn around a lobe) are in seconds. mean_rate (in
    spikes/s) and log_rate_sd (natural log units), both over all neurons, conditions and bins, hold
    exactly for every seed. The defaults match the published counts: mean 0.256, 83% zeros, the
    largest about 20.

    Raises ValueError for a size, width, rate or spread that is not positive, and for a rate above
    500 expected counts per bin. The system is that of Lorenz (1963), "Deterministic nonperiodic
    flow".
    """
    for name, value in locals().copy().items():
        if name != "seed" and not 0 < value < math.inf:
            valid = POSITIVE.get(name, "whole number of at least 1")
            raise ValueError(f"{name} is {value}; give a {valid}")
    initial_rng, weight_rng, count_rng = np.random.default_rng(seed).spawn(3)

    # Only `random` and `integers` are drawn, and only + - * / touch the trajectories: IEEE 754
    # fixes these to the last bit, without which a chaotic system would not repeat on another
    # machine. Trajectories start near the z axis, far from the two unstable fixed points, which
    # they would leave only slowly.
    time_per_bin = TURN_TIME * bin_width / turn_duration
    system = trajectories(_starts(initial_rng, conditions), bins, time_per_bin=time_per_bin)
    latents = system - system.mean((0, 1))
    sd = latents.std((0, 1))
    latents /= np.where(sd > 0, sd, 1.0)  # 0 if there is one condition of one bin
    weights = population_weights(neurons, weight_rng)
    rates = firing_rates(latents, weights, mean=mean_rate * bin_width, log_sd=log_rate_sd)
    if rates.max() > MAX_RATE:
        raise ValueError(
            f"mean_rate {mean_rate}, log_rate_sd {log_rate_sd} and bin_width {bin_width} give "
            f"{rates.max():.0f} expected counts in a bin; lower one to stay below {MAX_RATE:.0f}"
        )
    return LorenzSet(
        counts=poisson_counts(rates, trials_per_condition, count_rng),
        rates=rates,
        latents=latents.astype(np.float32),
        condition=np.repeat(np.arange(conditions), trials_per_condition),
        readout=_readout(system, rates),
    )


def sample_rates(
    readout: Readout, count: int, bins: int, *, bin_width: float, turn_duration: float = 0.23
) -> Rates:
    """Rates of neurons with this readout along trajectories drawn at random from the attractor."""
    system = _attractor(count, bins, TURN_TIME * bin_width / turn_duration)
    kernel, bias = (part.astype(np.float32) for part in readout)
    return np.exp(system @ kernel + bias)


@lru_cache(maxsize=1)  # it takes seconds, and the next set mostly has trials of the same length
def _attractor(count: int, bins: int, time_per_bin: float) -> Float32[np.ndarray, "count bin 3"]:
    """Trajectories drawn at random from the attractor, several after each start."""
    starts = _starts(np.random.default_rng(0), -(-count // IN_A_ROW))
    path = trajectories(starts, bins * IN_A_ROW, time_per_bin=time_per_bin)
    return path.reshape(-1, bins, 3)[:count].astype(np.float32)


def _starts(rng: np.random.Generator, count: int) -> States:
    return (rng.random((count, 3)) - 0.5) * 10.0 + np.array([0.0, 0.0, 25.0])


def _readout(system: Latents, rates: Rates) -> Readout:
    x = system.reshape(-1, 3)
    x = np.column_stack([x, np.ones(len(x))])
    # The normal equations, which are exact here, without BLAS: its threads spin on after a product,
    # while training starts.
    products = (np.einsum("pi,pj->ij", x, y) for y in (x, np.log(rates.reshape(len(x), -1))))
    found = np.linalg.solve(*products)
    return Readout(found[:3], found[3])


def trajectories(
    initial: States,
    bins: int,
    *,
    time_per_bin: float,
    burn_in: float = BURN_IN,
) -> Latents:
    """Integrate the Lorenz system from each initial x, y, z by the classic Runge-Kutta method.

    time_per_bin and burn_in (time before the first bin) and the returned x, y, z at each bin are in
    the system's own units.
    """

    def flow(state):
        x, y, z = state
        return np.array([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z])

    def advance(state, duration):
        steps = max(1, int(np.ceil(duration / MAX_STEP)))
        step = duration / steps
        for _ in range(steps):
            k1 = flow(state)
            k2 = flow(state + step / 2 * k1)
            k3 = flow(state + step / 2 * k2)
            k4 = flow(state + step * k3)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state

    state = advance(initial.T, burn_in)
    path = np.empty((bins, *state.shape))
    for bin_ in range(bins):
        path[bin_] = state
        state = advance(state, time_per_bin)
    return path.transpose(2, 0, 1)  # bin 3 condition -> condition bin 3


def population_weights(neurons: int, rng: np.random.Generator) -> Weights:
    """Draw each neuron's weights on standardised x, y, z, neurons in order of weight.

    The first third rises with x, the last third falls with it, the middle third hardly moves.
    """
    # Gains are evenly spaced, not random, as the largest one sets the upper tail of the counts. The
    # gap between the strong thirds (1 to 0.55) and the weak one (0.2) makes log-rates over the
    # whole set about Gaussian; gains uniform around 0 would give a heavier tail, with counts of 30
    # to 40. No gain is 0, since R2 needs rates that vary.
    ladder = np.linspace(1.0, -1.0, neurons)
    rank = np.abs(ladder)
    gain = np.copysign(np.where(rank > 1 / 3, 0.55 + 0.45 * (rank - 1 / 3) * 1.5, 0.2), ladder)
    # y leads x by a fraction of a turn, so a share of it gives neurons different timing. More than
    # 0.3 would bring in y's longer tail; z, alike in both lobes, would skew the log-rates.
    y_share = 0.3 * rng.random(neurons)
    return np.stack([gain * (1 - y_share), gain * y_share, np.zeros(neurons)])


def firing_rates(latents: Latents, weights: Weights, *, mean: float, log_sd: float) -> Rates:
    """Turn latents into rates, the exponential of their weighted sum, in expected counts per bin.

    One gain and one offset, shared by all neurons, give the whole set exactly the mean rate `mean`
    (expected counts per bin) and the standard deviation `log_sd` of log-rates.
    """
    # A sum, not a matrix product, in which BLAS orders additions differently on each CPU.
    log_rates = sum(latents[..., i, None] * weights[i] for i in range(3))
    sd = log_rates.std()
    log_rates *= log_sd / sd if sd > 0 else 1.0
    rates = np.exp(log_rates, out=log_rates)
    rates *= mean / rates.mean()
    return rates.astype(np.float32)


def poisson_counts(rates: Rates, trials_per_condition: int, rng: np.random.Generator) -> Counts:
    """Draw Poisson counts given expected counts per bin: all trials of the first condition, then of
    the second, and so on; uint8 if all counts fit, else uint16."""
    # Each count inverts the Poisson distribution function at one random number. NumPy's own sampler
    # uses a rate-dependent number of draws, so that one rate rounded differently by another CPU's
    # `exp` could shift every count after it. Here it can change only its own count, with a
    # probability of about the rounding error.
    conditions, bins, neurons = rates.shape
    counts = np.empty((conditions, trials_per_condition, bins * neurons), np.uint8)
    for condition, expected in enumerate(rates):
        rate = expected.astype(np.float64).ravel()
        uniform = rng.integers(2**32, size=(trials_per_condition, rate.size), dtype=np.uint32)
        # Probabilities are in units of 2^-32, in which uniform numbers are whole. The largest,
        # 2^32 - 1, is so far below the sum of all terms that the loop ends in spite of rounding.
        term = np.exp(-rate) * 2.0**32
        trial, point = np.nonzero(uniform >= term)
        uniform, rate, term = uniform[trial, point], rate[point], term[point]
        cumulative = term.copy()
        block = np.zeros((trials_per_condition, bins * neurons), np.uint16)
        count = 0
        while trial.size:
            count += 1
            block[trial, point] = count
            term *= rate / count
            cumulative += term
            above = uniform >= cumulative
            trial, point, uniform = trial[above], point[above], uniform[above]
            rate, term, cumulative = rate[above], term[above], cumulative[above]
        if count > np.iinfo(counts.dtype).max:
            counts = counts.astype(np.uint16)
        counts[condition] = block
    return counts.reshape(conditions * trials_per_condition, bins, neurons)
