"""Factors: what the readout sees of latents, whatever basis a model happens to have them in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compilations
from flax import nnx

from sbtt_jax.config import DataSettings, Settings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.model import factors
from sbtt_jax.model.autoencoder import Code, Inference, SequentialAutoencoder
from sbtt_jax.model.inference import Prior, encode_all, infer_all, infer_with_variance
from sbtt_jax.run import priors, scores

rng = np.random.default_rng(0)
LATENTS = rng.normal(size=(20, 9, 3)) * [1.0, 5.0, 0.2] + [3.0, 0.0, -2.0]
READOUT = rng.normal(size=(3, 11)) * [[2.0], [0.1], [1.0]]


def model_of(readout, observation="poisson", **more):
    """A model with three latents and this readout."""
    outputs = 2 if observation == "gaussian" else 1
    how = {"encoder_size": 4, "decoder_size": 5, "latent_size": 3, "observation": observation}
    noise = {"noise": "neuron"} if outputs == 2 else {}
    how |= noise | more
    model = SequentialAutoencoder(readout.shape[1] // outputs, **how, rngs=nnx.Rngs(0))
    model.readout.kernel[...] = jnp.float32(readout)
    return model


def test_distances_are_those_of_the_readout_and_variances_fall():
    found = factors.learn(model_of(READOUT), LATENTS)(LATENTS).reshape(-1, 3)
    output = (LATENTS @ READOUT).reshape(-1, 11)
    apart = [np.linalg.norm(values[:, None] - values[None], axis=2) for values in (found, output)]
    np.testing.assert_allclose(*apart, atol=1e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    covariance = np.cov(found.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    assert (np.diff(np.diag(covariance)) < 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_model_has_the_same_factors(seed):
    """Mixed latents, unmixed by the readout, and shifted: the same rates, the same factors."""
    mix = np.random.default_rng(seed).normal(size=(3, 3))
    one = factors.learn(model_of(READOUT), LATENTS)(LATENTS)
    other = LATENTS @ mix + 7
    found = factors.learn(model_of(np.linalg.inv(mix) @ READOUT), other)(other)
    np.testing.assert_allclose(found, one, atol=2e-3)


def test_padding_is_left_out_and_factors_are_no_more_than_neurons():
    padded = np.pad(LATENTS, ((0, 0), (0, 4), (0, 0)), constant_values=np.nan)
    whole, cut = (factors.learn(model_of(READOUT), latents) for latents in (LATENTS, padded))
    np.testing.assert_array_equal(whole.kernel, cut.kernel)
    assert factors.learn(model_of(READOUT[:, :2]), LATENTS)(LATENTS).shape == (20, 9, 2)


@pytest.mark.parametrize("observation", ["poisson", "gaussian"])
def test_a_projected_model_follows_its_first_factors_alone(observation):
    model = model_of(READOUT[:, :10], observation)
    ic = jnp.float32(rng.normal(size=(30, 5)))
    whole = model.generate(Code(ic), 9)
    output, latent = np.array(whole.output, "f8"), np.array(whole.latent)
    found = factors.learn(model, latent)
    assert found.rank == 3
    assert factors.project(model, found) is model
    varying = output[..., : 10 if observation == "poisson" else 5]
    center = varying.reshape(-1, varying.shape[-1]).mean(0)
    (_, _, axes) = np.linalg.svd((varying - center).reshape(-1, varying.shape[-1]))
    for rank in (1, 2):
        first = found.first(rank)
        made = factors.project(model, first).generate(Code(ic), 9)
        nearest = center + (varying - center) @ axes[:rank].T @ axes[:rank]
        np.testing.assert_allclose(made.output[..., : varying.shape[-1]], nearest, atol=1e-4)
        np.testing.assert_allclose(
            first(np.array(made.latent)), found(latent)[..., :rank], atol=1e-5
        )
        if observation == "gaussian":  # its constants stay
            np.testing.assert_allclose(made.output[..., 5:], output[..., 5:], rtol=1e-5)


@pytest.mark.parametrize("smooths", [False, True])
def test_what_is_inferred_is_projected_as_the_model_is(smooths):
    model = model_of(READOUT)
    if smooths:  # signed values, which are read out in units of their deviations
        how = {"standardize": True, "smoothing": True, "noise": None}
        model = model_of(np.tile(READOUT, 2), "gaussian", **how)
        model.deviation[...] = jnp.float32(np.geomspace(0.1, 30, 11))
    ic = jnp.float32(rng.normal(size=(6, 5)))
    whole = model.generate(Code(ic), 9)
    first = factors.learn(model, np.array(whole.latent)).first(1)
    found = factors.projected(model, first, np.array(whole.output), np.array(whole.latent))
    made = factors.project(model, first).generate(Code(ic), 9).output
    np.testing.assert_allclose(found, made, rtol=1e-4, atol=1e-3 if smooths else 1e-4)


@pytest.mark.parametrize(("rank", "found"), [("auto", 1), (2, 2), (9, 3), (None, 3)])
@pytest.mark.parametrize("posterior", [False, True])
def test_held_out_points_find_the_rank(rank, found, posterior, monkeypatch):
    """Of rates that follow one latent, in a model that has two more, which are noise."""
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(40, 9, 3)).astype(np.float32) * np.float32([1.0, 0.4, 0.3])
    model = model_of(3 * np.linalg.qr(rng.normal(size=(11, 3)))[0].T)
    model.rank, model.posterior = rank, posterior
    kernel, bias = np.array(model.readout.kernel), np.array(model.readout.bias)
    counts = rng.poisson(np.exp(latents[..., :1] @ kernel[:1] + bias)).astype(np.uint8)
    observed, trials = np.ones(counts.shape, bool), np.arange(40)
    data = Dataset(counts, observed, trials[:30], trials[30:], 0.02)
    own = DataSettings(path="a recording", holdout_fraction=0.4)
    of_data = scores.view(Settings(data=own, bandwidths=(11,)), data, 11)

    def inferred(model, values, *args, **how):
        which = trials if len(values) == 40 else trials[30:]
        return Inference(latents[which] @ kernel + bias, latents[which], latents[which, 0])

    monkeypatch.setattr(priors, "infer_all", inferred)
    if posterior:  # over trials of which each has been seen before
        data = Dataset(counts, observed, trials, trials[30:], 0.02)
        of_data = scores.view(Settings(data=own, bandwidths=(11,)), data, 11)
    assert priors.learn(of_data, model).factors.rank == found


def test_what_is_left_out_counts_as_variance():
    model = model_of(READOUT)
    trials = rng.poisson(1.0, (12, 9, 11)), rng.random((12, 9, 11)) < 0.7
    ic = encode_all(model, *trials)
    found = factors.learn(model, infer_all(model, *trials).latent)
    every, few = (Prior(ic, factors=one) for one in (found, found.first(1)))
    whole, cut = (infer_all(model, *trials, prior=prior) for prior in (every, few))
    np.testing.assert_array_equal(
        infer_with_variance(model, *trials, prior=every).variance, whole.variance
    )
    changed = (np.exp(whole.output) - np.exp(cut.output)) ** 2
    variance = infer_with_variance(model, *trials, prior=few).variance
    np.testing.assert_allclose(variance, cut.variance + changed, rtol=1e-3)


def test_models_of_a_run_are_inferred_by_the_same_programs():
    """Whatever their weights, and with fewer factors; a program of its own takes a GPU seconds."""
    shape = 13, 8, 11  # of no other test
    trials = rng.poisson(1.0, shape), rng.random(shape) < 0.7
    at = []
    with compilations() as compiled:
        for model in map(model_of, (READOUT, 2 * READOUT)):
            prior = Prior(encode_all(model, *trials), own=0.5)
            found = factors.learn(model, infer_all(model, *trials).latent)
            for own in (found, found.first(1)):
                infer_all(model, *trials, prior=prior._replace(factors=own))
                at.append(len(compiled))
    assert at[0] > 0
    assert at == [at[0]] * 4


def test_a_restored_model_stays_as_it_is():
    """Its weights are NumPy arrays, which could be written into."""
    definition, params = nnx.split(model_of(READOUT))
    params = jax.tree.map(np.array, nnx.to_pure_dict(params))
    before = params["readout"]["kernel"].copy()
    model = nnx.merge(definition, params)
    first = factors.learn(model, LATENTS).first(1)
    assert (np.array(factors.project(model, first).readout.kernel) != before).any()
    np.testing.assert_array_equal(params["readout"]["kernel"], before)
    np.testing.assert_array_equal(model.readout.kernel, before)
