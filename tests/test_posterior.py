"""Rates as means of a posterior over the training trials' trajectories, and training for it."""

import copy
import signal
from dataclasses import replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, identical, small_data, small_problem, write
from scipy.special import softmax
from scipy.stats import norm, poisson

import sbtt_jax
from sbtt_jax import config
from sbtt_jax.config import DataSettings, Settings, TrainSettings
from sbtt_jax.errors import InputError
from sbtt_jax.model import posterior
from sbtt_jax.model.autoencoder import Code, Inference
from sbtt_jax.model.inference import Prior, encode_all, infer_all
from sbtt_jax.observations import OBSERVATIONS, POISSON, is_linear
from sbtt_jax.run import priors, scores
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.train import train
from sbtt_jax.ship import ship
from sbtt_jax.training import epoch, marginal, population

WITH = SMALL.model_copy(update={"posterior": True, "latent_size": 2, "bounded_ic": True})


@pytest.fixture
def model():
    return epoch.build(5, WITH)


@pytest.fixture
def trials():
    data, rng = small_data(), np.random.default_rng(3)
    observed = rng.random(data.counts.shape) < 0.6
    counts = np.where(observed, data.counts, np.nan).astype(np.float32)
    return counts, observed


def test_likelihoods_are_poisson_and_unobserved_points_have_no_part(trials):
    counts, observed = trials
    output = np.random.default_rng(0).normal(-1, 1, (4, *counts.shape[1:])).astype(np.float32)
    arrays = map(jnp.asarray, (output, counts, observed))
    found = np.array(posterior.log_likelihoods(POISSON, *arrays))
    logpmf = poisson.logpmf(np.where(observed, counts, 0)[:, None], np.exp(output, dtype="f8"))
    right = np.where(observed[:, None], logpmf, 0).sum((2, 3))
    np.testing.assert_allclose(found - found[:, :1], right - right[:, :1], atol=1e-3)


def test_likelihoods_of_any_observation_model(trials):
    """Of a normal distribution with a learned deviation, two readouts a neuron, not linear."""
    counts, observed = trials
    output = np.random.default_rng(0).normal(0, 0.5, (4, 9, 10)).astype(np.float32)
    normal = OBSERVATIONS["gaussian"]
    assert (is_linear(POISSON), is_linear(POISSON._replace(nll=dispersed))) == (True, True)
    arrays = map(jnp.asarray, (output, counts, observed))
    found = np.array(posterior.log_likelihoods(normal, *arrays))
    logpdf = norm.logpdf(
        np.where(observed, counts, 0)[:, None], output[..., :5], np.exp(output[..., 5:])
    )
    right = np.where(observed[:, None], logpdf, 0).sum((2, 3))
    np.testing.assert_allclose(found - found[:, :1], right - right[:, :1], atol=1e-3)


def dispersed(output, count):
    xp = output.__array_namespace__()
    return (count + 2.0) * xp.log(xp.exp(output) + 2.0) - count * output


@pytest.mark.parametrize("count", [3, posterior.BLOCK + 5])
def test_means_are_weighted_by_likelihood_however_many_trajectories(model, trials, count):
    counts, observed = trials
    prior = np.random.default_rng(1).normal(0, 1, (count, 7)).astype(np.float32)
    decoded = model.generate(Code(jnp.asarray(prior)), counts.shape[1])
    rates = np.exp(np.array(decoded.output, "f8"))
    likelihood = poisson.logpmf(np.where(observed, counts, 0)[:, None], rates)
    weights = softmax(np.where(observed[:, None], likelihood, 0).sum((2, 3)), axis=1)
    found = infer_all(model, counts, observed, prior=Prior(prior))
    np.testing.assert_allclose(np.exp(found.output), np.tensordot(weights, rates, 1), rtol=1e-3)
    variance = np.tensordot(weights, rates**2, 1) - np.tensordot(weights, rates, 1) ** 2
    np.testing.assert_allclose(found.variance, variance, rtol=1e-2, atol=1e-4)
    latent = np.tensordot(weights, np.array(decoded.latent, "f8"), 1)
    np.testing.assert_allclose(found.latent, latent, atol=1e-3)
    np.testing.assert_allclose(found.ic, weights @ prior, atol=1e-3)


