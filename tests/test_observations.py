import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import identical
from jax.test_util import check_grads
from scipy import stats

from sbtt_jax.observations import OBSERVATIONS, masked_nll

SHAPE = (4, 6, 5)

# The same distributions, given the readout, in SciPy.
SCIPY = {"poisson": lambda lograte: stats.poisson(np.exp(lograte))}


@pytest.fixture(params=OBSERVATIONS)
def name(request):
    return request.param


@pytest.fixture
def problem(name):
    """An observation model, a readout, values drawn from it, and which of them were observed."""
    rng, observation = np.random.default_rng(0), OBSERVATIONS[name]
    output = rng.normal(-1, 1, (*SHAPE[:2], observation.outputs * SHAPE[2]))
    values = SCIPY[name](output).rvs(random_state=rng)
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
    a, b = (
        observation.nll(readout, values) + SCIPY[name](readout).logpmf(values)
        for readout in (output, output + 0.5)
    )
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("xp", [np, jnp])
def test_the_mean_is_that_of_scipy_and_from_mean_its_inverse(name, problem, xp):
    observation, output = problem[0], xp.asarray(problem[1])
    mean = observation.mean(output)
    assert isinstance(mean, type(output))
    np.testing.assert_allclose(mean, SCIPY[name](np.asarray(output)).mean(), rtol=1e-6)
    np.testing.assert_allclose(observation.from_mean(mean), output, rtol=1e-5, atol=1e-6)
    assert np.isfinite(observation.from_mean(xp.zeros(SHAPE))).all()


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
