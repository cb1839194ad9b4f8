"""Lorenz sets: their statistics at every seed, their reproducibility, their split."""

import hashlib
import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import poisson

from sbtt_jax.data import lorenz
from sbtt_jax.data.splits import stratified

SMALL = dict(conditions=5, trials_per_condition=4, bins=20, neurons=7)


@pytest.fixture(scope="module", params=[0, 1, 2, 3, 17, 2**31])
def recording(request):
    """The default set at one seed; every statistic below holds at all of them."""
    return lorenz.generate(request.param)


def log_rates(recording):
    return np.log(recording.rates.astype(np.float64))


def turn_lengths(latents):
    """Bins between successive maxima of z."""
    z = latents[..., 2]
    peaks = (z[:, 1:-1] > z[:, :-2]) & (z[:, 1:-1] >= z[:, 2:])
    return np.concatenate([np.diff(np.flatnonzero(of_condition)) for of_condition in peaks])


def test_counts_and_log_rates_have_the_published_statistics(recording):
    counts = recording.counts
    share = np.bincount(counts.ravel()) / counts.size * 100
    assert counts.mean() == pytest.approx(0.256, abs=0.02)
    found = *share[:3], share[5:].sum()
    assert (np.abs(np.subtract(found, [82.9, 12.5, 2.75, 0.49])) < [1.0, 0.7, 0.25, 0.1]).all()
    assert 15 <= counts.max() <= 30
    values = log_rates(recording)
    assert values.mean() == pytest.approx(-2.3, abs=0.1)
    assert values.std() == pytest.approx(1.3, abs=0.1)
    skew = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    assert abs(skew) < 0.1


def test_latents_are_standardised_different_and_turn_every_11_to_12_bins(recording):
    assert 11 < turn_lengths(recording.latents).mean() < 12
    np.testing.assert_allclose(recording.latents.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(recording.latents.std((0, 1)), 1, atol=1e-5)
    flat = recording.latents.reshape(65, -1)
    nearest = np.sort(np.linalg.norm(flat[:, None] - flat[None], axis=-1), axis=1)[:, 1]
    assert nearest.min() > 0.1


def test_first_and_last_thirds_of_neurons_are_opposite_and_the_middle_is_weak(recording):
    values = log_rates(recording).reshape(-1, 29)
    with_x = np.corrcoef(values.T, recording.latents[..., 0].ravel())[-1, :-1]
    spread = values.std(0)
    assert with_x[:10].min() > 0.9
    assert with_x[-10:].max() < -0.9
    assert spread[10:19].max() < 0.5 * min(spread[:10].min(), spread[-10:].min())
    assert spread.min() > 0.2
    assert np.all(np.diff(spread * np.sign(with_x)) < 0.1)
    assert np.corrcoef(values[:, :10].T).min() < 0.999  # yet not copies of one time course


def test_counts_are_poisson_given_the_rates(recording):
    rates = recording.rates[recording.condition].astype(np.float64)
    residual = (recording.counts - rates) / np.sqrt(rates)
    points = residual.size
    # The squared standardised residual of a Poisson count has mean 1 and variance 2 + 1 / rate.
    assert residual.mean() == pytest.approx(0, abs=5 / math.sqrt(points))
    error = math.sqrt((2 + 1 / rates).mean() / points)
    assert (residual**2).mean() == pytest.approx(1, abs=5 * error)
    for axis in range(3):  # neighbors are independent
        along = np.moveaxis(residual, axis, 0)
        assert (along[1:] * along[:-1]).mean() == pytest.approx(0, abs=5 / math.sqrt(points))


@pytest.mark.parametrize("rate", [0.004, 0.25, 3.0, 30.0, 400.0])
def test_poisson_counts_follow_the_poisson_distribution(rate):
    rates = np.full((1, 10, 10), rate, np.float32)
    counts = lorenz.poisson_counts(rates, 1000, np.random.default_rng(0)).ravel()
    seen = np.bincount(counts)
    rate = float(np.float32(rate))
    expected = poisson.pmf(np.arange(len(seen)), rate) * counts.size
    enough = expected >= 10
    chi2 = ((seen - expected)[enough] ** 2 / expected[enough]).sum()
    bins = enough.sum()
    assert chi2 < bins + 5 * math.sqrt(2 * bins)
    assert counts.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate / counts.size))


