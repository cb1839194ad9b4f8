import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import identical
from jax.test_util import check_grads
from scipy import stats

import sbtt_jax
from sbtt_jax import config
from sbtt_jax.errors import InputError
from sbtt_jax.model import metrics
from sbtt_jax.model.inference import infer_all
from sbtt_jax.observations import (
    LARGEST_LOG,
    OBSERVATIONS,
    masked_nll,
    of,
    output_of,
    predicted,
)

SHAPE = (4, 6, 5)


def negative_binomial(log_mean, log_size):
    mean, size = np.exp(log_mean), np.exp(bounded(log_size))
    return stats.nbinom(size, size / (size + mean))


def gamma(log_mean, log_shape):
    shape = np.exp(bounded(log_shape))
    return stats.gamma(shape, scale=np.exp(log_mean) / shape)


class ZeroInflatedGamma:
    """Zeros, or a gamma distribution; with the names of SciPy's distributions."""

    def __init__(self, log_mean, logit, log_shape, least=0.0):
        self.share, self.events = 1 / (1 + np.exp(-logit)), gamma(log_mean, log_shape)
        self.least = least

    def rvs(self, random_state):
        is_event = random_state.random(self.share.shape) < self.share
        return np.where(is_event, self.least + self.events.rvs(random_state=random_state), 0)

    def logpdf(self, value):
        excess = np.where(value > 0, value - self.least, 1)
        event = np.log(self.share) + self.events.logpdf(excess)
        return np.where(value > 0, event, np.log(1 - self.share))

    def mean(self):
        return self.share * (self.least + self.events.mean())


def bounded(x):
    return LARGEST_LOG * np.tanh(x / LARGEST_LOG)


# The same distributions, given the readout, in SciPy.
SCIPY = {
    "poisson": lambda lograte: stats.poisson(np.exp(lograte)),
    "negative_binomial": negative_binomial,
    "gaussian": lambda mean, log_deviation: stats.norm(mean, np.exp(log_deviation)),
    "gamma": gamma,
    "zero_inflated_gamma": ZeroInflatedGamma,
    "above a threshold": lambda *parts: ZeroInflatedGamma(*parts, least=0.5),
    "known noise": lambda mean: stats.norm(mean, 0.7),
}
MODELS = OBSERVATIONS | {
    "above a threshold": of("zero_inflated_gamma", event_minimum=0.5),
    "known noise": of("gaussian", noise=0.7),
}


def scipy_of(name, output):
    parts = np.split(np.asarray(output, np.float64), MODELS[name].outputs, axis=-1)
    return SCIPY[name](*parts)


def log_density(name, output, values):
    distribution = scipy_of(name, output)
    how = distribution.logpmf if MODELS[name].is_count else distribution.logpdf
    return how(values)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def problem(name):
    """An observation model, a readout, values drawn from it, and which of them were observed."""
    rng, observation = np.random.default_rng(0), MODELS[name]
    output = rng.normal(-1, 1, (*SHAPE[:2], observation.outputs * SHAPE[2]))
    values = scipy_of(name, output).rvs(random_state=rng)
    arrays = (jnp.asarray(a, jnp.float32) for a in (output, values))
    return observation, *arrays, jnp.asarray(rng.random(SHAPE) < 0.4)


def loss_and_gradient(observation, output, values, observed):
    """The mean over observed points, and its gradient in the readout."""

    def loss(output):
        nll, points = masked_nll(observation, output, values, observed)
        return nll / jnp.maximum(points, 1)

    return jax.value_and_grad(loss)(output)


def test_nll_is_that_of_scipy_up_to_terms_of_the_value_alone(name, problem):
    observation, *arrays, _ = problem
    output, values = (np.asarray(a, np.float64) for a in arrays)
    if name == "gamma":
        values = np.maximum(values, 1e-6)
    if name == "zero_inflated_gamma":
        values = np.where(values < 1e-6, 0, values)
    if name == "above a threshold":
        values = np.where(values < 0.501, 0, values)
    a, b = (
        observation.nll(readout, values) + log_density(name, readout, values)
        for readout in (output, output + 0.5)
    )
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("xp", [np, jnp])
def test_the_mean_is_that_of_scipy_and_predicted_has_an_inverse(name, problem, xp):
    observation, output = problem[0], xp.asarray(problem[1])
    mean = observation.mean(output)
    assert isinstance(mean, type(output))
    np.testing.assert_allclose(mean, scipy_of(name, output).mean(), rtol=1e-5)
    prediction = predicted(observation, output)
    np.testing.assert_array_equal(prediction[..., : SHAPE[2]], mean)
    np.testing.assert_allclose(output_of(observation, prediction), output, rtol=1e-4, atol=1e-5)
    assert np.isfinite(output_of(observation, xp.zeros_like(prediction))).all()


@pytest.mark.parametrize("xp", [np, jnp])
def test_moments_give_about_what_has_them(name, xp):
    """Exactly where the family can have them; with the right mean in any case."""
    observation = MODELS[name]
    mean, deviation = xp.asarray([0.5, 2.0, 3.0]), xp.asarray([1.0, 3.0, 4.0])
    output = observation.from_moments(mean, deviation)
    assert output.shape == (3 * observation.outputs,)
    np.testing.assert_allclose(observation.mean(output), mean, rtol=1e-5)
    if name in ("gaussian", "gamma", "negative_binomial"):
        np.testing.assert_allclose(scipy_of(name, output).std(), deviation, rtol=1e-4)


