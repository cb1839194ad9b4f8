"""What one would have done without a model: simple estimates of rates, under the same masks.

Each baseline learns from the observed points of the training trials and predicts the validation
trials from what is observed of them. Its few parameters are chosen like a model's epoch: by the
likelihood of held-out points that are not the reported ones. `BASELINES` lists them; to add one,
write a function that learns from the training trials, and a row.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.ndimage import gaussian_filter1d

from sbtt_jax.data.dataset import Mask, statistics
from sbtt_jax.grid import short
from sbtt_jax.model import metrics
from sbtt_jax.run.files import Row
from sbtt_jax.run.scores import Rates, View

Counts = Num[np.ndarray, "trial bin neuron"]
Predictor = Callable[[Counts, Mask, Int[np.ndarray, " trial"] | None], Rates]

WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # standard deviations of a Gaussian kernel, in bins
PRIORS = (0.3, 1.0, 3.0, 10.0, 30.0)  # weight of a neuron's mean rate, in observed bins
RANKS = (1, 2, 4, 8)
MAX_TRIALS = 200
FLOOR = 0.1  # a rate never falls below this fraction of the neuron's mean


class Training(NamedTuple):
    """What a baseline learns from: the training trials, and their conditions if there are any."""

    counts: Counts
    observed: Mask
    condition: Int[np.ndarray, " trial"] | None
    mean: Float[np.ndarray, " neuron"]  # per bin over the observed points; of counts, never 0
    unit: Float[np.ndarray, " neuron"]  # in which neurons are compared
    floor: Float[np.ndarray, " neuron"]  # which no rate falls below


def mean_rate(training: Training) -> Callable[[], Predictor]:
    """Each neuron's mean rate over the training trials."""
    mean = training.mean
    return lambda: lambda counts, observed, condition: np.broadcast_to(mean, counts.shape)


def smoothing(training: Training) -> Callable[[float, float], Predictor]:
    """Each neuron's own counts in a trial under a Gaussian kernel that skips what is missing.

    The kernel has a peak of 1, so that its sum is a number of observed bins; `prior` such bins at
    the neuron's mean rate are added.
    """
    mean = training.mean
    return lambda width, prior: (
        lambda counts, observed, condition: _smoothed(counts, observed, mean, width, prior)[0]
    )


def trial_average(training: Training) -> Callable[[float, float], Predictor]:
    """The mean over the training trials of each bin, smoothed."""
    average = psth(training._replace(condition=np.zeros(len(training.counts), int)))

    def choose(width, prior):
        predict = average(width, prior)
        return lambda counts, observed, _: predict(counts, observed, np.zeros(len(counts), int))

    return choose


def psth(training: Training) -> Callable[[float, float], Predictor]:
    """The mean over the training trials of a condition in each bin, smoothed."""
    conditions, index = np.unique(training.condition, return_inverse=True)
    mean, shape = training.mean, (len(conditions), *training.counts.shape[1:])
    spikes, seen = np.zeros(shape), np.zeros(shape)
    np.add.at(spikes, index, np.where(training.observed, training.counts, 0))
    np.add.at(seen, index, training.observed)

    def choose(width, prior):
        rates, _ = _smoothed(spikes, seen, mean, width, prior)

        def predict(counts, observed, condition):
            known = np.isin(condition, conditions)
            at = np.searchsorted(conditions, np.where(known, condition, conditions[0]))
            return np.where(known[:, None, None], rates[at], mean)

        return predict

    return choose


def low_rank(training: Training) -> Callable[[float, int], Predictor]:
    """Smoothed counts explained by a few factors that all neurons share.

    Principal components of the training trials' smoothed rates, in units of the square root of
    each neuron's mean (of what is no count: of its standard deviation); in a new trial, each bin's
    factors are the ridge regression of the neurons' smoothed rates on the components, each neuron
    with the weight of what was observed of it.
    """
    mean, unit = training.mean, training.unit
    some = np.linspace(0, len(training.counts) - 1, MAX_TRIALS, dtype=int)  # enough for components
    trials = np.unique(some)

    @lru_cache
    def components_and_variance(width):
        own = training.counts[trials], training.observed[trials]
        rates, weight = _smoothed(*own, mean, width, prior=1.0)
        scaled = ((rates - mean) / unit)[weight.any(-1)]
        components = np.linalg.svd(scaled.T @ scaled)[0]  # neuron factor
        return components, np.maximum((scaled @ components).var(0), 1e-12)

    def choose(width, rank):
        components, variance = (a[..., :rank] for a in components_and_variance(width))
        products = (components[:, :, None] * components[:, None]).reshape(len(mean), -1)

        def predict(counts, observed, condition):
            rates, weight = _smoothed(counts, observed, mean, width, prior=1e-6)
            precision = (weight @ products).reshape(*weight.shape[:2], *2 * variance.shape)
            target = (weight * (rates - mean) / unit) @ components  # trial bin factor
            factors = np.linalg.solve(precision + np.diag(1 / variance), target[..., None])
            return np.maximum(mean + unit * (factors[..., 0] @ components.T), training.floor)

        return predict

    return choose


