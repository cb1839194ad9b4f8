"""What one would have done without a model: simple estimates of rates, under the same masks.

Each baseline learns from the observed points of the training trials and predicts the validation
trials from what is observed of them. Its few parameters are chosen like a model's epoch: by the
likelihood of held-out points that are not the reported ones. `BASELINES` lists them; to add one,
write a function that learns from the training trials, and a row.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from sbtt_jax.data.dataset import Mask, statistics
from sbtt_jax.grid import short
from sbtt_jax.model import dispersion, metrics
from sbtt_jax.model import low_rank as linear
from sbtt_jax.model.dispersion import Rest
from sbtt_jax.model.low_rank import Scale, sums
from sbtt_jax.run.files import Row
from sbtt_jax.run.scores import Rates, View

Counts = Num[np.ndarray, "trial bin neuron"]
Conditions = Int[np.ndarray, " trial"] | None
SumsOverTrials = Float[np.ndarray, "condition bin neuron"]
# Trials, bins and neurons of points, as they index arrays; of all of them, as an open mesh.
Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Predictor = Callable[[Counts, Mask, Conditions], Rates]
# A predictor that leaves parameters open: what does not depend on these is computed once for all.
Open = Callable[[Counts, Mask, Conditions, Points], Callable[..., np.ndarray]]

WIDTHS = tuple(2.0**i for i in range(8))  # standard deviations of a Gaussian kernel, in bins
FLAT = 2.0  # widths beyond so many times the bins of a trial are as good as this
PRIORS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of a neuron's mean rate, in observed bins
RANKS = (1, 2, 4, 8)
LEAST_VARIANCE = 1e-8  # of the mean over neurons: values of each are on a scale of its own
FLOOR = 0.1  # a rate never falls below this fraction of the neuron's mean


class Training(NamedTuple):
    """What a baseline learns from: the training trials, and their conditions if there are any."""

    counts: Counts
    observed: Mask
    condition: Int[np.ndarray, " trial"] | None
    scale: Scale
    # Other parameters of the observation model, if it has any, about the mean of each neuron.
    rest: Float[np.ndarray, " parameter"]


def mean_rate(training: Training) -> Callable[[], Open]:
    """Each neuron's mean rate over the training trials."""
    mean = training.scale.mean
    return lambda: (
        lambda counts, observed, condition, at: (
            lambda: np.broadcast_to(mean[at[2]], np.broadcast_shapes(*map(np.shape, at)))
        )
    )


def smoothing(training: Training) -> Callable[[float], Open]:
    """Each neuron's own counts in a trial under a Gaussian kernel that skips what is missing.

    The kernel has a peak of 1, so that its sum is a number of observed bins; `prior` such bins at
    the neuron's mean rate are added.
    """

    def choose(width):
        def given(counts, observed, condition, at):
            known, mean = sums(counts, observed, width).at(at), training.scale.mean[at[2]]
            return lambda prior: known.rates(mean, prior)

        return given

    return choose


def trial_average(training: Training) -> Callable[[float], Open]:
    """The mean over the training trials of each bin, smoothed."""
    average = psth(training._replace(condition=np.zeros(len(training.counts), int)))

    def choose(width):
        given = average(width)
        return lambda counts, observed, _, at: given(
            counts, observed, np.zeros(len(counts), int), at
        )

    return choose


def psth(training: Training) -> Callable[[float], Open]:
    """The mean over the training trials of a condition in each bin, smoothed."""
    conditions, *every = by_condition(training)

    def choose(width):
        known = sums(*every, width)

        def given(counts, observed, condition, at):
            trial, bin_, neuron = at
            among = np.isin(condition, conditions)
            place = np.searchsorted(conditions, np.where(among, condition, conditions[0]))
            own, mean = known.at((place[trial], bin_, neuron)), training.scale.mean[neuron]
            return lambda prior: np.where(among[trial], own.rates(mean, prior), mean)

        return given

    return choose