def test_a_seed_determines_latents_weights_and_counts():
    first, again, other = (lorenz.generate(seed, **SMALL) for seed in (5, 5, 6))
    for one, same in zip((*first[:-1], *first.readout), (*again[:-1], *again.readout), strict=True):
        np.testing.assert_array_equal(one, same)
    assert np.abs(first.latents - other.latents).mean() > 0.1
    assert (first.counts != other.counts).any()
    one, two = (lorenz.population_weights(29, np.random.default_rng(seed)) for seed in (0, 1))
    assert (one != two).any()


def test_same_counts_on_every_machine():
    counts = lorenz.generate(7, conditions=3, trials_per_condition=4, bins=10, neurons=5).counts
    digest = hashlib.sha256(counts.tobytes()).hexdigest()
    assert digest == "5c7b0b45e601a7e8da1558a52f5e01b2664d9540601554aeb048e762a17658b0"


def test_more_neurons_or_trials_do_not_change_latents_and_rates():
    base, trials, neurons = (
        lorenz.generate(0, **SMALL | more)
        for more in ({}, {"trials_per_condition": 9}, {"neurons": 11})
    )
    np.testing.assert_array_equal(base.rates, trials.rates)
    np.testing.assert_array_equal(base.latents, neurons.latents)


def test_sampled_rates_have_the_statistics_of_the_set(recording):
    """Along other trajectories of the same attractor, in the same neurons."""
    rates = lorenz.sample_rates(recording.readout, 2000, 50, bin_width=0.02)
    found, values = np.log(rates), log_rates(recording)
    assert rates.shape == (2000, 50, 29)
    np.testing.assert_allclose(found.mean((0, 1)), values.mean((0, 1)), atol=0.35)
    np.testing.assert_allclose(found.std((0, 1)), values.std((0, 1)), rtol=0.1)
    np.testing.assert_allclose(np.corrcoef(found.reshape(-1, 29).T)[0, -1], -1, atol=0.05)
    alike = np.corrcoef(found[::50].reshape(40, -1)) - np.eye(40)
    assert alike.max() < 0.99  # segments of one trajectory, one after the other, are different


DEFAULT = 65, 24, 50, 29
SIZES = (1, 1, 1, 1), (1, 3, 2, 1), (3, 1, 4, 2), (2, 5, 30, 64), DEFAULT


@pytest.mark.parametrize("sizes", SIZES)
def test_any_sizes(sizes):
    conditions, trials, bins, neurons = sizes
    how = {} if sizes == DEFAULT else dict(zip(SMALL, sizes, strict=True))
    counts, rates, latents, condition, _ = lorenz.generate(0, **how)
    assert (counts.shape, counts.dtype) == ((conditions * trials, bins, neurons), np.uint8)
    assert (rates.shape, latents.shape) == ((conditions, bins, neurons), (conditions, bins, 3))
    assert rates.dtype == latents.dtype == np.float32
    np.testing.assert_array_equal(condition, np.arange(conditions).repeat(trials))
    assert (np.isfinite(rates) & (rates > 0)).all()
    assert np.isfinite(latents).all()


def test_rates_and_turns_are_as_asked_for():
    made = lorenz.generate(0, conditions=30, mean_rate=20.0, log_rate_sd=0.7, bin_width=0.01)
    assert made.rates.mean(dtype=np.float64) == pytest.approx(20.0 * 0.01, rel=1e-5)
    assert log_rates(made).std() == pytest.approx(0.7, rel=1e-5)
    made = lorenz.generate(0, conditions=200, bins=40, bin_width=0.04)
    assert turn_lengths(made.latents).mean() == pytest.approx(11.5 / 2, abs=0.3)
    made = lorenz.generate(0, conditions=65, bins=100, turn_duration=0.46)
    assert turn_lengths(made.latents).mean() == pytest.approx(23, abs=1)


def test_counts_above_255_take_two_bytes_and_rates_above_500_are_refused():
    made = lorenz.generate(0, **SMALL, mean_rate=10_000.0, log_rate_sd=0.3)
    assert made.counts.dtype == np.uint16
    assert made.counts.max() > 255
    assert made.counts.mean() == pytest.approx(made.rates.mean(), rel=0.01)
    with pytest.raises(ValueError, match=r"mean_rate 1000000\.0.*stay below 500"):
        lorenz.generate(0, **SMALL, mean_rate=1e6)


