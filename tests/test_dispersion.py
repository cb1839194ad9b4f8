"""Parameters beside the expected value: those that values were drawn with are found again."""

import numpy as np
import pytest

from sbtt_jax.model import dispersion
from sbtt_jax.observations import OBSERVATIONS, predicted

NEURONS = 3
NEURON = np.arange(9000) % NEURONS
MEAN = np.exp(np.random.default_rng(0).normal(0, 1, 9000))
OWN = np.array([-0.4, 0.0, 0.4])  # of each neuron


def drawn(name):
    """Values about `MEAN`, the parameters where 1 is expected, and their slopes."""
    rng = np.random.default_rng(1)
    if name == "gaussian":
        return rng.normal(MEAN, np.exp(OWN[NEURON])), [OWN], [0]
    if name == "gamma":
        shape = np.exp(1 + OWN)[NEURON]
        return rng.gamma(shape, MEAN / shape), [8 * np.arctanh((1 + OWN) / 8)], [0]
    if name == "negative_binomial":  # sizes grow with what is expected
        size = np.exp(0.5 + OWN[NEURON]) * MEAN**0.5
        return rng.poisson(MEAN * rng.gamma(size, 1 / size)), [0.5 + OWN], [0.5]
    share = 1 / (1 + np.exp(-OWN[NEURON]) / MEAN)  # events are more frequent, not larger
    values = (rng.random(9000) < share) * rng.gamma(2.0, MEAN / share / 2)
    return values, [OWN, np.full(NEURONS, np.log(2))], [1, 0]


@pytest.mark.parametrize("name", [name for name in OBSERVATIONS if name != "poisson"])
def test_parameters_are_those_that_values_were_drawn_with(name):
    observation = OBSERVATIONS[name]
    values, first, slope = drawn(name)
    start = np.zeros(NEURONS * (observation.outputs - 1))
    given = observation, start, MEAN, values, NEURON
    found = dispersion.fitted(*given, each=True)
    np.testing.assert_allclose(found[0], np.concatenate(first), atol=0.15)
    np.testing.assert_allclose(found[1], np.repeat(slope, NEURONS), atol=0.1)
    alike = dispersion.fitted(*given, each=False)
    np.testing.assert_allclose(alike[0], np.repeat(np.mean(first, axis=1), NEURONS), atol=0.25)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_points_and_arrays_have_the_same_parameters(name):
    observation = OBSERVATIONS[name]
    expected = MEAN[:24].reshape(2, 4, NEURONS)
    rest = np.random.default_rng(2).normal(0, 0.3, (2, NEURONS * (observation.outputs - 1)))
    every = dispersion.everywhere(rest, expected)
    assert every.shape == (2, 4, NEURONS * observation.outputs)
    points = dispersion.at_points(rest, expected.ravel(), NEURON[:24], NEURONS)
    whole = points.reshape(2, 4, NEURONS, -1).swapaxes(2, 3).reshape(every.shape)
    np.testing.assert_allclose(every, whole)
    constant = dispersion.everywhere(dispersion.constant(rest[0]), expected)
    output = observation.from_mean(
        expected, np.broadcast_to(rest[0], constant[..., NEURONS:].shape)
    )
    np.testing.assert_allclose(constant, predicted(observation, output), rtol=1e-6)
