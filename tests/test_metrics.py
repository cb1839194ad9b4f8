import numpy as np
import pytest
from scipy.stats import poisson

from sbtt_jax.model import metrics
from sbtt_jax.observations import OBSERVATIONS

SHAPE = (20, 15, 4)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 0.5, SHAPE)
    inferred = rates * rng.lognormal(0, 0.3, SHAPE)
    return rates, inferred, rng.poisson(rates), rng.random(SHAPE) < 0.4


def test_r2_is_the_mean_over_neurons_of_each_ones_own(problem):
    rates, inferred, _, _ = problem
    error = ((rates - inferred) ** 2).sum((0, 1))
    each = 1 - error / ((rates - rates.mean((0, 1))) ** 2).sum((0, 1))
    assert metrics.r2(rates, inferred) == pytest.approx(np.mean(each))
    assert metrics.r2(rates, rates) == 1
    assert metrics.r2(rates, np.broadcast_to(rates.mean((0, 1)), SHAPE)) == pytest.approx(0)


def test_r2_over_some_points_reads_no_others(problem):
    rates, inferred, _, where = problem
    expected = metrics.r2(rates, inferred, where)
    spoiled = np.where(where, inferred, np.nan)
    assert metrics.r2(np.where(where, rates, np.nan), spoiled, where) == expected
    assert expected != metrics.r2(rates, inferred, ~where)


def test_r2_of_a_neuron_that_does_not_vary():
    rates = np.ones((3, 4, 2))
    rates[..., 1] = np.arange(12).reshape(3, 4)
    assert metrics.r2(rates, rates) == 1
    wrong = rates.copy()
    wrong[0, 0, 0] = 2
    assert metrics.r2(rates, wrong) == 0.5


def test_nothing_to_judge_is_nan(problem):
    rates, inferred, counts, _ = problem
    assert np.isnan(metrics.r2(rates, inferred, np.zeros(SHAPE, bool)))
    for likelihood in (metrics.nll, metrics.bits_per_spike):
        assert np.isnan(likelihood(inferred, counts, np.zeros(SHAPE, bool)))


def test_likelihoods_are_those_of_the_poisson_distribution(problem):
    """NLL up to a constant; bits per spike are the gain over each neuron's mean rate."""
    rates, inferred, counts, where = problem
    a, b = (metrics.nll(rate, counts, where) for rate in (inferred, rates))
    exact = (-poisson.logpmf(counts[where], rate[where]).mean() for rate in (inferred, rates))
    assert a - b == pytest.approx(next(exact) - next(exact))
    mean = np.where(where, counts, 0).sum((0, 1)) / where.sum((0, 1))
    gain = (poisson.logpmf(counts, inferred) - poisson.logpmf(counts, mean))[where].sum()
    expected = gain / counts[where].sum() / np.log(2)
    assert metrics.bits_per_spike(inferred, counts, where) == pytest.approx(expected)


def test_bayes_rates_weigh_patterns_by_their_probability():
    """Two conditions and one bin of one neuron, worked out by hand."""
    patterns = np.array([1.0, 3.0]).reshape(2, 1, 1)
    counts = np.array([0, 2, 5]).reshape(3, 1, 1)
    found = metrics.bayes_rates(patterns, counts, np.array([True, True, False]).reshape(3, 1, 1))
    for count, rate in zip((0, 2), found[:2].ravel(), strict=True):
        odds = poisson.pmf(count, 3.0) / poisson.pmf(count, 1.0)
        assert rate == pytest.approx((1.0 + 3.0 * odds) / (1 + odds))
    assert found[2] == pytest.approx(2.0)  # nothing observed: the mean of all conditions


def test_bayes_rates_are_a_ceiling():
    """Nearly exact where all is seen, worse the less is seen, and better than any guess."""
    rng = np.random.default_rng(1)
    patterns = rng.gamma(1.0, 0.3, (12, 20, 12))
    rates = np.repeat(patterns, 40, axis=0)
    counts = rng.poisson(rates)
    scores = []
    for share in (1.0, 0.3, 0.05):
        observed = rng.random(counts.shape) < share
        best = metrics.bayes_rates(patterns, counts, observed)
        spoiled = np.where(observed, counts, 99)  # never read
        np.testing.assert_array_equal(best, metrics.bayes_rates(patterns, spoiled, observed))
        scores.append(metrics.r2(rates, best))
    assert scores[0] > 0.99
    assert scores[0] > scores[1] > scores[2] > 0


def test_a_linear_map_is_learned_from_some_trials_and_holds_for_others():
    rng = np.random.default_rng(0)
    latents, mix = rng.normal(size=(30, 7, 5)), rng.normal(size=(5, 3))
    true = latents @ mix + [1.0, -2.0, 3.0]
    noisy = true[:20] + 0.01 * rng.normal(size=(20, 7, 3))
    found = metrics.linear_map(latents[:20], noisy, latents[20:])
    np.testing.assert_allclose(found, true[20:], atol=0.02)


def test_constants_are_each_neurons_own_whatever_the_scale_of_the_others():
    values = np.random.default_rng(0).normal(2.0, 1.0, (20, 30, 3))
    values *= [1e-3, 1.0, 1e5]
    where = np.ones(values.shape, bool)
    found = metrics.null(values, where, OBSERVATIONS["gaussian"])
    np.testing.assert_allclose(found[:3], values.mean((0, 1)), rtol=1e-3)
    np.testing.assert_allclose(found[3:], np.log(values.std((0, 1))), atol=1e-3)
    values[..., 0] = 0.1  # as the others on average
    log_deviation = metrics.null(values, where, OBSERVATIONS["gaussian"])[3]
    assert log_deviation == pytest.approx(np.log((values.var((0, 1))[1:]).mean()) / 2)