def test_a_mean_of_what_encoder_and_posterior_infer(model, trials):
    prior = Prior(encode_all(model, *trials))
    one, other, both = (
        infer_all(model, *trials, prior=p) for p in (None, prior, prior._replace(own=0.3))
    )
    rates = [np.exp(each.output, dtype="f8") for each in (one, other)]
    np.testing.assert_allclose(np.exp(both.output), 0.3 * rates[0] + 0.7 * rates[1], rtol=1e-4)
    np.testing.assert_allclose(both.latent, 0.3 * one.latent + 0.7 * other.latent, atol=1e-5)
    variance = 0.7 * other.variance + 0.21 * (rates[0] - rates[1]) ** 2
    np.testing.assert_allclose(both.variance, variance, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("informative", [True, False])
def test_the_better_of_encoder_and_posterior_counts(model, monkeypatch, informative):
    """By the points that choose, whatever stands at those that are reported."""
    data = small_data()
    settings = Settings(data=DataSettings(holdout_fraction=0.4), bandwidths=(5,))
    of_data = scores.view(settings, data, 5)
    reported = np.zeros(data.counts.shape, bool)
    reported[data.valid] = of_data.reporting
    spoiled = replace(data, counts=np.where(reported, 1, data.counts).astype(np.uint8))
    true = np.log(data.counts + 0.1)  # of what is hidden too

    def inferred(model, counts, observed, lengths=None, *, prior=None):
        known = informative == (prior.ic is None)
        output = true[data.valid] if known else np.full(counts.shape, 1.0)
        return Inference(output, output, output)

    found = []
    monkeypatch.setattr(priors, "infer_all", inferred)
    model.bottleneck = None
    for one in (data, spoiled):
        found.append(priors.learn(scores.view(settings, one, 5), model).own)
    assert found[0] == found[1] == float(informative)


def test_an_unobserved_trial_has_the_mean_of_the_prior_and_padding_is_nan(model, trials):
    counts, observed = trials
    observed[0] = False
    prior = encode_all(model, counts, observed)
    lengths = np.full(len(counts), 9)
    lengths[1] = 4
    found = infer_all(model, counts, observed, lengths, prior=Prior(prior))
    rates = np.exp(model.generate(Code(jnp.asarray(prior)), 9).output)
    np.testing.assert_allclose(np.exp(found.output[0]), rates.mean(0), rtol=1e-5)
    assert np.isnan(found.output[1, 4:]).all()
    assert np.isfinite(found.output[1, :4]).all()


def test_the_marginal_likelihood_is_the_mean_over_trajectories():
    outputs = jnp.array([[[0.3]], [[-0.7]]])
    counts, observed = jnp.array([[[2.0]]]), jnp.array([[[True]]])
    for trajectories in (outputs, outputs[:1]):
        found = posterior.log_marginal(
            posterior.log_likelihoods(POISSON, trajectories, counts, observed)
        )
        likelihoods = np.exp(2 * np.ravel(trajectories) - np.exp(np.ravel(trajectories)))
        np.testing.assert_allclose(found, np.log(likelihoods.mean()), rtol=1e-6)


MARGINAL = {"epochs": 2, "marginal_epochs": 3, "marginal_rate": 1e-2, "checkpoint_every": 2}


@pytest.mark.slow
def test_marginal_epochs_follow_and_the_best_of_all_is_kept():
    problem = small_problem(model=WITH, **MARGINAL)
    logs = []
    state = population.fit(problem, on_epoch=lambda state, log: logs.append(log))
    assert len(logs) == 5
    heldout = np.array([log.heldout_nll for log in logs])
    (chosen,) = state.best.epoch
    assert chosen == heldout[:, 0].argmin()
    assert state.best.nll[0] == heldout[chosen, 0]
    assert np.isnan([log.train_r2 for log in logs[2:]]).all()


def test_validation_is_by_the_posterior():
    problem = small_problem(model=WITH, **MARGINAL)
    state = jax.tree.map(lambda leaf: leaf[0], population.begin(problem))
    masks = jax.tree.map(lambda leaf: leaf[0], problem.masks)
    given = jax.tree.map(jnp.asarray, (problem.trials, masks))
    definition = epoch.graph(problem.neurons, problem.model)
    seen, heldout = marginal._validate(definition, problem.train, *given, state.params)
    model, data = epoch.build(5, WITH, 0), problem.data
    prior = encode_all(model, data.counts[data.train], masks.observed[data.train])
    counts, hidden = data.counts[data.valid], masks.folds[data.valid] == 1
    shown = masks.observed[data.valid] & ~hidden
    output = infer_all(model, counts, shown, prior=Prior(prior)).output
    for sums, where in ((seen, shown), (heldout, hidden)):
        nll = (np.exp(output) - counts * output)[where]
        np.testing.assert_allclose(sums.mean, nll.mean(), rtol=1e-4)


@pytest.mark.slow
def test_it_learns_what_other_trials_say():
    """Four conditions of many trials: marginal epochs predict held-out points better."""
    rng = np.random.default_rng(0)
    rates = np.repeat(rng.gamma(0.5, 2.0, (4, 9, 5)), 20, axis=0)
    spikes = rng.poisson(rates).astype(float)
    spikes[rng.random(spikes.shape) < 0.5] = np.nan
    model = {"inferred_inputs": 0, "smoothing": False, "stacked": False, "dropout": 0.0}
    model |= {"encoder_size": 8, "decoder_size": 8, "posterior": True, "bounded_ic": True}
    own = {"epochs": 20, "patience": None, "marginal_epochs": 12, "marginal_rate": 1e-2}
    fitted = sbtt_jax.fit(spikes, model=model, train=own)
    losses = [row["heldout_nll"] for row in fitted.history]
    assert min(losses[20:]) < min(losses[:20]) - 0.05
    assert fitted.epoch >= 20


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 2])
def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path, stopped):
    write(tmp_path / "small.h5", small_data())
    settings = Settings(
        bandwidths=(3,),
        data=DataSettings(path=str(tmp_path / "small.h5"), holdout_fraction=0.3),
        model=WITH,
        train=TrainSettings(batch_size=8, **MARGINAL),
    )
    train(settings, tmp_path / "run")
    answers = iter([*[0] * (stopped - 1), signal.SIGTERM])
    train(settings, tmp_path / "part", stop=lambda: next(answers))
    train(settings, tmp_path / "part", resume=True)
    one, two = ((tmp_path / name / "history.csv").read_text() for name in ("run", "part"))
    assert one == two
    fitted = [sbtt_jax.load(tmp_path / name) for name in ("run", "part")]
    identical(fitted[0].params, fitted[1].params)
    if stopped == 1:  # what the prior needs is inferred again, also for other data
        evaluate(tmp_path / "run")
        evaluate(tmp_path / "run", data=str(tmp_path / "small.h5"), out=tmp_path / "again")
        inferred = fitted[0].infer(small_data().counts).rates
        for out in (tmp_path / "run" / "evaluation", tmp_path / "again"):
            with h5py.File(out / "rates.h5") as file:
                assert file["bandwidth_03/seed_0/rates"].shape == inferred.shape