def test_memory_stays_near_the_counts_themselves():
    tracemalloc.start()
    made = lorenz.generate(0, conditions=60, trials_per_condition=50, bins=30, neurons=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.counts.nbytes == 60 * 50 * 30 * 100
    assert peak < 2 * made.counts.nbytes


@pytest.mark.parametrize(
    ("argument", "value"),
    [(name, 0) for name in ("conditions", "bins", "neurons")]
    + [("trials_per_condition", -1), ("mean_rate", 0.0), ("log_rate_sd", -1.0)]
    + [("bin_width", value) for value in (0.0, -0.02, math.nan)]
    + [("turn_duration", math.inf)],
)
def test_errors_name_argument_value_and_remedy(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is {value}; give a [^\n]*$"):
        lorenz.generate(0, **{argument: value})


def test_trajectories_obey_the_lorenz_equations_whatever_the_bin_width():
    initial = np.array([[1.0, -3.0, 20.0], [-8.0, 2.0, 30.0]])
    x, y, z = initial.T
    step = 1e-6
    path = lorenz.trajectories(initial, 2, time_per_bin=step, burn_in=0.0)
    np.testing.assert_array_equal(path[:, 0], initial)
    slope = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=1)
    np.testing.assert_allclose((path[:, 1] - path[:, 0]) / step, slope, rtol=1e-3)
    coarse = lorenz.trajectories(initial, 6, time_per_bin=0.1, burn_in=0.0)
    fine = lorenz.trajectories(initial, 501, time_per_bin=0.001, burn_in=0.0)
    np.testing.assert_allclose(coarse, fine[:, ::100], atol=5e-3)


def test_trajectories_start_on_the_attractor():
    initial = np.random.default_rng(0).random((400, 3)) + np.array([0.0, 0.0, 25.0])
    start = lorenz.trajectories(initial, 1, time_per_bin=0.06)[:, 0]
    assert (start[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert start[:, 2].mean() == pytest.approx(23.5, abs=2)
    assert start[:, 2].std() == pytest.approx(8.6, abs=1)


CONDITION = np.repeat(np.arange(65), 24)
UNEVEN = np.random.default_rng(0).permutation(np.repeat([40, -3, 7], [100, 50, 11]))


@pytest.mark.parametrize(
    ("condition", "fraction", "sizes", "each"),
    [
        (CONDITION, 0.2, (1248, 312), 4.8),
        (CONDITION, 0.25, (1170, 390), 6),  # which divides equally
        (UNEVEN, 0.3, (113, 48), [15, 3.3, 30]),  # of -3, 7, 40
    ],
)
def test_split_takes_an_equal_share_of_each_condition(condition, fraction, sizes, each):
    train, valid = stratified(condition, fraction)
    assert (train.size, valid.size) == sizes
    np.testing.assert_array_equal(np.sort(np.r_[train, valid]), np.arange(condition.size))
    assert all((np.diff(trials) > 0).all() for trials in (train, valid))
    taken = np.unique(condition[valid], return_counts=True)[1]
    assert (np.abs(taken - each) < 1).all()


def test_split_draws_every_trial_equally_often():
    times = np.zeros(24)
    for seed in range(300):
        times[stratified(np.zeros(24, int), 0.25, seed)[1]] += 1
    expected = 300 * 0.25
    assert np.abs(times - expected).max() < 4.5 * math.sqrt(expected * 0.75)


def test_a_seed_determines_the_split_and_which_conditions_are_rounded_up():
    first, again, other = (stratified(CONDITION, seed=seed) for seed in (4, 4, 5))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert (first[1] != other[1]).any()
    assert (np.bincount(CONDITION[first[1]]) != np.bincount(CONDITION[other[1]])).any()


def test_split_leaves_neither_side_empty_and_refuses_what_would():
    assert [trials.size for trials in stratified(np.arange(5), 0.001)] == [4, 1]
    assert [trials.size for trials in stratified(np.arange(5), 0.999)] == [1, 4]
    for wrong in (0.0, 1.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"^valid_fraction is {wrong}; give a number between"):
            stratified(CONDITION, wrong)
    with pytest.raises(ValueError, match="1 trials; a split needs at least 2"):
        stratified(np.zeros(1, int))
