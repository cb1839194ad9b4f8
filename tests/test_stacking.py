"""Rates as a weighted mean of the network's, similar training trials' and a linear model's."""

import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import FIT, SMALL, save, small_data
from scipy.special import softmax
from scipy.stats import gamma, poisson
from test_baselines import real_values
from test_predicted import csv_rows

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.model import intervals, low_rank, stacking
from sbtt_jax.model.inference import Prior, infer_all, infer_with_variance
from sbtt_jax.model.low_rank import Scale, Smoother
from sbtt_jax.model.stacking import ESTIMATES, SIMPLE, Psth, Stack
from sbtt_jax.observations import OBSERVATIONS, POISSON, predicted
from sbtt_jax.run import notices, priors
from sbtt_jax.run.baselines import predictions
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.scores import view
from sbtt_jax.run.train import train
from sbtt_jax.training import epoch

WEIGHTS = "weights", "weights_unseen"
MODEL = {**SMALL.model_dump(), "stacked": True}


def settings(**data):
    own = {"holdout_fraction": 0.3} | data
    return config.check({"bandwidths": [3], "data": own, "model": MODEL, "train": {"folds": 2}})


def seen(data, **own):
    return view(settings(**own), data, 3)


@pytest.fixture
def model():
    return epoch.build(5, settings().model)


def stack_of(weights, trajectories, neurons=5):
    ones = np.ones(neurons)
    rng = np.random.default_rng(1)
    counts = rng.poisson(1.0, (8, 9, neurons))
    scale = Scale(ones, ones, 0.1 * ones)
    every = low_rank.learn(counts, np.ones(counts.shape, bool), scale, 2.0)
    own = low_rank.truncated(every, 2)
    psth = Psth(np.array([2, 7]), *rng.gamma(2.0, 1.0, (2, 2, 9, neurons)))
    sources = np.zeros(len(trajectories), np.uint64)
    smoother, rest = Smoother(scale, 1.5, 2.0), np.zeros((len(SIMPLE), 2, 0))
    weights = np.pad(weights, (0, len(ESTIMATES) - len(weights)))
    return Stack(weights, weights, trajectories, sources, own, psth, smoother, rest)


def alone(stack, name):
    """With all weight on one of the estimates."""
    return stack._replace(**dict.fromkeys(WEIGHTS, np.eye(5)[ESTIMATES.index(name)]))


def test_weights_are_those_that_counts_were_drawn_with():
    rng = np.random.default_rng(0)
    every = list(rng.gamma(1.0, 2.0, (3, 40, 20, 10)))
    true = np.array([0.6, 0.4, 0.0])
    counts = rng.poisson(stacking.mean(true, every))
    where = rng.random(counts.shape) < 0.5
    found = stacking.best_weights(POISSON, every, counts, where)
    np.testing.assert_allclose(found, true, atol=0.03)
    assert found.sum() == pytest.approx(1)
    # What stands at other points has no part in it.
    spoiled = np.where(where, counts, 99)
    np.testing.assert_array_equal(stacking.best_weights(POISSON, every, spoiled, where), found)


def test_an_estimate_that_is_not_finite_counts_for_nothing():
    rng = np.random.default_rng(0)
    every = list(rng.gamma(1.0, 2.0, (3, 10, 8, 4)))
    every[1][2, 3, 1] = np.inf
    counts, where = rng.poisson(every[2]), np.ones((10, 8, 4), bool)
    found = stacking.best_weights(POISSON, every, counts, where)
    assert found[1] == 0
    assert found[2] > 0.8
    assert np.isfinite(stacking.mean(found, every)).all()
    where_it_counts = np.array([0.0, 1.0, 0.0])[:, None, None, None] * (np.arange(4) != 1)
    assert np.isfinite(stacking.mean(where_it_counts, every)).all()
    nothing = [np.full_like(every[0], np.nan)] * 2
    np.testing.assert_array_equal(stacking.best_weights(POISSON, nothing, counts, where), [1, 0])


def test_weights_of_values_with_a_learned_deviation():
    """Gaussian, two parameters a neuron: the estimate that the values were drawn with wins."""
    rng = np.random.default_rng(0)
    mean, log_deviation = rng.normal(0, 2, (30, 10, 4)), np.full((30, 10, 4), -1.0)
    right = np.concatenate([mean, log_deviation], axis=-1)
    wrong = np.concatenate([np.zeros_like(mean), log_deviation + 1], axis=-1)
    values, where = rng.normal(mean, np.exp(log_deviation)), np.ones(mean.shape, bool)
    found = stacking.best_weights(OBSERVATIONS["gaussian"], [wrong, right, wrong], values, where)
    assert found[1] > 0.95