def by_condition(
    training: Training,
) -> tuple[Int[np.ndarray, " condition"], SumsOverTrials, SumsOverTrials]:
    """Conditions of the training trials, and the sums over the trials of each of what is observed,
    and of how much is."""
    conditions = np.unique(training.condition[training.condition >= 0])
    shape = len(conditions), *training.counts.shape[1:]
    spikes, seen = np.zeros(shape), np.zeros(shape)
    place = np.searchsorted(conditions, training.condition)
    for trial in np.flatnonzero(training.condition >= 0):  # without a copy of all
        own, observed = place[trial], training.observed[trial]
        spikes[own] += np.where(observed, training.counts[trial], 0)
        seen[own] += observed
    return conditions, spikes, seen


def low_rank(training: Training) -> Callable[[float], Open]:
    """`model.low_rank`: smoothed counts explained by a few factors that all neurons share."""

    def choose(width):
        every = linear.learn(training.counts, training.observed, training.scale, width)

        def given(counts, observed, condition, at):
            known = sums(counts, observed, width)
            trial, bin_, neuron = at
            mean, unit, floor = (one[neuron] for one in training.scale)

            def rates(rank):
                own = linear.truncated(every, rank)
                factors = own.factors(known)[trial, bin_], own.components[neuron]
                return np.maximum(mean + unit * np.einsum("...r,...r->...", *factors), floor)

            return rates

        return given

    return choose


class Baseline(NamedTuple):
    """A row of `BASELINES`: how it learns, what its parameters are chosen from, and what it is.

    learn: from the training trials to a function of the first parameter, a width in bins, that
      makes a predictor with the others open.
    grows: up to what the last parameter is doubled beyond its choices, for as long as that is
      better; 0: not at all.
    """

    learn: Callable[[Training], Callable[..., Open]]
    choices: Mapping[str, Sequence[Any]]
    summary: str
    grows: int = 0


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
        grows=64,
    ),
}


class Prediction(NamedTuple):
    """What one baseline, with the parameters chosen for it, says about trials."""

    baseline: str
    parameters: str
    rates: Rates  # of the scored trials, of all that is given
    blind: Rates  # of the judged trials, of what is not held out


def everywhere(shape: tuple[int, int, int]) -> Points:
    """All points of an array."""
    return tuple(np.ogrid[tuple(map(slice, shape))])


def training_of(view: View) -> Training:
    """What a baseline of one bandwidth learns from."""
    data, train = view.data, view.data.train
    mean, deviation = statistics(data.counts, view.observed, train, least=LEAST_VARIANCE)
    unit = np.sqrt(mean) if view.observation.is_count else deviation
    floor = np.full(len(mean), -np.inf) if view.observation.is_signed else FLOOR * mean
    condition = None if data.condition is None else data.condition[train]
    if condition is not None and (condition < 0).all():
        condition = None
    own, rest = (data.counts[train], view.observed[train]), np.zeros(0)
    if view.observation.outputs > 1:
        rest = metrics.null(*own, view.observation)[len(mean) :]
    return Training(*own, condition, Scale(mean, unit, floor), rest)


class Choice(NamedTuple):
    """What is chosen for a baseline: how it predicts, its parameters by name, and those of the
    observation model beside what it expects, if there are any."""

    predict: Predictor
    parameters: dict[str, Any]
    rest: Rest


class Chosen:
    """The baselines as they learn from one view, each with the parameters under which the points
    that choose are most likely: found once, when first called for by name, from any thread."""

    def __init__(self, view: View):
        self.view, self.training = view, training_of(view)
        self._found: dict[str, Choice] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Choice:
        with self._lock:
            if name not in self._found:
                self._found[name] = _chosen(self.view, name, self.training)
            return self._found[name]