def test_the_likeliest_constants_are_found_and_decide_between_families():
    """Drawn from one family, with known parameters: its own likelihood is highest."""
    rng = np.random.default_rng(0)
    truth = {
        "negative_binomial": [np.log(2.0), np.log(1.5)],
        "gaussian": [3.0, np.log(0.7)],
        "gamma": [np.log(2.0), np.log(3.0)],
        "zero_inflated_gamma": [np.log(1.5), -0.8, np.log(2.0)],
        "poisson": [np.log(2.0)],
    }
    where = np.ones((4000, 1, 1), bool)
    for name, true in truth.items():
        output = np.tile(np.array(true), (4000, 1, 1))
        values = scipy_of(name, output).rvs(random_state=rng)
        found = {}
        for other, observation in OBSERVATIONS.items():
            if any(bad.any() for _, bad in observation.invalid(values)):
                continue
            constants = metrics.null(values, where, observation)
            density = log_density(other, output_of(observation, constants[None]), values)
            found[other] = density.sum() - len(constants) * np.log(4000) / 2  # BIC
            if other == name:
                own = output_of(observation, constants[None])[0]
                np.testing.assert_allclose(own, true, atol=0.15)
        discrete = {n: v for n, v in found.items() if OBSERVATIONS[n].is_count}
        rivals = discrete if MODELS[name].is_count else found
        assert max(rivals, key=rivals.get) == name, (name, rivals)


def test_what_is_drawn_is_valid_and_so_is_what_fills_holes(problem):
    observation, _, values, _ = problem
    bad = [bad for _, bad in observation.invalid(np.append(values, [observation.fill, np.inf]))]
    np.testing.assert_array_equal(np.any(bad, axis=0), [False] * (values.size + 1) + [True])


def test_loss_is_over_observed_points_alone_and_so_is_its_gradient(problem):
    observation, output, values, observed = problem
    points = observation.nll(*(np.asarray(a, np.float64) for a in (output, values)))
    nll, count = masked_nll(*problem)
    assert count == observed.sum()
    assert float(nll) == pytest.approx(points[observed].sum(), rel=1e-6)
    with jax.enable_x64(True):
        output = jnp.asarray(np.asarray(output), jnp.float64)
        check_grads(lambda x: masked_nll(observation, x, values, observed)[0], (output,), 1)


@pytest.mark.parametrize("anything", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_what_stands_at_missing_points_changes_no_bit(problem, anything):
    observation, output, values, observed = problem
    shown = jnp.tile(observed, observation.outputs)
    spoiled = jnp.where(shown, output, anything), jnp.where(observed, values, anything)
    loss, gradient = loss_and_gradient(observation, *spoiled, observed)
    identical((loss, gradient), loss_and_gradient(*problem))
    assert np.isfinite(gradient).all()
    assert not gradient[~shown].any()


def test_nothing_observed_gives_zero(problem):
    loss, gradient = loss_and_gradient(*problem[:3], jnp.zeros(SHAPE, bool))
    assert loss == 0
    assert not gradient.any()


@pytest.mark.slow
def test_one_noise_for_each_neuron_is_learned_beside_a_mean_that_varies():
    rng, bins = np.random.default_rng(0), np.arange(20)
    true = np.array([0.2, 0.4, 0.8, 1.6])
    mean = 2 * np.sin(0.6 * bins[:, None] + np.arange(4))
    values = rng.normal(mean, true, (60, 20, 4))
    sizes = {"encoder_size": 16, "decoder_size": 16, "inferred_inputs": 0}
    model = {"observation": "gaussian", "noise": "neuron"} | sizes
    train = {"epochs": 20, "learning_rate": 1e-2, "batch_size": 16}
    fitted = sbtt_jax.fit(values, bin_width=0.02, model=model, train=train)
    output = infer_all(fitted.model, values, np.ones(values.shape, bool)).output
    deviations = np.exp(output[..., 4:])
    assert np.ptp(deviations, axis=(0, 1)).max() == 0
    np.testing.assert_allclose(deviations[0, 0], true, rtol=0.25)


def test_what_settings_fix_goes_with_its_distribution():
    with pytest.raises(
        InputError, match=r"^model.noise is 1.0; it is for model.observation gaussian"
    ):
        config.check({"model": {"noise": 1.0}})
    smooths = {"smoothing": True, "standardize": True}
    assert config.check({"model": {"observation": "gaussian"} | smooths}).model.smoothing
    with pytest.raises(InputError, match="smoothing is on: it is not for gamma, of positive"):
        config.check({"model": {"observation": "gamma"} | smooths})
    own = {"observation": "zero_inflated_gamma", "event_minimum": 0.5}
    model = config.check({"model": own}).model
    assert model.distribution.expected == "zeros and values of at least 0.5, NaN where not observed"
    (words,) = [w for w, bad in model.distribution.invalid(np.array([0.0, 0.4, 0.6])) if bad.any()]
    assert words == "an event below model.event_minimum"