def test_similar_trials_are_weighed_by_likelihood(model):
    data, rng = small_data(), np.random.default_rng(3)
    observed = rng.random(data.counts.shape) < 0.6
    trajectories = rng.normal(-0.5, 1, (4, 9, 5)).astype(np.float32)
    output = rng.normal(0, 1, data.counts.shape).astype(np.float32)
    stack = stack_of([0.3, 0.3, 0.2, 0.1, 0.1], trajectories)
    condition = np.arange(len(output)) % 2 + 6  # of which 6 was never seen
    given = output, data.counts, observed, condition
    (own, similar, linear, mean, smooth), among = stacking.estimates(model, stack, *given)
    rates = np.exp(trajectories, dtype="f8")
    likelihood = poisson.logpmf(np.where(observed, data.counts, 0)[:, None], rates)
    weights = softmax(np.where(observed[:, None], likelihood, 0).sum((2, 3)), axis=1)
    np.testing.assert_allclose(own, np.exp(output), rtol=1e-6)
    np.testing.assert_allclose(similar, np.tensordot(weights, rates, 1), rtol=1e-3)
    np.testing.assert_allclose(linear, stack.low_rank(data.counts, observed), rtol=1e-6)
    np.testing.assert_array_equal(mean[::2], own[::2])
    np.testing.assert_allclose(mean[1::2], np.tile(stack.psth.means[1], (11, 1, 1)), rtol=1e-6)
    known = low_rank.sums(data.counts, observed, 1.5)
    np.testing.assert_allclose(smooth, known.rates(np.ones(5), 2.0), rtol=1e-6)
    output, variance = stacking.combined(model, stack, *given, with_variance=True)
    right = 0.3 * own + 0.3 * similar + 0.2 * linear + 0.1 * mean + 0.1 * smooth
    np.testing.assert_allclose(np.exp(output), right, rtol=1e-5)
    square = np.tensordot(weights, rates**2, 1)
    np.testing.assert_allclose(among, square - similar**2, rtol=1e-2, atol=1e-4)
    square = 0.3 * own**2 + 0.3 * square + 0.2 * linear**2 + 0.1 * mean**2 + 0.1 * smooth**2
    left_open = np.zeros((3, *right.shape))
    left_open[0] = stack.low_rank.variance_of(linear, observed)
    left_open[1, 1::2] = stack.psth.variances[1]
    left_open[2] = known.rates(np.ones(5), 2.0) / (known.weight + 2.0)
    right = square - right**2 + np.tensordot([0.2, 0.1, 0.1], left_open, 1)
    np.testing.assert_allclose(variance, right, rtol=1e-2, atol=1e-4)
    assert stacking.combined(model, stack, *given)[1] is None


