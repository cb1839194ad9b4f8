"""The synthetic recordings: their statistics at every seed, their reproducibility, their split."""

import hashlib
import math
import tracemalloc

import numpy as np
import pytest

from sbtt_jax import lorenz

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


def test_default_sizes_and_types(recording):
    assert recording.counts.shape == (1560, 50, 29)
    assert recording.counts.dtype == np.uint8
    assert recording.rates.shape == (65, 50, 29)
    assert recording.rates.dtype == np.float32
    assert recording.latents.shape == (65, 50, 3)
    assert recording.latents.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(recording.condition), np.full(65, 24))


def test_counts_have_the_published_statistics(recording):
    counts = recording.counts
    share = np.bincount(counts.ravel()) / counts.size * 100
    assert counts.mean() == pytest.approx(0.256, abs=0.02)
    assert share[0] == pytest.approx(82.9, abs=1.0)
    assert share[1] == pytest.approx(12.5, abs=0.7)
    assert share[2] == pytest.approx(2.75, abs=0.25)
    assert share[5:].sum() == pytest.approx(0.49, abs=0.1)
    assert 15 <= counts.max() <= 30


def test_log_rates_have_the_published_statistics(recording):
    values = log_rates(recording)
    assert values.mean() == pytest.approx(-2.3, abs=0.1)
    assert values.std() == pytest.approx(1.3, abs=0.1)
    skew = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    assert abs(skew) < 0.1


def test_a_lobe_turns_every_11_to_12_bins(recording):
    assert 11 < turn_lengths(recording.latents).mean() < 12


def test_latents_are_standardised(recording):
    np.testing.assert_allclose(recording.latents.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(recording.latents.std((0, 1)), 1, atol=1e-5)


def test_first_and_last_third_of_neurons_move_oppositely_and_the_middle_hardly(recording):
    values = log_rates(recording).reshape(-1, 29)
    with_x = np.corrcoef(values.T, recording.latents[..., 0].ravel())[-1, :-1]
    spread = values.std(0)
    assert with_x[:10].min() > 0.9
    assert with_x[-10:].max() < -0.9
    assert spread[10:19].max() < 0.5 * min(spread[:10].min(), spread[-10:].min())
    assert spread.min() > 0.2
    assert np.all(np.diff(spread * np.sign(with_x)) < 0.1)


def test_neurons_are_not_all_copies_of_one_time_course(recording):
    strong = log_rates(recording)[..., :10].reshape(-1, 10)
    assert np.corrcoef(strong.T).min() < 0.999


def test_conditions_are_different_trajectories(recording):
    flat = recording.latents.reshape(65, -1)
    nearest = np.sort(np.linalg.norm(flat[:, None] - flat[None], axis=-1), axis=1)[:, 1]
    assert nearest.min() > 0.1


def test_counts_are_poisson_given_the_rates(recording):
    rates = recording.rates[recording.condition].astype(np.float64)
    residual = (recording.counts - rates) / np.sqrt(rates)
    points = residual.size
    # A Poisson count's squared standardised residual has mean 1 and variance 2 + 1 / rate.
    assert residual.mean() == pytest.approx(0, abs=5 / math.sqrt(points))
    error = math.sqrt((2 + 1 / rates).mean() / points)
    assert (residual**2).mean() == pytest.approx(1, abs=5 * error)
    for neighbours in (
        residual[1:] * residual[:-1],
        residual[:, 1:] * residual[:, :-1],
        residual[..., 1:] * residual[..., :-1],
    ):
        assert neighbours.mean() == pytest.approx(0, abs=5 / math.sqrt(points))


@pytest.mark.parametrize("rate", [0.004, 0.25, 3.0, 30.0, 400.0])
def test_poisson_counts_follow_the_poisson_distribution(rate):
    rates = np.full((1, 10, 10), rate, np.float32)
    counts = lorenz.poisson_counts(rates, 1000, np.random.default_rng(0)).ravel()
    largest = counts.max()
    seen = np.bincount(counts)
    rate = float(np.float32(rate))
    pmf = [math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(largest + 1)]
    expected = np.array(pmf) * counts.size
    enough = expected >= 10
    chi2 = ((seen - expected)[enough] ** 2 / expected[enough]).sum()
    bins = enough.sum()
    assert chi2 < bins + 5 * math.sqrt(2 * bins)
    assert counts.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate / counts.size))


