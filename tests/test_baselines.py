"""Simple estimates of rates: right where their assumptions hold, and under the models' rules."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import small_data

from sbtt_jax import config
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.splits import stratified
from sbtt_jax.model import metrics
from sbtt_jax.model.low_rank import learn
from sbtt_jax.observations import POISSON
from sbtt_jax.run import notices
from sbtt_jax.run.baselines import BASELINES, everywhere, psth, score_baselines, training_of
from sbtt_jax.run.scores import view

TRIALS, BINS, NEURONS = 120, 40, 12
TIME = np.linspace(0, 2 * np.pi, BINS)[:, None]
CONDITION = np.arange(TRIALS) % 4
PHASE = np.linspace(0, np.pi, NEURONS)
RNG = np.random.default_rng(0)
OWN = RNG.random((TRIALS, 1, NEURONS)) * 2 * np.pi  # of each neuron in each trial
SHARED = RNG.random((TRIALS, 1, 1)) * 2 * np.pi  # of all neurons of a trial

# Log-rates for which each of the baselines is made.
MADE_FOR = {
    "mean_rate": np.broadcast_to(PHASE, (TRIALS, BINS, NEURONS)),
    "smoothing": 1.5 * np.sin(TIME + OWN),
    "trial_average": np.broadcast_to(np.sin(3 * TIME + PHASE), (TRIALS, BINS, NEURONS)),
    "psth": 1.5 * np.sin(3 * TIME + PHASE + CONDITION[:, None, None] * np.pi / 2),
    "low_rank": 1.5 * np.sin(3 * TIME + SHARED + PHASE),
}


def recording(log_rates, seed=0):
    rates = np.exp(log_rates - 0.5).astype(np.float32)
    counts = np.random.default_rng(seed).poisson(rates).astype(np.uint8)
    train, valid = stratified(CONDITION, 0.3)
    seen = np.random.default_rng(seed).random(counts.shape) < 0.7
    return Dataset(counts, seen, train, valid, 0.02, rates, CONDITION)


def of(data, bandwidth=NEURONS, **model):
    own = {"bandwidths": [bandwidth], "data": {"holdout_fraction": 0.3}, "model": model}
    return view(config.check(own), data, bandwidth)


def test_neurons_that_trials_lack_covary_as_in_the_trials_that_have_them():
    data = recording(MADE_FOR["low_rank"])
    whole = training_of(of(data))
    lacking = np.random.default_rng(5).random((TRIALS, 1, NEURONS)) < 0.5
    lacking[0] = False  # but for one trial, which nothing follows from
    part = training_of(of(replace(data, observed=data.observed & ~lacking)))
    covariance = []
    for one in (whole, part):
        found = learn(one.counts, one.observed, whole.scale, 2.0)
        covariance.append(found.components * found.variance @ found.components.T)
    np.testing.assert_allclose(*covariance, atol=0.25 * covariance[0].max())
    assert np.trace(covariance[1]) == pytest.approx(np.trace(covariance[0]), rel=0.1)


def real_values(observation):
    """A view of values of which each neuron has its own course in each trial, beside noise of its
    own or in steps; and, beside noise, how many bits per sample one gains who knows the course."""
    data, rng = recording(MADE_FOR["smoothing"]), np.random.default_rng(1)
    course, gain = data.rates, None
    if observation == "gaussian":
        noise = np.geomspace(0.05, 0.5, NEURONS)
        values = rng.normal(course, noise)
        gain = np.log2(values.std((0, 1)) / noise).mean()
    else:
        spikes = rng.poisson(course)
        values = np.where(spikes, rng.gamma(4.0 * np.maximum(spikes, 1), 0.25), 0)
    return of(replace(data, counts=values.astype(np.float32)), observation=observation), gain


@pytest.mark.parametrize("name", BASELINES)
def test_each_is_best_where_its_assumption_holds(name):
    rows = {row["baseline"]: row for row in score_baselines(of(recording(MADE_FOR[name])))}
    bits = {other: row["bits_per_spike_heldout"] for other, row in rows.items()}
    assert bits[name] > max(bits.values()) - 0.01
    if name != "mean_rate":
        assert bits[name] > bits["mean_rate"] + 0.1
        assert rows[name]["r2"] > 0.5
    missing = 1 - of(recording(MADE_FOR[name])).observed.mean()
    assert rows[name]["missing_fraction"] == pytest.approx(missing, abs=0.02)


@pytest.mark.parametrize("name", ["gaussian", "zero_inflated_gamma"])
def test_what_is_no_count_is_scored_by_how_far_it_is_from_what_is_expected(name, monkeypatch):
    """Values nearer to good estimates than to the mean, and events that grow more frequent."""
    shared, rng = MADE_FOR["low_rank"][:48], np.random.default_rng(1)
    if name == "gaussian":
        true, values = shared, rng.normal(shared, 0.3)
    else:
        true = 1 / (1 + np.exp(-2 * shared))
        values = (rng.random(true.shape) < true) * rng.gamma(20.0, 1 / 20, true.shape)
    train, valid = stratified(CONDITION[:48], 0.3)
    seen = rng.random(true.shape) < 0.7
    values, true = values.astype(np.float32), true.astype(np.float32)
    data = Dataset(values, seen, train, valid, 0.02, true)
    model = {"observation": name, "smoothing": False}
    own = {"bandwidths": [NEURONS], "data": {"holdout_fraction": 0.3}, "model": model}
    of_data = view(config.check(own), data, NEURONS)
    for other in BASELINES.keys() - {"mean_rate", "low_rank"}:
        monkeypatch.delitem(BASELINES, other)
    mean_rate, row = score_baselines(of_data)
    assert row["r2"] > 0.6
    best = true[valid]  # with what values were drawn with
    if name == "gaussian":
        best = np.concatenate([best, np.full_like(best, np.log(0.3))], -1)
    else:
        shape = np.full_like(best, 8 * np.arctanh(np.log(20) / 8))
        best = np.concatenate([best, np.log(best / (1 - best)), shape], -1)
    reported = data.counts[valid], of_data.reporting
    most = metrics.bits_per_spike(best, *reported, of_data.observation)
    assert row["bits_per_spike_heldout"] > 0.4 * most
    assert mean_rate["bits_per_spike_heldout"] == pytest.approx(0, abs=0.03)


def test_the_scale_of_a_neurons_values_is_of_no_matter():
    log = MADE_FOR["low_rank"][:40]
    values = np.random.default_rng(1).normal(log, 0.7)
    own = {"bandwidths": [NEURONS], "data": {"holdout_fraction": 0.3}}
    own["model"] = {"observation": "gaussian", "smoothing": False}
    train, valid = stratified(CONDITION[:40], 0.3)
    seen, found = np.ones(values.shape, bool), []
    for scale in (1.0, 10.0 ** np.linspace(-2, 1, NEURONS)):
        data = Dataset((values * scale).astype(np.float32), seen, train, valid, 0.02)
        rows = score_baselines(view(config.check(own), data, NEURONS))
        found.append([row["bits_per_spike_heldout"] for row in rows])
    np.testing.assert_allclose(found[1], found[0], atol=2e-3)


def test_an_estimate_is_scored_with_the_spread_that_it_leaves():
    seen, gain = real_values("gaussian")
    bits = {row["baseline"]: row["bits_per_spike_heldout"] for row in score_baselines(seen)}
    # With the spread of constants, log2(e) / 2 at most.
    assert 1 < bits["smoothing"] == max(bits.values()) < gain


def test_held_out_counts_change_no_rate_and_reported_ones_no_choice():
    data = recording(MADE_FOR["low_rank"])
    one = of(data, 6)
    at = np.zeros(data.counts.shape, bool)
    at[data.valid] = one.reporting
    spoiled = data.counts + at.astype(np.uint8) * 7
    other = of(Dataset(**vars(data) | {"counts": spoiled}), 6)
    for before, after in zip(score_baselines(one), score_baselines(other), strict=True):
        assert before["parameters"] == after["parameters"]
        assert before["bits_per_spike_heldout"] != after["bits_per_spike_heldout"]


def test_what_stands_where_nothing_was_observed_changes_nothing():
    data = recording(MADE_FOR["psth"])
    missing = np.where(data.observed, data.counts, np.nan).astype(np.float32)
    one, other = (of(Dataset(**vars(data) | {"counts": c})) for c in (data.counts, missing))
    for row, same in zip(score_baselines(one), score_baselines(other), strict=True):
        assert row == pytest.approx(same, nan_ok=True)


def test_trials_without_a_condition_share_none():
    data, unknown = recording(MADE_FOR["psth"]), CONDITION.copy()
    unknown[:12] = -1
    training = training_of(of(Dataset(**vars(data) | {"condition": unknown})))
    at = everywhere(data.counts[:3].shape)
    rates = psth(training)(1.0)(data.counts[:3], None, np.array([-1, 0, 1]), at)(1.0)
    np.testing.assert_array_equal(rates[0], np.broadcast_to(training.scale.mean, rates[0].shape))
    assert np.ptp(rates[1:], axis=1).min() > 0.5


def test_the_mean_rate_is_that_of_observed_training_points():
    data = small_data()
    (row, *_) = score_baselines(of(data, 3))
    one = of(data, 3)
    train = data.train
    mean = data.counts[train].mean((0, 1), where=one.observed[train])
    rates = np.broadcast_to(mean, (len(data.valid), *data.counts.shape[1:]))
    expected = metrics.bits_per_spike(rates, data.counts[data.valid], one.reporting)
    assert row["bits_per_spike_heldout"] == pytest.approx(expected)
    assert {r["baseline"] for r in score_baselines(one)} == BASELINES.keys() - {"psth"}


def test_a_line_says_where_a_baseline_beats_the_models():
    def lines(model, simple):
        models = [{"bandwidth": 5, "bits_per_spike_heldout": bits} for bits in model]
        rows = [{"bandwidth": 5, "baseline": n, "bits_per_spike_heldout": b} for n, b in simple]
        return notices.better_baselines(models, rows, POISSON)

    assert lines([0.2, 0.4], [("psth", 0.29), ("smoothing", np.nan)]) == []
    (line,) = lines([0.2, 0.4], [("psth", 0.1), ("smoothing", 0.31)])
    assert "bandwidth 5: smoothing predicts held-out points better (0.310" in line


def test_conditions_of_validation_trials_alone_are_of_no_use():
    data = recording(MADE_FOR["psth"])
    condition = CONDITION.copy()
    condition[data.train] = -1
    rows = score_baselines(of(replace(data, condition=condition)))
    assert "psth" not in {row["baseline"] for row in rows}
