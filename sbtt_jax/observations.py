"""Observation models: how the value of a neuron in a bin is distributed, given the readout.

Reading a recording, the training loss, inference and the scores all follow from one `Observation`;
`OBSERVATIONS` names them. The functions take NumPy and JAX arrays alike.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

Array = Any  # NumPy or JAX

MAX_COUNT = 65535
MIN_RATE = 1e-9  # a rate of exactly 0 would make any spike impossible
LARGEST_LOG = 8.0  # of a shape or size


class Words(NamedTuple):
    """What people call the values, their means, and what bits are counted per."""

    values: str
    means: str
    per: str


class Observation(NamedTuple):
    """One distribution.

    parameters: what the readout gives for each neuron and bin. It lists the first of every neuron,
      then the second of every neuron, and so on. The first sets the mean, given the others.
    nll: (output, value) -> negative log-likelihood of each point in nats, without terms that depend
      on the value alone.
    from_mean: (mean, other parameters) -> output that has them.
    from_moments: (mean, standard deviation) -> output that has about these, where training begins.
    invalid: values -> pairs of words and a mask, of values that cannot be.
    """

    summary: str  # what it is for, in one line
    unit: str  # of the expected value
    dtype: type  # of NumPy, for a recording's values; integers start at one byte and widen
    parameters: tuple[str, ...]
    nll: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    from_mean: Callable[[Array, Array], Array]
    from_moments: Callable[[Array, Array], Array]
    invalid: Callable[[np.ndarray], Iterator[tuple[str, np.ndarray]]]
    expected: str  # what a valid value is, for error messages
    fill: float = 0  # a valid value to compute with where nothing was observed
    constant: int = 0  # how many parameters, the last ones, are a neuron's in all bins alike

    @property
    def outputs(self) -> int:
        """Readout numbers per neuron and bin."""
        return len(self.parameters)

    @property
    def is_count(self) -> bool:
        return np.issubdtype(self.dtype, np.integer)

    @property
    def is_signed(self) -> bool:
        """Whether values may be below 0."""
        return not any(bad.any() for _, bad in self.invalid(np.array([-1.0])))

    @property
    def words(self) -> Words:
        if self.is_count:
            return Words("counts", "rates", "spike")
        return Words("values", "expected values", "sample")

    def shown(self, bin_width: float) -> tuple[float, str]:
        """What expected values are multiplied by for people, and the unit they have then."""
        return (1 / bin_width, "spikes/s") if self.is_count else (1.0, self.unit)


def predicted(observation: Observation, output: Array) -> Array:
    """Expected values, and the other parameters as the readout has them, in its layout."""
    mean = observation.mean(output)
    if observation.outputs == 1:
        return mean
    return _joined(mean, output[..., mean.shape[-1] :])


def output_of(observation: Observation, prediction: Array) -> Array:
    """The output of which `predicted` makes this."""
    neurons = prediction.shape[-1] // observation.outputs
    return observation.from_mean(prediction[..., :neurons], prediction[..., neurons:])


def _exp(x: Array) -> Array:
    return x.__array_namespace__().exp(x)


def safe_log(x: Array) -> Array:
    """The natural logarithm; of what is less than `MIN_RATE`, that of it."""
    xp = x.__array_namespace__()
    return xp.log(xp.clip(x, MIN_RATE, None))


def _joined(*parts: Array) -> Array:
    return parts[0].__array_namespace__().concat(parts, axis=-1)


def _split(output: Array, count: int) -> list[Array]:
    neurons = output.shape[-1] // count
    return [output[..., i * neurons : (i + 1) * neurons] for i in range(count)]


def _bounded(x: Array) -> Array:
    """About x where it is small, never beyond +-LARGEST_LOG: so that no exponential overflows."""
    return LARGEST_LOG * x.__array_namespace__().tanh(x / LARGEST_LOG)


def _unbounded(x: Array) -> Array:
    xp = x.__array_namespace__()
    return LARGEST_LOG * xp.atanh(xp.clip(x / LARGEST_LOG, -0.99, 0.99))


def _gammaln(x: Array) -> Array:
    if isinstance(x, np.ndarray | np.generic):
        from scipy.special import gammaln
    else:  # NumPy users do not wait for JAX
        from jax.scipy.special import gammaln
    return gammaln(x)


def _softplus(x: Array) -> Array:
    xp = x.__array_namespace__()
    return xp.logaddexp(x, xp.zeros_like(x))


def _not_a_count(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "an infinity", ~np.isfinite(values)
    yield "a negative count", values < 0
    yield "a fractional count", values != np.round(values)
    yield f"a count above {MAX_COUNT}", values > MAX_COUNT


POISSON = Observation(
    summary="spike counts; the readout is the natural log of the expected count",
    unit="spikes/bin",
    dtype=np.uint8,
    parameters=("log mean",),
    nll=lambda lograte, count: _exp(lograte) - count * lograte,
    mean=_exp,
    from_mean=lambda mean, rest: safe_log(mean),
    from_moments=lambda mean, deviation: safe_log(mean),
    invalid=_not_a_count,
    expected="whole spike counts, NaN where not observed (real values need another "
    "model.observation)",
)


def _negative_binomial_nll(output: Array, count: Array) -> Array:
    log_mean, log_size = _split(output, 2)
    size = _exp(_bounded(log_size))
    both = log_mean.__array_namespace__().log(size + _exp(log_mean))
    terms = _gammaln(size) - _gammaln(size + count) - size * _bounded(log_size)
    return terms + (size + count) * both - count * log_mean


def _negative_binomial_moments(mean: Array, deviation: Array) -> Array:
    xp = mean.__array_namespace__()
    size = mean**2 / xp.clip(deviation**2 - mean, 0.1 * mean, None)
    return _joined(safe_log(mean), _unbounded(safe_log(size)))


# Of families whose first parameter is the log of their mean.
OF_LOG_MEAN = {
    "mean": lambda output: _exp(_split(output, 2)[0]),
    "from_mean": lambda mean, rest: _joined(safe_log(mean), rest),
}
NEGATIVE_BINOMIAL = POISSON._replace(
    summary="spike counts that vary more than Poisson counts: variance = mean + mean^2 / size",
    parameters=("log mean", "log size"),
    nll=_negative_binomial_nll,
    **OF_LOG_MEAN,
    from_moments=_negative_binomial_moments,
)


def _gaussian_nll(output: Array, value: Array) -> Array:
    mean, log_deviation = _split(output, 2)
    return log_deviation + ((value - mean) * _exp(-log_deviation)) ** 2 / 2


GAUSSIAN = Observation(
    summary="values of any sign with Gaussian noise, such as fluorescence",
    unit="1",
    dtype=np.float32,
    parameters=("mean", "log deviation"),
    nll=_gaussian_nll,
    mean=lambda output: _split(output, 2)[0],
    from_mean=lambda mean, rest: _joined(mean, rest),
    from_moments=lambda mean, deviation: _joined(mean, safe_log(deviation)),
    invalid=lambda values: iter([("a value that is not finite", ~np.isfinite(values))]),
    expected="finite values, NaN where not observed",
)


def _gamma_nll(output: Array, value: Array) -> Array:
    """Of a gamma distribution of shape k and mean m; the terms -log(value) are left out."""
    log_mean, log_shape = _split(output, 2)
    log_shape = _bounded(log_shape)
    shape = _exp(log_shape)
    ratio = safe_log(value) - log_mean
    return _gammaln(shape) - shape * (log_shape + ratio) + shape * _exp(ratio)


def _not_positive(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "a value that is not finite", ~np.isfinite(values)
    yield "a negative value", values < 0
    yield "a zero, for which there is zero_inflated_gamma", values == 0


GAMMA = Observation(
    summary="positive values whose deviation grows with their mean",
    unit="1",
    dtype=np.float32,
    parameters=("log mean", "log shape"),
    nll=_gamma_nll,
    **OF_LOG_MEAN,
    from_moments=lambda mean, deviation: _joined(
        safe_log(mean), _unbounded(2 * (safe_log(mean) - safe_log(deviation)))
    ),
    invalid=_not_positive,
    expected="positive values, NaN where not observed",
    fill=1,
)


def _zero_inflated_nll(output: Array, value: Array) -> Array:
    log_mean, logit, log_shape = _split(output, 3)
    xp = output.__array_namespace__()
    is_event = value > 0
    event = _gamma_nll(_joined(log_mean, log_shape), xp.where(is_event, value, 1.0))
    return xp.where(is_event, event + _softplus(-logit), _softplus(logit))


def _zero_inflated_moments(mean: Array, deviation: Array) -> Array:
    """As if events were exponential."""
    xp = mean.__array_namespace__()
    square = mean**2 + deviation**2
    share = xp.clip(2 * mean**2 / xp.clip(square, 1e-12, None), 0.01, 0.99)
    logit = xp.log(share) - xp.log(1 - share)
    return _joined(safe_log(mean / share), logit, xp.zeros_like(mean))


def _share(logit: Array) -> Array:
    return 1 / (1 + _exp(-logit))


ZERO_INFLATED_GAMMA = GAMMA._replace(
    summary="deconvolved events: zeros, or positive values (RADICaL, Zhu et al. 2022)",
    parameters=("log mean of events", "logit of their share", "log shape"),
    nll=_zero_inflated_nll,
    mean=lambda output: _exp(_split(output, 3)[0]) * _share(_split(output, 3)[1]),
    from_mean=lambda mean, rest: _joined(safe_log(mean / _share(_split(rest, 2)[0])), rest),
    from_moments=_zero_inflated_moments,
    invalid=lambda values: itertools.islice(_not_positive(values), 2),
    expected="values of at least 0, NaN where not observed",
    fill=0,
)

OBSERVATIONS = {
    "poisson": POISSON,
    "negative_binomial": NEGATIVE_BINOMIAL,
    "gaussian": GAUSSIAN,
    "gamma": GAMMA,
    "zero_inflated_gamma": ZERO_INFLATED_GAMMA,
}


@cache
def of(name: str, *, event_minimum: float = 0.0, noise: float | str | None = None) -> Observation:
    """The observation model of a name, with what settings fix of it.

    event_minimum: zero_inflated_gamma is of what events exceed it by.
    noise: standard deviation of gaussian values; None: learned for each neuron and bin; "neuron":
      for each neuron.
    """
    if event_minimum and name == "zero_inflated_gamma":
        return _above(event_minimum)
    if noise is not None and name == "gaussian":
        return GAUSSIAN._replace(constant=1) if noise == "neuron" else _with_noise(noise)
    return OBSERVATIONS[name]


def _above(least: float) -> Observation:
    """Zeros, or a gamma distribution of what exceeds the least event."""
    whole = ZERO_INFLATED_GAMMA

    def nll(output: Array, value: Array) -> Array:
        xp = output.__array_namespace__()
        # Rounding may put the smallest events a little below.
        excess = xp.clip(value - least, 1e-3 * least, None)
        return whole.nll(output, xp.where(value > 0, excess, 0.0))

    def share(output: Array) -> Array:
        return _share(_split(output, 3)[1])

    def from_mean(mean: Array, rest: Array) -> Array:
        excess = mean - least * _share(_split(rest, 2)[0])
        return whole.from_mean(excess.__array_namespace__().clip(excess, MIN_RATE, None), rest)

    def invalid(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        yield from whole.invalid(values)
        yield "an event below model.event_minimum", (values > 0) & (values < 0.999 * least)

    def from_moments(mean: Array, deviation: Array) -> Array:
        rest = whole.from_moments(mean, deviation)[..., mean.shape[-1] :]
        return from_mean(mean, rest)

    return whole._replace(
        nll=nll,
        mean=lambda output: whole.mean(output) + least * share(output),
        from_mean=from_mean,
        from_moments=from_moments,
        invalid=invalid,
        expected=f"zeros and values of at least {least:g}, NaN where not observed",
    )


def _with_noise(deviation: float) -> Observation:
    """Gaussian noise of a known standard deviation."""
    return GAUSSIAN._replace(
        parameters=("mean",),
        nll=lambda mean, value: ((value - mean) / deviation) ** 2 / 2,
        mean=lambda output: output,
        from_mean=lambda mean, rest: mean,
        from_moments=lambda mean, deviations: mean,
    )


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
    if observation.outputs > 1:
        return False
    output = np.linspace(-2, 2, 5, dtype=np.float64)[:, None]
    one, two, four = (observation.nll(output, np.full((5, 1), float(x))) for x in (1, 2, 4))
    return bool(np.allclose(four - two, 2 * (two - one)))


def linear_nll(observation: Observation, output: Array) -> tuple[Array, Array]:
    """Base and slope of a negative log-likelihood that is base + slope * value."""
    neurons = output.shape[-1] // observation.outputs
    ones = output.__array_namespace__().ones_like(output[..., :neurons])
    one = observation.nll(output, ones)
    slope = observation.nll(output, 2 * ones) - one
    return one - slope, slope