@pytest.mark.slow
def test_a_saved_model_takes_its_prior_along(tmp_path, trials):
    spikes = trials[0]
    model = {"encoder_size": 5, "decoder_size": 6, "inferred_inputs": 0, "smoothing": False}
    model |= {"stacked": False, "posterior": True}
    own = {"epochs": 2, "warmup_epochs": 0, "patience": None, "steps_per_epoch": 2}
    fitted = sbtt_jax.fit(spikes, model=model, train=own)
    rates = fitted.infer(spikes).rates
    assert fitted.prior.ic.shape == (18, 6)  # training trials
    copy.deepcopy(fitted).save(tmp_path / "run")
    np.testing.assert_array_equal(sbtt_jax.load(tmp_path / "run").infer(spikes).rates, rates)
    ship(tmp_path / "run", tmp_path / "shipped")
    np.testing.assert_array_equal(sbtt_jax.load(tmp_path / "shipped").infer(spikes).rates, rates)
    (tmp_path / "run" / "prior.npz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"prior\.npz"):
        sbtt_jax.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"posterior": True, "inferred_inputs": 2}}, "model.posterior"),
        ({"model": {"posterior": True, "stacked": True}}, "model.stacked"),
        ({"train": {"marginal_epochs": 2}}, "needs model.posterior"),
        (
            {"model": {"posterior": True}, "train": {"marginal_epochs": 2, "patience": 3}},
            "leave out patience",
        ),
    ],
)
def test_what_does_not_go_together_is_said(changes, words):
    with pytest.raises(InputError, match=words):
        config.updated(Settings(), **changes)