def _smoothed(
    counts: Counts, observed: Mask | Rates, mean: np.ndarray, width: float, prior: float
) -> tuple[Rates, Rates]:
    """Smoothed rates, and how many observed bins they rest on.

    Sums over trials may take the place of a trial, `observed` then says over how many of them.
    """
    spikes = _kernel(np.where(observed, counts, 0), width)
    weight = _kernel(observed, width)
    return (spikes + prior * mean) / (weight + prior), weight


def _kernel(values: np.ndarray, width: float) -> np.ndarray:
    peak = np.sqrt(2 * np.pi) * width
    return peak * gaussian_filter1d(values.astype(np.float64), width, axis=1, mode="constant")


class Baseline(NamedTuple):
    """A row of `BASELINES`: how it learns, what its parameters are chosen from, and what it is.

    learn: from the training trials to a function of the parameters that makes a predictor.
    """

    learn: Callable[[Training], Callable[..., Predictor]]
    choices: Mapping[str, Sequence[Any]]
    summary: str


SMOOTHING = {"width": WIDTHS, "prior": PRIORS}
BASELINES = {
    "mean_rate": Baseline(mean_rate, {}, "each neuron's mean rate"),
    "smoothing": Baseline(smoothing, SMOOTHING, "each neuron's counts, smoothed in time"),
    "trial_average": Baseline(trial_average, SMOOTHING, "the mean over trials, smoothed"),
    "psth": Baseline(psth, SMOOTHING, "the mean over the trials of a condition, smoothed"),
    "low_rank": Baseline(
        low_rank,
        {"width": WIDTHS, "rank": RANKS},
        "smoothed counts explained by factors that neurons share",
    ),
}


class Prediction(NamedTuple):
    """What one baseline, with the parameters chosen for it, says about trials."""

    baseline: str
    parameters: str
    rates: Rates  # of the scored trials, of all that is given
    blind: Rates  # of the judged trials, of what is not held out


def predictions(view: View, learned: View | None = None) -> Iterator[Prediction]:
    """Those of every baseline. Left out are those that do not apply, and all if nothing is held out
    to choose by.

    learned: what models trained on, if that is not what is judged.
    """
    if view.reporting is None:
        return
    of_training = view if learned is None else learned
    data, train, valid = of_training.data, of_training.data.train, of_training.data.valid
    of = (lambda trials: None) if data.condition is None else data.condition.__getitem__
    observation = view.settings.model.distribution
    mean, deviation = statistics(data.counts, of_training.observed, train)
    unit = np.sqrt(mean) if observation.is_count else deviation
    floor = np.full(len(mean), -np.inf) if observation.is_signed else FLOOR * mean
    own = data.counts[train], of_training.observed[train], of(train)
    training = Training(*own, mean, unit, floor)
    rest = metrics.null(*own[:2], observation)[len(mean) :]

    def whole(rates):  # with the training trials' other parameters, if there are any
        rest_of_all = np.broadcast_to(rest, (*rates.shape[:2], len(rest)))
        return np.concatenate([rates, rest_of_all], axis=-1) if len(rest) else rates

    counts, condition = data.counts[valid], of(valid)
    passes = [(shown, hidden) for shown, hidden in of_training.passes() if hidden.any()]
    judged, scored = view.data.judged, view.scored
    of_judged = of(judged) if learned is None else None
    of_scored = of(scored) if learned is None else None
    for name, baseline in BASELINES.items():
        if name == "psth" and of_judged is None:  # conditions elsewhere may be others
            continue
        if name == "trial_average" and view.data.counts.shape[1] != counts.shape[1]:
            continue
        choose, tried = baseline.learn(training), []
        for values in itertools.product(*baseline.choices.values()):
            parameters = dict(zip(baseline.choices, values, strict=True))
            if parameters.get("width", 0) > max(WIDTHS[0], counts.shape[1] / 2):
                continue  # as good as flat
            predict = choose(**parameters)
            loss = 0.0
            for shown, hidden in passes:
                rates = whole(predict(counts, shown, condition))
                loss += metrics.nll(rates, counts, hidden, observation) * hidden.sum()
            tried.append((loss, predict, parameters))
        _, predict, parameters = min(tried, key=lambda one: one[0])
        chosen = ", ".join(f"{key} {short(value)}" for key, value in parameters.items())
        rates = predict(view.data.counts[scored], view.given[scored], of_scored)
        blind = predict(view.data.counts[judged], view.shown, of_judged)
        yield Prediction(name, chosen, whole(rates), whole(blind))


def score_baselines(view: View, learned: View | None = None) -> list[Row]:
    """The rows of baselines.csv for one bandwidth: `View.score` of every baseline, after its name
    and the parameters chosen for it; `learned` as of `predictions`."""
    rows = []
    for found in predictions(view, learned):
        first = {"baseline": found.baseline, "parameters": found.parameters}
        rates = np.full((*view.data.counts.shape[:2], found.rates.shape[-1]), np.nan)
        rates[view.scored] = found.rates
        rows.append({**first, **view.score(rates, np.array(found.blind))})
    return rows
