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


def drawn(pattern, shape, bandwidth, seed=0, **how):
    observed = masking.observe(pattern, shape, bandwidth, seed, **how)
    assert (observed.shape, observed.dtype) == (shape, bool)
    return observed


def test_every_pair_of_neurons_is_equally_likely():
    observed = drawn("random", SHAPE, 5, seed=2).reshape(-1, 29).astype(int)
    together = (observed.T @ observed)[np.triu_indices(29, 1)]
    expected = len(observed) * 5 * 4 / (29 * 28)
    assert np.abs(together - expected).max() < 5 * math.sqrt(expected)


def test_trials_bins_and_seeds_are_drawn_independently():
    first, other = (drawn("random", SHAPE, 10, seed) for seed in (3, 4))
    # Two independent draws of 10 in 29 share a hypergeometric number of neurons.
    mean = 10 * 10 / 29
    variance = mean * (19 / 29) * (19 / 28)
    for a, b in ((first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first, other)):
        overlap = (a & b).sum(-1)
        assert overlap.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / overlap.size))
        assert overlap.var() == pytest.approx(variance, rel=0.15)


def test_memory_stays_near_the_mask_itself(monkeypatch):
    monkeypatch.setattr(masking, "MAX_DRAWS", 2**16)
    tracemalloc.start()
    observed = drawn("random", (200, 100, 200), 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * observed.nbytes


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bandwidth", [1, 2, 3, 10, 28, 29])
def test_every_pattern_observes_bandwidth_neurons_per_bin_on_average(pattern, bandwidth):
    observed = drawn(pattern, (200, 50, 29), bandwidth)
    p = bandwidth / 29
    # Four standard errors of independent draws; a block of 10 bins, or a trial of 50, is one draw.
    together = {"blocks": 10}.get(pattern, 1)
    error = 4 * math.sqrt(p * (1 - p) * together / observed.size)
    assert observed.mean() == pytest.approx(p, abs=error)
    by_neuron = observed.mean((0, 1))
    together = {"blocks": 10, "channels": 50}.get(pattern, 1)
    error = 5 * math.sqrt(p * (1 - p) * together / (200 * 50)) + 1e-9
    assert np.abs(by_neuron - p).max() <= error
    if pattern == "random" and bandwidth < 29:  # else the variance below is 0
        # Scaled for the fixed sum over neurons: chi-square with 28 degrees of freedom.
        chi2 = ((by_neuron - p) ** 2).mean() / (p * (1 - p) / (200 * 50)) * 28
        assert abs(chi2 - 28) < 4 * math.sqrt(2 * 28)
    if pattern in ("random", "round_robin", "channels"):  # in every bin
        assert (observed.sum(-1) == bandwidth).all()
    assert drawn(pattern, (0, 3, 4), 2).shape == (0, 3, 4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_is_a_function_of_shape_and_seed(pattern, monkeypatch):
    first, other = (drawn(pattern, (40, 30, 11), 4, seed=(3, i)) for i in (4, 5))
    assert (first != other).any()
    assert (first != first[:1]).any()  # trials are not copies of one another
    for draws in (1, 1000, 4000):  # at a time, which changes nothing
        monkeypatch.setattr(masking, "MAX_DRAWS", draws)
        np.testing.assert_array_equal(drawn(pattern, (40, 30, 11), 4, seed=(3, 4)), first)


def gaps(observed):
    """All differences between successive observed bins of a neuron."""
    lines = observed.transpose(0, 2, 1).reshape(-1, observed.shape[1])
    return set(np.concatenate([np.diff(np.flatnonzero(line)) for line in lines]).tolist())


@pytest.mark.parametrize("bandwidth", [1, 4, 7])
def test_round_robin_samples_each_neuron_in_turn(bandwidth):
    observed = drawn("round_robin", (6, 60, 11), bandwidth, seed=1)
    assert gaps(observed) <= {11 // bandwidth, -(-11 // bandwidth)}
    assert (observed[:, :11].sum(1) == bandwidth).all()  # equally often in any 11 bins


def test_bernoulli_points_are_independent():
    observed = drawn("bernoulli", (100, 50, 20), 6)
    for axis in range(3):
        along = np.moveaxis(observed, axis, 0)
        both = along[1:] & along[:-1]
        assert both.mean() == pytest.approx(0.09, abs=5 * math.sqrt(0.09 * 0.91 / both.size))


@pytest.mark.parametrize("frame", [1, 4, 7])
def test_raster_samples_each_neuron_once_per_frame(frame):
    position = np.linspace(0, 1, 9, endpoint=False)
    observed = masking.raster((8, 6 * frame, 9), 9 / frame, 2, position=position)
    frames = observed.reshape(8, 6, frame, 9)
    assert (frames.sum(2) == 1).all()  # in any frame, wherever it starts
    bin_in_frame = frames.argmax(2)
    assert (bin_in_frame == bin_in_frame[:, :1]).all()  # always at the neuron's own time
    later = (bin_in_frame[:, 0] - bin_in_frame[:, 0, :1]) % frame
    late = (later - position * frame + frame / 2) % frame - frame / 2
    assert (np.abs(late) <= 1).all()


def test_raster_frames_need_not_be_whole_bins():
    observed = drawn("raster", (20, 100, 29), 5)
    assert gaps(observed) == {5, 6}
    assert observed.mean() == pytest.approx(5 / 29, rel=0.01)


def test_blocks_have_whole_lengths_and_random_offsets():
    observed = drawn("blocks", (40, 100, 6), 3, block_length=7)
    changes = observed[:, 1:] != observed[:, :-1]
    runs = {True: [], False: []}  # lengths of whole ones
    for trial, neuron in np.ndindex(40, 6):
        for start, stop in itertools.pairwise(np.flatnonzero(changes[trial, :, neuron]) + 1):
            runs[bool(observed[trial, start, neuron])].append(stop - start)
    for lengths in runs.values():
        assert set(np.array(lengths) % 7) == {0}
        assert np.mean(lengths) == pytest.approx(2 * 7, rel=0.2)  # two blocks on average
    first = changes[..., 0]
    assert set(first.argmax(1)[first.any(1)] % 7) == set(range(7))


def test_channels_are_missing_for_whole_trials():
    observed = drawn("channels", (30, 20, 9), 4)
    assert (observed == observed[:, :1]).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_recording_lacks_stays_missing_in_every_pattern(pattern):
    data = small_data()
    data.observed[1, 2, 3] = data.observed[4] = False
    settings = Settings(data={"pattern": pattern})
    for bandwidth in (1, 3, 5):
        mask = drawn(pattern, data.counts.shape, bandwidth, (settings.data.seed, bandwidth))
        observed = problem.observed_at(settings, data, bandwidth)
        np.testing.assert_array_equal(observed, mask & data.observed)


@pytest.mark.parametrize(
    ("pattern", "bandwidth", "how", "words"),
    [
        *[
            ("random", n, {}, f"^bandwidth is {n} of 29 neurons; give 1 to 29$")
            for n in (0, -1, 30)
        ],
        ("spiral", 3, {}, "^pattern is spiral; give one of random, round_robin"),
        ("blocks", 3, {"block_length": 0}, "^block_length is 0 bins; give at least 1$"),
    ],
)
def test_errors_name_what_is_wrong(pattern, bandwidth, how, words):
    with pytest.raises(ValueError, match=words):
        masking.observe(pattern, SHAPE, bandwidth, **how)