def test_same_seed_same_arrays():
    first, second = lorenz.generate(5, **SMALL), lorenz.generate(5, **SMALL)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_same_counts_on_every_machine():
    counts = lorenz.generate(7, conditions=3, trials_per_condition=4, bins=10, neurons=5).counts
    digest = hashlib.sha256(counts.tobytes()).hexdigest()
    assert digest == "5c7b0b45e601a7e8da1558a52f5e01b2664d9540601554aeb048e762a17658b0"


def test_different_seeds_differ_in_latents_weights_and_counts():
    first, second = lorenz.generate(0, **SMALL), lorenz.generate(1, **SMALL)
    assert np.abs(first.latents - second.latents).mean() > 0.1
    assert (first.counts != second.counts).any()
    rngs = [np.random.default_rng(seed) for seed in (0, 1)]
    weights = [lorenz.population_weights(29, rng) for rng in rngs]
    assert (weights[0] != weights[1]).any()


def test_more_neurons_or_trials_leave_latents_and_rates_alone():
    base = lorenz.generate(0, **SMALL)
    more_trials = lorenz.generate(0, **SMALL | {"trials_per_condition": 9})
    more_neurons = lorenz.generate(0, **SMALL | {"neurons": 11})
    np.testing.assert_array_equal(base.rates, more_trials.rates)
    np.testing.assert_array_equal(base.latents, more_neurons.latents)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3, 2, 1), (3, 1, 4, 2), (2, 5, 30, 64)])
def test_any_sizes(sizes):
    conditions, trials, bins, neurons = sizes
    made = lorenz.generate(
        0, conditions=conditions, trials_per_condition=trials, bins=bins, neurons=neurons
    )
    assert made.counts.shape == (conditions * trials, bins, neurons)
    assert made.rates.shape == (conditions, bins, neurons)
    assert made.latents.shape == (conditions, bins, 3)
    np.testing.assert_array_equal(made.condition, np.arange(conditions).repeat(trials))
    assert np.isfinite(made.rates).all()
    assert (made.rates > 0).all()
    assert np.isfinite(made.latents).all()


def test_mean_rate_and_log_rate_sd_are_met():
    made = lorenz.generate(0, conditions=30, mean_rate=20.0, log_rate_sd=0.7, bin_width=0.01)
    assert made.rates.mean(dtype=np.float64) == pytest.approx(20.0 * 0.01, rel=1e-5)
    assert log_rates(made).std() == pytest.approx(0.7, rel=1e-5)


def test_the_same_system_in_wider_bins():
    made = lorenz.generate(0, conditions=200, bins=40, bin_width=0.04)
    assert made.rates.mean() == pytest.approx(2 * 0.256, rel=1e-3)
    assert turn_lengths(made.latents).mean() == pytest.approx(11.5 / 2, abs=0.3)


def test_turn_duration_sets_the_turns():
    made = lorenz.generate(0, conditions=65, bins=100, turn_duration=0.46)
    assert turn_lengths(made.latents).mean() == pytest.approx(23, abs=1)


def test_counts_beyond_255_are_kept_whole():
    made = lorenz.generate(0, **SMALL, mean_rate=10_000.0, log_rate_sd=0.3)
    assert made.counts.dtype == np.uint16
    assert made.counts.max() > 255
    assert made.counts.mean() == pytest.approx(made.rates.mean(), rel=0.01)


