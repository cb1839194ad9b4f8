"""Sampling patterns: how many neurons are observed, which, and how reproducibly."""

import itertools
import math
import tracemalloc
from typing import get_args

import numpy as np
import pytest

from sbtt_jax import config, masking

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


PATTERNS = get_args(masking.Pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bandwidth", [1, 3, 10, 28, 29])
def test_every_pattern_observes_bandwidth_neurons_per_bin_on_average(pattern, bandwidth):
    observed = masking.observe(pattern, (200, 50, 29), bandwidth, seed=0)
    assert observed.dtype == bool
    p = bandwidth / 29
    # Four standard errors of independent draws; a stretch of 10 bins, or a trial of 50, is one.
    together = {"blocks": 10}.get(pattern, 1)
    error = 4 * math.sqrt(p * (1 - p) * together / observed.size)
    assert observed.mean() == pytest.approx(p, abs=error)
    by_neuron = observed.mean((0, 1))
    together = {"blocks": 10, "channels": 50}.get(pattern, 1)
    error = 5 * math.sqrt(p * (1 - p) * together / (200 * 50)) + 1e-9
    assert np.abs(by_neuron - p).max() <= error


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_is_a_function_of_shape_and_seed(pattern, monkeypatch):
    first = masking.observe(pattern, (40, 30, 11), 4, seed=(3, 4))
    other = masking.observe(pattern, (40, 30, 11), 4, seed=(3, 5))
    assert (first != other).any()
    assert (first != first[:1]).any()  # trials are not copies of one another
    monkeypatch.setattr(masking, "BLOCK_SIZE", 1000)
    np.testing.assert_array_equal(masking.observe(pattern, (40, 30, 11), 4, seed=(3, 4)), first)


def runs(observed):
    """Lengths of stretches of equal values along the bins, whole ones only, of each kind."""
    lengths = {True: [], False: []}
    for line in observed.transpose(0, 2, 1).reshape(-1, observed.shape[1]):
        edges = np.flatnonzero(line[1:] != line[:-1]) + 1
        for start, stop in itertools.pairwise(edges):
            lengths[bool(line[start])].append(stop - start)
    return lengths


@pytest.mark.parametrize("bandwidth", [1, 4, 7])
def test_round_robin_comes_by_each_neuron_in_turn(bandwidth):
    observed = masking.round_robin((6, 60, 11), bandwidth, seed=1)
    assert (observed.sum(-1) == bandwidth).all()
    for trial in observed:
        for neuron in trial.T:
            gaps = np.diff(np.flatnonzero(neuron))
            assert set(gaps) <= {11 // bandwidth, -(-11 // bandwidth)}
    assert (observed[:, :11].sum(1) == bandwidth).all()  # as often in any 11 bins


def test_bernoulli_points_are_independent():
    observed = masking.bernoulli((100, 50, 20), 0.3, seed=0)
    for axis in range(3):
        a, b = (np.take(observed, range(i, observed.shape[axis] - 1 + i), axis) for i in (0, 1))
        assert (a & b).mean() == pytest.approx(0.09, abs=5 * math.sqrt(0.09 * 0.91 / a.size))
    assert not masking.bernoulli((3, 4, 5), 0.0).any()
    assert masking.bernoulli((3, 4, 5), 1.0).all()


@pytest.mark.parametrize("frame", [1, 4, 7])
def test_raster_comes_by_each_neuron_once_a_frame(frame):
    position = np.linspace(0, 1, 9, endpoint=False)
    observed = masking.raster((8, 6 * frame, 9), float(frame), seed=2, position=position)
    frames = observed.reshape(8, 6, frame, 9)
    assert (frames.sum(2) == 1).all()  # in any frame's time, wherever it begins
    bin_in_frame = frames.argmax(2)
    assert (bin_in_frame == bin_in_frame[:, :1]).all()  # at the neuron's own time
    later = (bin_in_frame[:, 0] - bin_in_frame[:, 0, :1]) % frame
    expected = position * frame
    assert ((later - expected + frame / 2) % frame - frame / 2 <= 1).all()
    assert ((later - expected + frame / 2) % frame - frame / 2 >= -1).all()


def test_raster_of_a_frame_that_is_no_whole_number_of_bins():
    observed = masking.raster((20, 100, 13), 5.8, seed=0)
    for trial in observed:
        for neuron in trial.T:
            assert set(np.diff(np.flatnonzero(neuron))) <= {5, 6}
    assert observed.mean() == pytest.approx(1 / 5.8, rel=0.01)


def test_blocks_are_stretches():
    observed = masking.blocks((40, 100, 6), 0.5, seed=0, length=7)
    lengths = runs(observed)
    for kind in (True, False):
        assert set(np.array(lengths[kind]) % 7) == {0}
        assert np.mean(lengths[kind]) == pytest.approx(2 * 7, rel=0.2)  # two in the mean
    changes = observed[:, 1:, 0] != observed[:, :-1, 0]
    assert set(changes.argmax(1)[changes.any(1)] % 7) == set(range(7))  # from a random beginning


def test_channels_are_missing_for_whole_trials():
    observed = masking.channels((30, 20, 9), 4, seed=0)
    assert (observed == observed[:, :1]).all()
    assert (observed[:, 0].sum(-1) == 4).all()


def test_settings_name_the_patterns_there_are():
    assert get_args(config.Pattern) == PATTERNS
    with pytest.raises(ValueError, match="pattern is spiral; give one of random, round_robin"):
        masking.observe("spiral", SHAPE, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: masking.round_robin(SHAPE, 30), "bandwidth is 30 of 29 neurons"),
        (lambda: masking.channels(SHAPE, 0), "bandwidth is 0 of 29 neurons"),
        (lambda: masking.bernoulli(SHAPE, 1.5), "probability is 1.5; give a number from 0 to 1"),
        (lambda: masking.blocks(SHAPE, 0.5, length=0), "length is 0 bins; give at least 1"),
        (lambda: masking.raster(SHAPE, 0.5), "frame is 0.5 bins; give at least 1"),
        (lambda: masking.raster(SHAPE, 2.0, position=np.full(29, 2.0)), "position must be 29"),
    ],
)
def test_errors_of_patterns_name_what_is_wrong(call, said):
    with pytest.raises(ValueError, match=said):
        call()
