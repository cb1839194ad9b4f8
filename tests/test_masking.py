"""Sampling patterns: how many neurons are observed, which, and how reproducibly."""

import math
import tracemalloc

import numpy as np
import pytest

from sbtt_jax import masking

SHAPE = (60, 50, 29)


@pytest.mark.parametrize("bandwidth", [1, 2, 5, 15, 28, 29])
def test_every_bin_observes_exactly_bandwidth_neurons(bandwidth):
    observed = masking.random(SHAPE, bandwidth, seed=0)
    assert observed.shape == SHAPE
    assert observed.dtype == bool
    assert (observed.sum(-1) == bandwidth).all()


@pytest.mark.parametrize("bandwidth", [1, 5, 20])
def test_every_neuron_is_as_likely(bandwidth):
    observed = masking.random(SHAPE, bandwidth, seed=1)
    neurons = SHAPE[-1]
    bins = SHAPE[0] * SHAPE[1]
    p = bandwidth / neurons
    times = observed.sum((0, 1))
    # Scaled for the fixed sum over neurons, this is chi-square with neurons - 1 freedoms.
    chi2 = ((times - bins * p) ** 2).sum() / (bins * p * (1 - p)) * (neurons - 1) / neurons
    assert abs(chi2 - (neurons - 1)) < 4 * math.sqrt(2 * (neurons - 1))


def test_every_pair_of_neurons_is_as_likely():
    observed = masking.random(SHAPE, 5, seed=2).reshape(-1, 29).astype(int)
    together = (observed.T @ observed)[np.triu_indices(29, 1)]
    expected = len(observed) * 5 * 4 / (29 * 28)
    assert np.abs(together - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("axis", ["trial", "bin"])
def test_trials_and_bins_are_drawn_independently(axis):
    observed = masking.random(SHAPE, 10, seed=3)
    both = observed[1:] & observed[:-1] if axis == "trial" else observed[:, 1:] & observed[:, :-1]
    overlap = both.sum(-1)
    # Two independent draws of 10 in 29 share a hypergeometric number of neurons.
    mean = 10 * 10 / 29
    variance = mean * (19 / 29) * (19 / 28)
    assert overlap.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / overlap.size))
    assert overlap.var() == pytest.approx(variance, rel=0.15)


def test_same_seed_same_mask_and_other_seeds_differ():
    first = masking.random(SHAPE, 7, seed=4)
    np.testing.assert_array_equal(first, masking.random(SHAPE, 7, seed=4))
    other = masking.random(SHAPE, 7, seed=5)
    assert (first & other).sum() == pytest.approx(first.sum() * 7 / 29, rel=0.05)


def test_bandwidth_of_all_neurons_observes_everything():
    assert masking.random((3, 4, 5), 5, seed=0).all()


def test_a_nan_in_the_data_stays_missing():
    counts = np.zeros((3, 4, 5))
    counts[1, 2, 3] = np.nan
    observed = masking.random(counts.shape, 5, seed=0) & ~np.isnan(counts)
    assert not observed[1, 2, 3]
    assert observed.sum() == counts.size - 1


@pytest.mark.parametrize("block", [1, 1000, 4000])
def test_the_mask_does_not_depend_on_the_block(monkeypatch, block):
    whole = masking.random((11, 13, 17), 4, seed=6)
    monkeypatch.setattr(masking, "BLOCK_SIZE", block)
    np.testing.assert_array_equal(masking.random((11, 13, 17), 4, seed=6), whole)


def test_memory_stays_near_the_mask_itself(monkeypatch):
    monkeypatch.setattr(masking, "BLOCK_SIZE", 2**16)
    tracemalloc.start()
    observed = masking.random((200, 100, 200), 20, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (observed.sum(-1) == 20).all()
    assert peak < 2 * observed.nbytes


def test_a_single_neuron_and_no_trials():
    assert masking.random((2, 3, 1), 1, seed=0).all()
    assert masking.random((0, 3, 4), 2, seed=0).shape == (0, 3, 4)


@pytest.mark.parametrize("bandwidth", [0, -1, 30])
def test_errors_name_bandwidth_and_neurons(bandwidth):
    with pytest.raises(ValueError, match=f"^bandwidth is {bandwidth} of 29 neurons; give 1 to 29$"):
        masking.random(SHAPE, bandwidth, seed=0)