def _chosen(view: View, name: str, training: Training) -> Choice:
    data, observation, baseline = view.data, view.observation, BASELINES[name]
    counts, condition = data.counts[data.valid], None
    if data.condition is not None:
        condition = data.condition[data.valid]
    choose, tried = baseline.learn(training), {}
    passes = [(one.shown, np.nonzero(one.hidden)) for one in view.passes()]
    first, *more = baseline.choices.values() or [()]
    widths = [(width,) for width in first if width <= FLAT * counts.shape[1]] or [()]

    is_fitted = training.rest.size and baseline.choices  # of the mean rate, they are known

    def rest_of(expected, values, neuron, *, each=False):
        if not is_fitted:
            return dispersion.constant(training.rest)
        return dispersion.fitted(observation, training.rest, expected, values, neuron, each=each)

    def compare(width, every):
        given, losses, rests = choose(*width), dict.fromkeys(every, 0.0), {}
        for shown, hidden in passes:
            estimate, own = given(counts, shown, condition, hidden), (counts[hidden], hidden[2])
            for others in losses:
                expected = estimate(*others)
                if others not in rests:  # one pass is enough to compare by
                    rests[others] = rest_of(expected, *own)
                points = dispersion.at_points(rests[others], expected, own[1], counts.shape[2])
                losses[others] += metrics.nll_of_points(points, own[0], observation).sum()
        tried.update({(width, others): loss for others, loss in losses.items()})

    for width in widths:
        compare(width, itertools.product(*more))
    best, _ = min(tried, key=tried.get)
    at = widths.index(best)
    for width in widths[max(at - 1, 0) : at + 2] if baseline.grows else ():
        own = [(width, others) for others in itertools.product(*more)]
        while tried[own[-1]] < tried[own[-2]]:
            *others, last = own[-1][1]
            if 2 * last > baseline.grows:
                break
            own.append((width, (*others, 2 * last)))
            compare(width, [own[-1][1]])
    width, others = min(tried, key=tried.get)
    parameters = dict(zip(baseline.choices, width + others, strict=True))

    def predict(counts, observed, condition):
        return choose(*width)(counts, observed, condition, everywhere(counts.shape))(*others)

    every = []
    for shown, hidden in passes if is_fitted else ():
        expected = choose(*width)(counts, shown, condition, hidden)(*others)
        every.append((expected, counts[hidden], hidden[2]))
    points = map(np.concatenate, zip(*every, strict=True))
    rest = rest_of(*points, each=True) if every else dispersion.constant(training.rest)
    return Choice(predict, parameters, rest)


def predictions(view: View, chosen: Chosen | None = None) -> Iterator[Prediction]:
    """Those of every baseline. Left out are those that do not apply, and all if nothing is held out
    to choose by.

    chosen: those that learned from what models trained on, if that is not what is judged, or they
      are there already.
    """
    if view.reporting is None:
        return
    chosen = Chosen(view) if chosen is None else chosen
    training, data = chosen.training, view.data
    # Elsewhere conditions may be others.
    known = chosen.view is view and training.condition is not None
    judged, scored = data.judged, view.scored
    for name in BASELINES:
        if name == "psth" and not known:
            continue
        if name == "trial_average" and data.counts.shape[1] != training.counts.shape[1]:
            continue
        predict, parameters, rest = chosen(name)
        words = ", ".join(f"{key} {short(value)}" for key, value in parameters.items())
        of = data.condition.__getitem__ if known else lambda trials: None
        rates = predict(data.counts[scored], view.given[scored], of(scored))
        blind = predict(data.counts[judged], view.shown, of(judged))
        found = (dispersion.everywhere(rest, values) for values in (rates, blind))
        yield Prediction(name, words, *found)


def score_baselines(view: View, chosen: Chosen | None = None) -> list[Row]:
    """The rows of baselines.csv for one bandwidth: `View.score` of every baseline, after its name
    and the parameters chosen for it; `chosen` as of `predictions`."""
    rows = []
    for found in predictions(view, chosen):
        first = {"baseline": found.baseline, "parameters": found.parameters}
        rows.append({**first, **view.score(found.rates, np.array(found.blind))})
    return rows