def test_memory_stays_near_the_counts_themselves():
    tracemalloc.start()
    made = lorenz.generate(0, conditions=60, trials_per_condition=50, bins=30, neurons=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.counts.nbytes == 60 * 50 * 30 * 100
    assert peak < 2 * made.counts.nbytes


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("conditions", 0),
        ("trials_per_condition", -1),
        ("bins", 0),
        ("neurons", 0),
        ("bin_width", 0.0),
        ("bin_width", -0.02),
        ("bin_width", math.nan),
        ("mean_rate", 0.0),
        ("log_rate_sd", -1.0),
        ("turn_duration", math.inf),
    ],
)
def test_errors_name_argument_value_and_remedy(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is {value}; give a [^\n]*$"):
        lorenz.generate(0, **{argument: value})


def test_rates_beyond_reason_are_refused():
    with pytest.raises(ValueError, match=r"mean_rate 1000000\.0.*stay below 500"):
        lorenz.generate(0, **SMALL, mean_rate=1e6)


def test_trajectories_obey_the_lorenz_equations():
    x, y, z = np.array([[1.0, -3.0, 20.0], [-8.0, 2.0, 30.0]]).T
    initial = np.stack([x, y, z], axis=1)
    step = 1e-6
    path = lorenz.trajectories(initial, 2, time_per_bin=step, burn_in=0.0)
    np.testing.assert_array_equal(path[:, 0], initial)
    slope = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=1)
    np.testing.assert_allclose((path[:, 1] - path[:, 0]) / step, slope, rtol=1e-3)


def test_trajectories_do_not_depend_on_the_bin():
    initial = np.array([[5.0, 5.0, 25.0]])
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


def test_split_of_the_default_set():
    train, valid = lorenz.split(CONDITION)
    assert train.size == 1248
    assert valid.size == 312
    np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(1560))
    assert (np.diff(train) > 0).all()
    assert (np.diff(valid) > 0).all()
    np.testing.assert_array_equal(np.unique(np.bincount(CONDITION[valid])), [4, 5])


def test_split_gives_equal_shares_where_the_numbers_allow():
    _, valid = lorenz.split(CONDITION, 0.25)
    np.testing.assert_array_equal(np.bincount(CONDITION[valid]), np.full(65, 6))


def test_split_of_uneven_shuffled_conditions():
    condition = np.repeat([40, -3, 7], [100, 50, 11])
    np.random.default_rng(0).shuffle(condition)
    train, valid = lorenz.split(condition, 0.3)
    assert valid.size == round(0.3 * 161)
    assert train.size + valid.size == 161
    _, sizes = np.unique(condition[valid], return_counts=True)  # -3, 7, 40
    np.testing.assert_allclose(sizes, [15, 3.3, 30], atol=1)


def test_split_draws_every_trial_about_equally_often():
    times = np.zeros(24)
    for seed in range(300):
        times[lorenz.split(np.zeros(24, int), 0.25, seed)[1]] += 1
    expected = 300 * 0.25
    assert np.abs(times - expected).max() < 4.5 * math.sqrt(expected * 0.75)


def test_split_rounds_up_other_conditions_at_other_seeds():
    first, second = (np.bincount(CONDITION[lorenz.split(CONDITION, seed=s)[1]]) for s in (0, 1))
    assert (first != second).any()


def test_split_same_seed_same_split():
    for one, other in zip(*[lorenz.split(CONDITION, seed=4) for _ in range(2)], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (lorenz.split(CONDITION, seed=4)[1] != lorenz.split(CONDITION, seed=5)[1]).any()


@pytest.mark.parametrize(("fraction", "sizes"), [(0.001, (4, 1)), (0.999, (1, 4))])
def test_split_leaves_neither_side_empty(fraction, sizes):
    train, valid = lorenz.split(np.arange(5), fraction)
    assert (train.size, valid.size) == sizes


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_split_refuses_fractions_outside_0_to_1(fraction):
    with pytest.raises(ValueError, match=rf"^valid_fraction is {fraction}; give a number between"):
        lorenz.split(CONDITION, fraction)


def test_split_refuses_a_single_trial():
    with pytest.raises(ValueError, match="1 trials; a split needs at least 2"):
        lorenz.split(np.zeros(1, int))
