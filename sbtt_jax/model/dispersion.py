"""Parameters of an observation model beside the expected value, for estimates of that alone.

How far values scatter about an estimate depends on how good it is, so these parameters are fitted
to it. With those of values about their mean, a good estimate would be scored as if it were a poor
one, and more frequent events as if they were larger.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Num

from sbtt_jax.model.metrics import nll_of_points
from sbtt_jax.observations import Observation, safe_log

MAX_POINTS = 5_000  # that what neurons share is fitted to
OWN = 0.5  # standard deviation, a priori, of what a neuron's parameters differ by from the others'

# For each parameter of each neuron, in the layout of `observations.predicted`: its value where 1 is
# expected, and its slope in the natural log of the expected value.
Rest = Float[np.ndarray, "2 parameter"]
Expected = Float[np.ndarray, " point"]
Neurons = Int[np.ndarray, " point"]


def constant(parameters: Float[np.ndarray, " parameter"]) -> Rest:
    """These, whatever is expected."""
    return np.stack([parameters, np.zeros_like(parameters)])


def at_points(
    rest: Rest, expected: Expected, neuron: Neurons, neurons: int
) -> Float[np.ndarray, "point _"]:
    """What is expected at points, and the other parameters there. neurons: how many there are."""
    first, slope = rest.reshape(2, -1, neurons)[..., neuron]
    return np.stack([expected, *(first + slope * safe_log(expected))], axis=-1)


def everywhere(
    rest: Rest, expected: Float[np.ndarray, "trial bin neuron"]
) -> Float[np.ndarray, "trial bin output"]:
    """`observations.predicted` of these expected values."""
    if not rest.size:
        return expected
    first, slope = rest
    log = np.tile(safe_log(expected), len(first) // expected.shape[-1])
    return np.concatenate([expected, first + slope * log], axis=-1)


def fitted(
    observation: Observation,
    start: Float[np.ndarray, " parameter"],
    expected: Expected,
    values: Num[np.ndarray, " point"],
    neuron: Neurons,
    *,
    each: bool,
) -> Rest:
    """The parameters under which values are most likely, given what is expected of them.

    start: those of values about the neurons' means. All neurons share what is added to them, and
      the slopes, which are 0 if expected values may be negative.
    each: whether neurons may differ in what is added.
    """
    many = observation.outputs - 1
    own = start.reshape(many, -1)
    count = np.bincount(neuron, minlength=own.shape[1])
    log = np.zeros(len(values)) if observation.is_signed else safe_log(expected)
    level = np.bincount(neuron, log, minlength=len(count)) / np.maximum(count, 1)

    def least(points, numbers, spread, change) -> np.ndarray:
        one, given, here = expected[points], values[points], neuron[points]
        apart = log[points] - level[here]

        def loss(numbers):
            parameters = own[:, here] + change(numbers[:, None], apart)
            nll = nll_of_points(np.stack([one, *parameters], -1), given, observation)
            return nll.mean() + (numbers**2).sum() / (2 * spread**2 * len(points))

        return _least(loss, numbers)

    some = np.unique(np.linspace(0, len(values) - 1, MAX_POINTS, dtype=int))
    if observation.is_signed:
        shared = least(some, many, 1.0, lambda added, _: added)
        added, slope = shared[:, None], np.zeros((many, 1))
    else:
        shared = least(some, 2 * many, 1.0, lambda n, apart: n[:many] + n[many:] * apart)
        added, slope = np.split(shared[:, None], 2)
    own = own + added
    if each:
        parts = np.split(np.argsort(neuron, kind="stable"), np.cumsum(count)[:-1])
        change = [
            least(points, many, OWN, lambda added, apart: added + slope * apart)
            if len(points)
            else np.zeros(many)
            for points in parts
        ]
        own = own + np.stack(change, axis=-1)
    return np.stack([one.ravel() for one in (own - slope * level, slope + np.zeros_like(own))])


def _least(loss: Callable[[np.ndarray], float], numbers: int) -> np.ndarray:
    """Where a loss is least near 0; 0 if nothing is better."""
    from scipy.optimize import minimize  # importing sbtt_jax does not wait for it

    nothing = np.zeros(numbers)
    found = minimize(loss, nothing)
    return found.x if found.fun < loss(nothing) else nothing
