import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sbtt_jax.losses import poisson_nll

SHAPE = (4, 6, 5)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    lograte = jnp.asarray(rng.normal(-1, 1, SHAPE), jnp.float32)
    counts = jnp.asarray(rng.poisson(0.5, SHAPE), jnp.float32)
    return lograte, counts, jnp.asarray(rng.random(SHAPE) < 0.4)


def test_mean_over_observed_points_alone(problem):
    lograte, counts, observed = (np.asarray(a) for a in problem)
    points = [
        np.exp(rate) - count * rate
        for rate, count, seen in zip(lograte.flat, counts.flat, observed.flat, strict=True)
        if seen
    ]
    assert float(poisson_nll(*problem)) == pytest.approx(np.mean(points), rel=1e-6)


def test_gradient_against_finite_differences(problem):
    with jax.enable_x64(True):
        lograte, counts, observed = problem
        lograte = jnp.asarray(np.asarray(lograte), jnp.float64)

        def loss(lograte):
            return poisson_nll(jnp.asarray(lograte), counts, observed)

        check_grads(loss, (lograte,), order=1)


@pytest.mark.parametrize("anything", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_what_stands_at_missing_points_changes_no_bit(problem, anything):
    lograte, counts, observed = problem
    clean = jax.value_and_grad(poisson_nll)(lograte, counts, observed)
    spoiled = jax.value_and_grad(poisson_nll)(
        jnp.where(observed, lograte, anything), jnp.where(observed, counts, anything), observed
    )
    for a, b in zip(clean, spoiled, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(spoiled[1]).all()
    assert not np.asarray(spoiled[1])[~np.asarray(observed)].any()


def test_nothing_observed_gives_zero(problem):
    lograte, counts, _ = problem
    value, gradient = jax.value_and_grad(poisson_nll)(lograte, counts, jnp.zeros(SHAPE, bool))
    assert value == 0
    assert not np.asarray(gradient).any()