def test_a_neuron_without_a_sample_has_weights_of_its_own(model):
    data, rng = small_data(), np.random.default_rng(3)
    observed = rng.random(data.counts.shape) < 0.6
    observed[::2, :, 1] = observed[5] = False
    stack = stack_of([0.5, 0, 0.5, 0], np.zeros((0, 9, 5), np.float32))
    stack = stack._replace(weights_unseen=np.array([0.1, 0, 0.2, 0.7, 0]))
    condition = np.full(len(observed), 7)
    given = rng.normal(0, 1, observed.shape).astype(np.float32), data.counts, observed, condition
    (own, _, linear, means, _), _ = stacking.estimates(model, stack, *given)
    output, variance = stacking.combined(model, stack, *given, with_variance=True)
    seen, none = observed.any(1, keepdims=True), 0.1 * own + 0.2 * linear + 0.7 * means
    np.testing.assert_allclose(np.exp(output), np.where(seen, (own + linear) / 2, none), rtol=1e-5)
    open_ = stack.low_rank.variance_of(linear, observed)
    alike = (own - linear) ** 2 / 4 + open_ / 2
    apart = 0.1 * own**2 + 0.2 * (linear**2 + open_) + 0.7 * (means**2 + stack.psth.variances[1])
    right = np.where(seen, alike, apart - none**2)
    np.testing.assert_allclose(variance, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_target", [False, True])
def test_weights_of_what_is_not_seen_are_chosen_where_nothing_is(is_target):
    """Neurons on courses of their own, beside courses of conditions: their own values count where
    there are any. is_target: of two neurons there never are."""
    rng = np.random.default_rng(0)
    condition, at = np.arange(120) % 4, np.linspace(0, 2 * np.pi, 40)[:, None]
    own = 1.2 * np.sin(at + 2 * np.pi * rng.random((120, 1, 5)))
    rates = np.exp(own + np.sin(3 * at + np.arange(5) + condition[:, None, None]))
    counts, observed = rng.poisson(rates), rng.random(rates.shape) < 0.7
    split = np.split(np.arange(120), [80])
    data = Dataset(counts, observed, *split, 0.02, condition=condition)
    if is_target:
        data = replace(data, given=np.broadcast_to(np.arange(5) < 3, (40, 5)))
    stack = priors.learn(seen(data), epoch.build(5, settings().model)).stack
    assert stack.weights[ESTIMATES.index("smoothing")] > 0.3
    assert stack.weights_unseen[ESTIMATES.index("psth")] > 0.9


def test_a_training_trial_is_not_similar_to_itself(model):
    """What was inferred about a trial says nothing of it, though it fits best of all."""
    rng = np.random.default_rng(3)
    counts, observed = rng.poisson(1.0, (4, 9, 5)), rng.random((4, 9, 5)) < 0.6
    counts[3], observed[3] = counts[2], observed[2]  # two alike: each other's, not its own
    fitting = np.log(np.where(observed, counts, 1) + 0.01).astype(np.float32)
    source = stacking.identities(counts, observed)
    assert len(set(source.tolist())) == 3
    stack = stack_of([0.0, 1.0, 0.0, 0.0], fitting)._replace(sources=source)
    given = np.zeros_like(fitting), np.where(observed, counts, 7), observed  # as padded elsewhere
    (_, similar, *_), _ = stacking.estimates(model, stack, *given)
    for trial, others in ((0, [1, 2, 3]), (1, [0, 2, 3]), (2, [0, 1, 3]), (3, [0, 1, 2])):
        shown = counts[[trial]], observed[[trial]]
        expected, _ = stacking.similar_trials(model, fitting[others], *shown)
        np.testing.assert_allclose(similar[[trial]], expected, rtol=1e-4)
    longer = (np.pad(array, [(0, 0), (0, 3), (0, 0)]) for array in (counts, observed))
    np.testing.assert_array_equal(stacking.identities(*longer), source)
    other = stacking.identities(np.where(observed, counts + 1, counts), observed)
    assert not set(other.tolist()) & set(source.tolist())
    alone = stack._replace(trajectories=fitting[:1], sources=source[:1])
    (_, similar, *_), _ = stacking.estimates(model, alone, *given)
    np.testing.assert_allclose(similar[0], np.exp(fitting[0]), rtol=1e-5)


def test_what_half_of_the_points_would_change_is_part_of_the_variance(model):
    data, rng = small_data(), np.random.default_rng(3)
    trajectories = rng.normal(-0.5, 1, (4, 9, 5)).astype(np.float32)
    own = stacking.identities(data.counts[:4], data.observed[:4])
    prior = Prior(stack=stack_of([0.3, 0.7, 0.0, 0.0], trajectories)._replace(sources=own))
    found = infer_with_variance(model, data.counts, data.observed, prior=prior)
    whole = infer_all(model, data.counts, data.observed, prior=prior, with_variance=True)
    np.testing.assert_array_equal(found.output, whole.output)
    half = np.random.default_rng(0).random(data.counts.shape[1:]) < 0.5
    known = {"prior": prior, "identity": stacking.identities(data.counts, data.observed)}
    parts = [infer_all(model, data.counts, data.observed & of, **known) for of in (half, ~half)]
    changed = [(np.exp(one.output) - np.exp(whole.output)) ** 2 / 2 for one in parts]
    np.testing.assert_allclose(found.variance, whole.variance + sum(changed), rtol=1e-4)


def test_trials_longer_than_all_that_were_trained_on(model):
    rng = np.random.default_rng(3)
    counts, observed = rng.poisson(1.0, (3, 12, 5)), np.ones((3, 12, 5), bool)
    trajectories = rng.normal(-0.5, 1, (4, 9, 5)).astype(np.float32)
    stack = stack_of([0.5, 0.5, 0.0, 0.0], trajectories)
    given = rng.normal(0, 1, counts.shape).astype(np.float32), counts, observed
    (own, similar, *_), among = stacking.estimates(model, stack, *given)
    assert (among[:, :9] > 0).all()
    assert not among[:, 9:].any()
    np.testing.assert_array_equal(similar[:, 9:], own[:, 9:])
    first = counts[:, :9], observed[:, :9]
    short, _ = stacking.estimates(model, stack, np.zeros((3, 9, 5), np.float32), *first)
    np.testing.assert_allclose(similar[:, :9], short[1], rtol=1e-6)


def test_trajectories_go_on_past_the_end_of_a_trial():
    output = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    output[0, 2:] = np.nan
    found = stacking.trajectories(output)
    np.testing.assert_array_equal(found[0, 2:], output[1, 2:])
    np.testing.assert_array_equal(found[1], output[1])


def test_what_chooses_the_weights_is_not_what_is_reported(model):
    data = small_data()
    stacks = []
    of_data = seen(data)
    chosen, reported = np.zeros((2, *data.counts.shape), bool)
    chosen[data.valid], reported[data.valid] = of_data.folds > 0, of_data.reporting
    for at in (np.zeros_like(chosen), reported, chosen):
        spoiled = np.where(at, 1, data.counts).astype(np.uint8)  # as the new network has it
        stacks.append(priors.learn(seen(Dataset(**vars(data) | {"counts": spoiled})), model).stack)
    np.testing.assert_array_equal(stacks[0].weights, stacks[1].weights)
    assert (stacks[0].weights != stacks[2].weights).any()


@pytest.mark.parametrize("folds", [1, 3])
def test_neurons_are_hidden_in_turn_and_nothing_that_is_reported_is_shown(folds):
    of_data = seen(small_data())
    own = config.updated(of_data.settings, train={"folds": folds})
    passes = view(own, of_data.data, 3).lacking()
    assert len(passes) == 4
    for one in passes:
        of = one.hidden.any((0, 1))
        assert one.shown.any()
        assert not one.shown[..., of].any()
    every = np.sum([one.hidden for one in passes], axis=0)
    of_data = view(own, of_data.data, 3)
    np.testing.assert_array_equal(every, of_data.given[of_data.data.valid] & ~of_data.reporting)


def test_conditions_are_known_by_name_however_they_are_stored(model):
    stack = stack_of([0.5, 0, 0, 0.5], np.zeros((0, 9, 5)))
    for condition in ([7, 2, 3], [7.0, 2.0, np.nan], ["7", "2", ""]):
        known, place = stack.psth.among(np.array(condition))
        assert known.tolist() == [True, True, False]
        assert place.tolist() == [1, 0]
    data = small_data()
    everywhere = replace(data, condition=np.arange(len(data.counts)) % 2)
    named = replace(everywhere, condition_names=np.array([2, 7]))
    assert not list(notices.of_conditions(named, stack))
    assert not list(notices.of_conditions(data, alone(stack, "network")))
    for unknown in (data, replace(everywhere, condition_names=np.array(["l", "r"]))):
        (note,) = notices.of_conditions(unknown, stack)
        assert (
            f"0 of {len(data.counts)} trials are of a condition that the model knows (2, 7)" in note
        )


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("observation", ["poisson", "negative_binomial"])
def test_parts_are_the_baselines(observation, name):
    own = settings()
    own = config.updated(own, model={"observation": observation, "smoothing": False})
    data = replace(small_data(), condition=np.arange(22) % 2)
    of_data, model = view(own, data, 3), epoch.build(5, own.model)
    stack = priors.learn(of_data, model).stack
    stack = alone(stack, name)
    (baseline,) = (one for one in predictions(of_data) if one.baseline == name)
    np.testing.assert_allclose(of_data.blind(model, Prior(stack=stack)), baseline.blind, rtol=1e-4)


def test_what_simple_estimates_leave_open_is_the_variance_of_a_posterior():
    """Normal about factors, of a gamma distribution about smoothed counts; never negative."""
    rng = np.random.default_rng(2)
    mean = rng.gamma(2.0, 0.5, 5)
    counts = rng.poisson(mean, (12, 9, 5))
    observed = rng.random(counts.shape) < 0.6
    observed[0] = False
    scale = Scale(mean, np.sqrt(mean), 0.1 * mean)
    linear = low_rank.truncated(low_rank.learn(counts, observed, scale, 2.0), 3)
    rates = linear(counts, observed)
    found = linear.variance_of(rates, observed)
    weight = low_rank.sums(counts, observed, 2.0).weight
    for place in ((0, 0), (1, 4), (11, 8)):
        told = (linear.components.T * weight[place]) @ linear.components
        covariance = np.linalg.inv(told + np.diag(1 / linear.variance))
        right = np.diag(linear.components @ covariance @ linear.components.T) * rates[place]
        np.testing.assert_allclose(found[place], right, rtol=1e-6)
    assert (found[0] / rates[0] >= (found / rates).max(0) - 1e-9).all()  # nothing is known of it
    own = Smoother(scale, 2.0, 3.0)
    known = low_rank.sums(counts, observed, 2.0)
    right = gamma(known.spikes + 3 * mean, scale=1 / (known.weight + 3)).var()
    found = own.variance_of(own(counts, observed), observed)
    np.testing.assert_allclose(found, right, rtol=1e-6)
    signed = own._replace(scale=Scale(mean - 1, np.full(5, 2.0), np.full(5, -np.inf)))
    right = 4 / (known.weight + 3)
    found = signed.variance_of(signed(counts - 1, observed), observed)
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_intervals_of_what_is_the_same_for_all_seeds_hold_the_truth(model):
    """Rates of conditions, learned from two trials each: seeds agree on them, wrongly."""
    rng = np.random.default_rng(4)
    rates = rng.gamma(3.0, 0.3, (40, 1, 5)) * np.ones((40, 9, 1))
    condition = np.arange(120) % 40
    counts, observed = rng.poisson(rates[condition]), np.ones((120, 9, 5), bool)
    data = Dataset(counts, observed, np.arange(80), np.arange(80, 120), 0.02, condition=condition)
    of_data = seen(data)
    prior = priors.learn(of_data, model)
    stack = alone(prior.stack, "psth")
    trials = data.counts[data.valid], observed[data.valid]
    found = infer_with_variance(
        model, *trials, prior=Prior(stack=stack), condition=data.conditions_of(data.valid)
    )
    spread = None
    for _ in range(3):
        spread = intervals.add(spread, np.exp(found.output), found.variance)
    true = rates[condition[data.valid]]
    assert 0.8 < intervals.coverage(intervals.bounds(spread), true, observed[data.valid]) < 0.97


@pytest.mark.parametrize("name", ["gaussian", "zero_inflated_gamma"])
def test_smoothing_counts_where_the_network_has_none(name):
    """Neurons on courses of their own, which a network without training knows nothing of."""
    of_data, _ = real_values(name)
    own = config.updated(of_data.settings, model={**MODEL, "observation": name})
    of_data = of_data._replace(settings=own)
    untrained = epoch.build(of_data.data.neurons, own.model)
    prior = priors.learn(of_data, untrained)
    assert prior.weights[ESTIMATES.index("smoothing")] > 0.9


def test_a_network_that_smooths_is_enough(model):
    own = {**MODEL, "smoothing": True, "standardize": True}
    of_data = seen(small_data())
    of_data = of_data._replace(settings=config.updated(of_data.settings, model=own))
    smooths = epoch.build(5, of_data.settings.model)
    assert priors.learn(of_data, smooths).weights[ESTIMATES.index("smoothing")] == 0


def test_files_of_four_estimates_are_read():
    """And with other parameters than rates that are the same whatever is expected."""
    rest = np.stack([np.ones((3, 5)), np.zeros((3, 5))], axis=1)
    stack = stack_of([0.2, 0.3, 0.4, 0.1], np.zeros((0, 9, 5)))._replace(rest=rest)
    early = stack.arrays | {"weights": stack.weights[:4], "rest": np.ones(5)}
    for name in ("smoothing_width", "smoothing_prior"):
        assert early.pop(name) > 1
    assert early.pop("variances").any()
    found = Stack.of_arrays(early)
    assert not found.psth.variances.any()
    for one, other in zip(found, stack, strict=True):
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)


