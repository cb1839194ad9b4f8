"""Observation models: how the value of a neuron in a bin is distributed, given the readout.

Reading a recording, the training loss, inference and the scores all follow from one `Observation`;
`OBSERVATIONS` names them. The functions take NumPy and JAX arrays alike.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

Array = Any  # NumPy or JAX

MAX_COUNT = 65535
MIN_RATE = 1e-9  # a rate of exactly 0 would make any spike impossible


class Observation(NamedTuple):
    """One distribution.

    outputs: readout numbers per neuron and bin. The readout lists the first of every neuron, then
      the second of every neuron, and so on.
    nll: (output, value) -> negative log-likelihood of each point in nats, without the terms that
      depend on the value alone.
    from_mean: expected value -> output that has it.
    invalid: values -> pairs of words and a mask, of values that cannot be.
    """

    summary: str  # what it is for, in one line
    unit: str  # of the expected value
    dtype: type  # of NumPy, for a recording's values; integers start at one byte and widen
    outputs: int
    nll: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    from_mean: Callable[[Array], Array]
    invalid: Callable[[np.ndarray], Iterator[tuple[str, np.ndarray]]]
    expected: str  # what a valid value is, for error messages
    fill: float = 0  # a valid value to compute with where nothing was observed

    @property
    def is_count(self) -> bool:
        return np.issubdtype(self.dtype, np.integer)


def _exp(x: Array) -> Array:
    return x.__array_namespace__().exp(x)


def _log(x: Array) -> Array:
    xp = x.__array_namespace__()
    return xp.log(xp.clip(x, MIN_RATE, None))


def _not_a_count(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "an infinity", ~np.isfinite(values)
    yield "a negative count", values < 0
    yield "a fractional count", values != np.round(values)
    yield f"a count above {MAX_COUNT}", values > MAX_COUNT


POISSON = Observation(
    summary="spike counts; the readout is the natural log of the expected count",
    unit="spikes/bin",
    dtype=np.uint8,
    outputs=1,
    nll=lambda lograte, count: _exp(lograte) - count * lograte,
    mean=_exp,
    from_mean=_log,
    invalid=_not_a_count,
    expected="whole spike counts, NaN where not observed (real values need another "
    "model.observation)",
)

OBSERVATIONS = {"poisson": POISSON}


def masked_nll(
    observation: Observation, output: Array, values: Array, observed: Array
) -> tuple[Array, Array]:
    """Summed negative log-likelihood of the observed points (nats), and how many they are.

    output: trial x bin x (outputs * neuron). values, observed: trial x bin x neuron.

    Whatever stands at unobserved points, NaN and infinities included, is replaced before any
    arithmetic, so that neither the value nor the gradient depends on it. Zhu, Sedler et al. 2021
    (arXiv 2111.00070), section 3.
    """
    xp = output.__array_namespace__()
    shown = observed if observation.outputs == 1 else xp.tile(observed, observation.outputs)
    output = xp.where(shown, output, 0.0)
    values = xp.where(observed, values, observation.fill)
    return xp.where(observed, observation.nll(output, values), 0.0).sum(), observed.sum()


@cache
def is_linear(observation: Observation) -> bool:
    """Whether the negative log-likelihood is linear in the value, found by trying."""
    output = np.linspace(-2, 2, 5 * observation.outputs, dtype=np.float64).reshape(5, -1)
    one, two, four = (observation.nll(output, np.full((5, 1), float(x))) for x in (1, 2, 4))
    return bool(np.allclose(four - two, 2 * (two - one)))


def linear_nll(observation: Observation, output: Array) -> tuple[Array, Array]:
    """Base and slope of a negative log-likelihood that is base + slope * value."""
    neurons = output.shape[-1] // observation.outputs
    ones = output.__array_namespace__().ones_like(output[..., :neurons])
    one = observation.nll(output, ones)
    slope = observation.nll(output, 2 * ones) - one
    return one - slope, slope
