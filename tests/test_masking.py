"""Sampling patterns: how many neurons are observed, which, and how reproducibly."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from conftest import small_data

from sbtt_jax.config import Settings
from sbtt_jax.data import masking, problem
from sbtt_jax.data.masking import PATTERNS

SHAPE = (60, 50, 29)


@pytest.mark.parametrize("bandwidth", [1, 2, 5, 15, 28, 29])
def test_every_bin_observes_exactly_bandwidth_neurons(bandwidth):
    observed = masking.random(SHAPE, bandwidth, seed=0)
    assert (observed.shape, observed.dtype) == (SHAPE, bool)
    assert (observed.sum(-1) == bandwidth).all()


@pytest.mark.parametrize("bandwidth", [1, 5, 20])
def test_every_neuron_is_equally_likely(bandwidth):
    observed = masking.random(SHAPE, bandwidth, seed=1)
    bins, neurons = SHAPE[0] * SHAPE[1], SHAPE[2]
    p = bandwidth / neurons
    times = observed.sum((0, 1))
    # Scaled for the fixed sum over neurons: chi-square with neurons - 1 degrees of freedom.
    chi2 = ((times - bins * p) ** 2).sum() / (bins * p * (1 - p)) * (neurons - 1) / neurons
    assert abs(chi2 - (neurons - 1)) < 4 * math.sqrt(2 * (neurons - 1))


def test_every_pair_of_neurons_is_equally_likely():
    observed = masking.random(SHAPE, 5, seed=2).reshape(-1, 29).astype(int)
    together = (observed.T @ observed)[np.triu_indices(29, 1)]
    expected = len(observed) * 5 * 4 / (29 * 28)
    assert np.abs(together - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_trials_and_bins_are_drawn_independently(axis):
    along = np.moveaxis(masking.random(SHAPE, 10, seed=3), axis, 0)
    overlap = (along[1:] & along[:-1]).sum(-1)
    # Two independent draws of 10 in 29 share a hypergeometric number of neurons.
    mean = 10 * 10 / 29
    variance = mean * (19 / 29) * (19 / 28)
    assert overlap.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / overlap.size))
    assert overlap.var() == pytest.approx(variance, rel=0.15)


def test_masks_of_different_seeds_are_independent():
    first, other = (masking.random(SHAPE, 7, seed=seed) for seed in (4, 5))
    assert (first & other).sum() == pytest.approx(first.sum() * 7 / 29, rel=0.05)


def test_bandwidth_of_all_neurons_observes_everything_and_no_trials_are_fine():
    assert masking.random((3, 4, 5), 5, seed=0).all()
    assert masking.random((2, 3, 1), 1, seed=0).all()
    assert masking.random((0, 3, 4), 2, seed=0).shape == (0, 3, 4)


def test_memory_stays_near_the_mask_itself(monkeypatch):
    monkeypatch.setattr(masking, "MAX_DRAWS", 2**16)
    tracemalloc.start()
    observed = masking.random((200, 100, 200), 20, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (observed.sum(-1) == 20).all()
    assert peak < 2 * observed.nbytes


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bandwidth", [1, 3, 10, 28, 29])
def test_every_pattern_observes_bandwidth_neurons_per_bin_on_average(pattern, bandwidth):
    observed = masking.observe(pattern, (200, 50, 29), bandwidth, seed=0)
    assert observed.dtype == bool
    p = bandwidth / 29
    # Four standard errors of independent draws; a block of 10 bins, or a trial of 50, is one draw.
    together = {"blocks": 10}.get(pattern, 1)
    error = 4 * math.sqrt(p * (1 - p) * together / observed.size)
    assert observed.mean() == pytest.approx(p, abs=error)
    by_neuron = observed.mean((0, 1))
    together = {"blocks": 10, "channels": 50}.get(pattern, 1)
    error = 5 * math.sqrt(p * (1 - p) * together / (200 * 50)) + 1e-9
    assert np.abs(by_neuron - p).max() <= error


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_is_a_function_of_shape_and_seed(pattern, monkeypatch):
    first, other = (masking.observe(pattern, (40, 30, 11), 4, seed=(3, i)) for i in (4, 5))
    assert (first != other).any()
    assert (first != first[:1]).any()  # trials are not copies of one another
    for draws in (1, 1000, 4000):  # at a time, which changes nothing
        monkeypatch.setattr(masking, "MAX_DRAWS", draws)
        again = masking.observe(pattern, (40, 30, 11), 4, seed=(3, 4))
        np.testing.assert_array_equal(again, first)


def runs(observed):
    """Lengths of whole runs of equal values along the bins, of each value."""
    lengths = {True: [], False: []}
    for line in observed.transpose(0, 2, 1).reshape(-1, observed.shape[1]):
        edges = np.flatnonzero(line[1:] != line[:-1]) + 1
        for start, stop in itertools.pairwise(edges):
            lengths[bool(line[start])].append(stop - start)
    return lengths


@pytest.mark.parametrize("bandwidth", [1, 4, 7])
def test_round_robin_samples_each_neuron_in_turn(bandwidth):
    observed = masking.round_robin((6, 60, 11), bandwidth, seed=1)
    assert (observed.sum(-1) == bandwidth).all()
    for trial in observed:
        for neuron in trial.T:
            gaps = np.diff(np.flatnonzero(neuron))
            assert set(gaps) <= {11 // bandwidth, -(-11 // bandwidth)}
    assert (observed[:, :11].sum(1) == bandwidth).all()  # equally often in any 11 bins


def test_bernoulli_points_are_independent():
    observed = masking.bernoulli((100, 50, 20), 0.3, seed=0)
    for axis in range(3):
        along = np.moveaxis(observed, axis, 0)
        both = along[1:] & along[:-1]
        assert both.mean() == pytest.approx(0.09, abs=5 * math.sqrt(0.09 * 0.91 / both.size))
    assert not masking.bernoulli((3, 4, 5), 0.0).any()
    assert masking.bernoulli((3, 4, 5), 1.0).all()


@pytest.mark.parametrize("frame", [1, 4, 7])
def test_raster_samples_each_neuron_once_per_frame(frame):
    position = np.linspace(0, 1, 9, endpoint=False)
    observed = masking.raster((8, 6 * frame, 9), float(frame), seed=2, position=position)
    frames = observed.reshape(8, 6, frame, 9)
    assert (frames.sum(2) == 1).all()  # in any frame, wherever it starts
    bin_in_frame = frames.argmax(2)
    assert (bin_in_frame == bin_in_frame[:, :1]).all()  # always at the neuron's own time
    later = (bin_in_frame[:, 0] - bin_in_frame[:, 0, :1]) % frame
    late = (later - position * frame + frame / 2) % frame - frame / 2
    assert (np.abs(late) <= 1).all()


def test_raster_frames_need_not_be_whole_bins():
    observed = masking.raster((20, 100, 13), 5.8, seed=0)
    for trial in observed:
        for neuron in trial.T:
            assert set(np.diff(np.flatnonzero(neuron))) <= {5, 6}
    assert observed.mean() == pytest.approx(1 / 5.8, rel=0.01)


def test_blocks_have_whole_lengths_and_random_offsets():
    observed = masking.blocks((40, 100, 6), 0.5, seed=0, length=7)
    lengths = runs(observed)
    for kind in (True, False):
        assert set(np.array(lengths[kind]) % 7) == {0}
        assert np.mean(lengths[kind]) == pytest.approx(2 * 7, rel=0.2)  # two blocks on average
    changes = observed[:, 1:, 0] != observed[:, :-1, 0]
    assert set(changes.argmax(1)[changes.any(1)] % 7) == set(range(7))


def test_channels_are_missing_for_whole_trials():
    observed = masking.channels((30, 20, 9), 4, seed=0)
    assert (observed == observed[:, :1]).all()
    assert (observed[:, 0].sum(-1) == 4).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_recording_lacks_stays_missing_in_every_pattern(pattern):
    data = small_data()
    data.observed[1, 2, 3] = data.observed[4] = False
    settings = Settings(data={"pattern": pattern})
    for bandwidth in (1, 3, 5):
        observed = problem.observed_at(settings, data, bandwidth)
        drawn = masking.observe(pattern, observed.shape, bandwidth, (settings.data.seed, bandwidth))
        np.testing.assert_array_equal(observed, drawn & data.observed)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: masking.random(SHAPE, 0), "^bandwidth is 0 of 29 neurons; give 1 to 29$"),
        (lambda: masking.random(SHAPE, -1), "^bandwidth is -1 of 29 neurons; give 1 to 29$"),
        (lambda: masking.random(SHAPE, 30), "^bandwidth is 30 of 29 neurons; give 1 to 29$"),
        (lambda: masking.observe("spiral", SHAPE, 3), "spiral; give one of random, round_robin"),
        (lambda: masking.round_robin(SHAPE, 30), "bandwidth is 30 of 29 neurons"),
        (lambda: masking.channels(SHAPE, 0), "bandwidth is 0 of 29 neurons"),
        (lambda: masking.bernoulli(SHAPE, 1.5), "probability is 1.5; give a number from 0 to 1"),
        (lambda: masking.blocks(SHAPE, 0.5, length=0), "length is 0 bins; give at least 1"),
        (lambda: masking.raster(SHAPE, 0.5), "frame is 0.5 bins; give at least 1"),
        (lambda: masking.raster(SHAPE, 2.0, position=np.full(29, 2.0)), "position must be 29"),
    ],
)
def test_errors_name_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