def test_without_points_that_choose_the_network_stands_alone(model):
    assert priors.learn(seen(small_data(), holdout_fraction=0.0), model) is None


@pytest.fixture(scope="module")
def fitted(spikes):
    return sbtt_jax.fit(spikes, **FIT)


def test_a_fitted_model_takes_along_what_it_needs(fitted, spikes, tmp_path):
    assert isinstance(fitted.prior.stack, Stack)
    rates = fitted.infer(spikes).rates
    fitted.save(tmp_path / "run")
    for other in (pickle.loads(pickle.dumps(fitted)), sbtt_jax.load(tmp_path / "run")):
        np.testing.assert_array_equal(other.infer(spikes).rates, rates)
    counts, observed = np.nan_to_num(spikes), ~np.isnan(spikes)
    lengths = np.where(np.arange(len(spikes)) == 3, 5, 8)
    output = infer_all(fitted.model, counts, observed, lengths, prior=fitted.prior).output
    np.testing.assert_allclose(rates, predicted(POISSON, output) / 0.01, rtol=1e-5)


@pytest.mark.slow
def test_training_on_forgets_what_earlier_weights_needed(spikes, tmp_path):
    """A fit that is killed while it is continued has new weights, and nothing that was learned for
    the old ones."""
    run = tmp_path / "run"
    schedule = {"schedule": "constant", "epochs": 2, "warmup_epochs": 1}
    sbtt_jax.fit(spikes, **FIT | {"train": schedule}, out=run)
    assert (run / "stack.npz").exists()
    there = []
    more = FIT | {"train": schedule | {"epochs": 3}}
    own = {"resume": True, "progress": lambda row: there.append((run / "stack.npz").exists())}
    sbtt_jax.fit(spikes, **more, out=run, **own)
    assert there == [False]
    assert (run / "stack.npz").exists()


@pytest.mark.parametrize("damage", [b"damaged", b""])
def test_a_damaged_file_is_named(fitted, tmp_path, damage):
    fitted.save(tmp_path / "run")
    (tmp_path / "run" / "stack.npz").write_bytes(damage)
    with pytest.raises(InputError, match=r"stack\.npz"):
        sbtt_jax.load(tmp_path / "run")


def test_a_run_is_stacked_when_evaluated_and_says_so(spikes, tmp_path):
    file = save(tmp_path / "own.h5", {"spikes": spikes, "bin_width": 0.01})
    recipe = recipes.load(recipes.named("recording"))
    changes = {name: FIT[name] for name in ("model", "train")}
    train(config.updated(recipe, data={"path": str(file)}, **changes), tmp_path / "run")
    found = evaluate(tmp_path / "run")
    (row,) = csv_rows(found.out / "metrics.csv")
    weights = [float(row[f"weight_{name}"]) for name in ESTIMATES]
    assert sum(weights) == pytest.approx(1)
    loaded = sbtt_jax.load(tmp_path / "run")  # learns the same again
    np.testing.assert_allclose(loaded.prior.stack.weights, weights, rtol=1e-5)
    assert weights[ESTIMATES.index("psth")] == 0  # no conditions
    with h5py.File(found.out / "rates.h5") as rates:
        written = rates[f"bandwidth_{row['bandwidth'].zfill(2)}/seed_0/rates"][:]
    np.testing.assert_allclose(loaded.infer(spikes).rates, written, rtol=1e-5)
    file.unlink()
    with pytest.warns(UserWarning, match=r"network's rates alone.*own\.h5"):
        alone = sbtt_jax.load(tmp_path / "run")
    assert alone.prior is None
    assert np.isfinite(alone.infer(spikes[:2]).rates).all()


@pytest.mark.slow
def test_conditions_help_where_they_are_known():
    """Rates that the condition sets, and so few neurons per bin that a trial hardly tells which."""
    rng = np.random.default_rng(0)
    condition = np.array(["left", "right", "up"])[np.arange(60) % 3]
    patterns = dict(zip(("left", "right", "up"), rng.gamma(0.5, 1.0, (3, 10, 6)), strict=True))
    rates = np.stack([patterns[name] for name in condition])
    spikes = rng.poisson(rates).astype(float)
    spikes[rng.random(spikes.shape) < 0.8] = np.nan
    fitted = sbtt_jax.fit(spikes, condition=condition, **FIT)
    assert fitted.prior.stack.weights[ESTIMATES.index("psth")] > 0.3
    known = fitted.infer(sbtt_jax.Recording(spikes, condition=condition)).rates * 0.01
    unknown = fitted.infer(spikes).rates * 0.01
    other = fitted.infer(sbtt_jax.Recording(spikes, condition=["down"] * 60)).rates * 0.01
    np.testing.assert_allclose(other, unknown, rtol=1e-5)
    inside = np.isfinite(known)
    assert ((known - rates)[inside] ** 2).mean() < 0.7 * ((unknown - rates)[inside] ** 2).mean()
