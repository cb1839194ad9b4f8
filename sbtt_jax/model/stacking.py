"""Rates as a weighted mean of several estimates, each good where the others are not.

- the network's own, from what its encoder infers about the trial;
- that of similar trials: the mean of what the network infers about the training trials, each
  weighed by the likelihood of the trial's observed values under it, as in `posterior`; a training
  trial has no part in its own, whose likelihood says nothing since it was inferred from the same
  values;
- the linear one of `low_rank`, which few trials suffice for;
- the mean over the training trials of the same condition (PSTH), where conditions are known;
- each neuron's own values, smoothed, unless the network smooths them itself.

The weights are those under which held-out points are most likely, so that whatever a recording
allows decides: the same for all trials, but others for a neuron of which a trial has no sample.
Stacking: Wolpert 1992 (Neural Networks 5, 241); Breiman 1996 (Machine Learning 24, 49).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Num, Shaped, UInt64

from sbtt_jax.model import dispersion
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.low_rank import LowRank, Scale, Smoother
from sbtt_jax.model.posterior import expected
from sbtt_jax.observations import Observation, output_of, predicted

Values = Num[np.ndarray, "trial bin neuron"]
Mask = Bool[np.ndarray, "trial bin neuron"]
Output = Float[np.ndarray, "trial bin output"]
Trajectories = Float[np.ndarray, "trajectory bin output"]
# Expected values, and what else there is, as `observations.predicted` has them.
Estimate = Float[np.ndarray, "trial bin output"]

ESTIMATES = "network", "similar_trials", "low_rank", "psth", "smoothing"
SIMPLE = ESTIMATES[2:]  # that no network has a part in
MAX_TRAJECTORIES = 512  # of training trials
BATCH_SIZE = 64  # trials at a time
SIMILAR_BATCH_SIZE = 256  # the same, at most, that are compared to trajectories
DRAWS = 20  # bootstrap samples
MAX_POINTS = 50_000  # that weights are chosen by
NOTHING = -1e9  # log of a weight; finite, so that a trajectory that is alone still counts

_similar = jax.jit(expected, static_argnums=0)

Conditions = Shaped[np.ndarray, " trial"] | None  # numbers or names
Identities = UInt64[np.ndarray, " trial"]
Sources = UInt64[np.ndarray, " trajectory"]
Variance = Float[np.ndarray, "trial bin neuron"]
Weights = Float[np.ndarray, " estimate"]


class Psth(NamedTuple):
    """Mean rates of the conditions of training trials, smoothed, and what they leave open; none if
    none are known."""

    conditions: Shaped[np.ndarray, " condition"]
    means: Float[np.ndarray, "condition bin neuron"]
    variances: Float[np.ndarray, "condition bin neuron"]

    def among(self, condition: Shaped[np.ndarray, " trial"]) -> tuple[np.ndarray, np.ndarray]:
        """Whether the condition of each trial is among them, and the place of those that are."""
        names, condition = _texts(self.conditions), _texts(condition)
        known, order = np.isin(condition, names), np.argsort(names)
        return known, order[np.searchsorted(names[order], condition[known])]


def _texts(names: Shaped[np.ndarray, " name"]) -> np.ndarray:
    """Numbers and names as texts, in which 1, 1.0 and "1" are the same."""
    every = names.tolist()
    whole = [isinstance(one, float) and one.is_integer() for one in every]
    texts = [str(int(one) if own else one) for one, own in zip(every, whole, strict=True)]
    return np.array(texts, str)


class Stack(NamedTuple):
    """What the estimates need of the training trials, and how much each counts."""

    weights: Weights  # in the order of ESTIMATES; their sum is 1
    weights_unseen: Weights  # of neurons of which a trial has no sample
    trajectories: Output  # inferred about training trials; none if their weight is 0
    sources: Sources  # `identities` of those trials
    low_rank: LowRank
    psth: Psth
    smoother: Smoother
    rest: Float[np.ndarray, "simple 2 parameter"]  # `dispersion.Rest` of each of SIMPLE

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All it consists of, by name, for `of_arrays`."""
        linear, psth = self.low_rank._asdict(), self.psth._asdict()
        smoother = {"smoothing_width": self.smoother.width, "smoothing_prior": self.smoother.prior}
        named = self._asdict() | linear | linear["scale"]._asdict() | psth | smoother
        return {name: np.asarray(v) for name, v in named.items() if not isinstance(v, tuple)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Stack":
        """The stack of these; KeyError if one is missing."""
        scale = Scale(*(arrays[name] for name in Scale._fields))
        _, *names = LowRank._fields
        own = LowRank(scale, *(arrays[name] for name in names))
        means = arrays["means"]
        psth = Psth(arrays["conditions"], means, arrays.get("variances", np.zeros_like(means)))
        trajectories = arrays["trajectories"]
        # Early files have no sources: no trial is known again. Nor have they smoothing, weights of
        # their own where nothing is seen, or what means of conditions leave open.
        sources = arrays.get("sources", np.zeros(len(trajectories), np.uint64))
        every, rest = arrays["weights"], arrays["rest"]
        if rest.ndim == 1:  # early files have constants, for all alike
            rest = np.stack([dispersion.constant(rest)] * len(SIMPLE))
        weights = np.pad(every, (0, len(ESTIMATES) - len(every)))
        unseen = arrays.get("weights_unseen", weights)
        kernel = arrays.get("smoothing_width", 1.0), arrays.get("smoothing_prior", 1.0)
        smoother = Smoother(scale, *kernel)
        return cls(weights, unseen, trajectories, sources, own, psth, smoother, rest)

    def uses(self, estimate: str) -> bool:
        """Whether this one counts."""
        at = ESTIMATES.index(estimate)
        return bool(self.weights[at] or self.weights_unseen[at])

    def weights_at(self, observed: Mask) -> Float[np.ndarray, "estimate trial 1 neuron"]:
        """The weights in these trials."""
        seen = observed.any(1, keepdims=True)
        both = self.weights[:, None, None, None], self.weights_unseen[:, None, None, None]
        return np.where(seen, *both)


def identities(values: Values, observed: Mask) -> Identities:
    """A number for each trial, of what is observed of it: bins, neurons and values."""

    def identity(values, observed):
        digest = hashlib.blake2b(np.flatnonzero(observed).astype("<i8"), digest_size=8)
        digest.update(values[observed].astype("<f4"))
        return np.frombuffer(digest.digest(), "<u8")[0]

    pairs = zip(values, observed, strict=True)
    return np.fromiter((identity(*pair) for pair in pairs), np.uint64, len(values))


def estimates(
    model: Model,
    stack: Stack,
    output: Output,
    values: Values,
    observed: Mask,
    condition: Conditions = None,
    identity: Identities | None = None,
) -> tuple[list[Estimate], Variance]:
    """Each of them, from the output that the network infers, what is observed, the condition of
    each trial, if known, and its `identities`, if more than this was observed of it; and the
    variance of rates among similar trials.

    Where one says nothing, the network stands in for it: past the end of all training trials, and
    in trials of other conditions than theirs.
    """
    own = predicted(model.observation, output)
    similar, linear, of_condition = own.copy(), own.copy(), own.copy()
    variance = np.zeros(values.shape, own.dtype)
    if len(stack.trajectories):
        bins = min(own.shape[1], stack.trajectories.shape[1])
        given = (array[:, :bins] for array in (stack.trajectories, values, observed))
        identity = identities(values, observed) if identity is None else identity
        found = similar_trials(model, *given, of_others(identity, stack.sources))
        similar[:, :bins], variance[:, :bins] = found
    of_linear, of_psth, of_smoothing = stack.rest
    linear[...] = dispersion.everywhere(of_linear, stack.low_rank(values, observed))
    if condition is not None:
        known, place = stack.psth.among(condition)
        rates = stack.psth.means[place, : own.shape[1]]
        of_condition[known, : rates.shape[1]] = dispersion.everywhere(of_psth, rates)
    smoothed = own
    if stack.uses("smoothing"):
        smoothed = dispersion.everywhere(of_smoothing, stack.smoother(values, observed))
    return [own, similar, linear, of_condition, smoothed.astype(own.dtype)], variance


def of_others(identity: Identities, sources: Sources) -> Float[np.ndarray, "trial trajectory"]:
    """Logarithms of the weights by which each trial itself, among trajectories inferred about
    trials of these identities, counts for nothing: of k alike, all have a weight of (k - 1)/k."""
    alike = identity[:, None] == sources
    count = np.maximum(alike.sum(1, keepdims=True), 1)
    log = np.where(count > 1, np.log(np.maximum(count - 1, 1) / count), NOTHING)
    return np.where(alike, log, 0).astype(np.float32)


def similar_trials(
    model: Model,
    trajectories: Trajectories,
    values: Values,
    observed: Mask,
    log_prior: Float[np.ndarray, "trial trajectory"] | None = None,
) -> tuple[Estimate, Variance]:
    """The mean of what trajectories predict, each weighed by the likelihood of a trial's values,
    and by its prior, such as `of_others`; and the variance of rates among them."""
    # The last batch is filled up with the last trial, so that one program serves all.
    parts, count = [], len(values)
    if log_prior is None:
        log_prior = np.zeros((count, len(trajectories)), np.float32)
    size = max(BATCH_SIZE, math.ceil(count / math.ceil(count / SIMILAR_BATCH_SIZE)))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        given = values[rows], observed[rows], log_prior[rows]
        part = _similar(model.observation, trajectories, *given)
        parts.append([np.asarray(one)[: count - start] for one in part])
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def combined(
    model: Model,
    stack: Stack,
    output: Output,
    values: Values,
    observed: Mask,
    condition: Conditions = None,
    identity: Identities | None = None,
    *,
    with_variance: bool = False,
) -> tuple[Output, Variance | None]:
    """The output of the weighted mean of the estimates, and on demand the variance of rates: that
    among the estimates, and what each leaves open, with the same weights; arguments as of
    `estimates`."""
    found, variance = np.empty_like(output), None
    if with_variance:
        variance = np.empty(values.shape, output.dtype)
    for start in range(0, len(output), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        known = [None if array is None else array[part] for array in (condition, identity)]
        own = output[part], values[part], observed[part]
        every, among = estimates(model, stack, *own, *known)
        weights = stack.weights_at(observed[part])
        tiled = np.tile(weights, model.observation.outputs)
        middle = mean(tiled, every)
        found[part] = output_of(model.observation, middle)
        if variance is not None:
            apart = ((one - middle)[..., : values.shape[2]] ** 2 for one in every)
            open_ = 0.0, among, *left_open(stack, every, observed[part], known[0])
            every = [one + other for one, other in zip(apart, open_, strict=True)]
            variance[part] = mean(weights, every)
    return found, variance


def left_open(
    stack: Stack, every: Sequence[Estimate], observed: Mask, condition: Conditions
) -> list[Variance]:
    """The variance of the rates of each of `SIMPLE`: 0 if it does not count, and where the network
    stands in for it. They are the same for all seeds, which tell nothing of it.

    every: `estimates` of the trials.
    """
    found = [np.zeros(observed.shape) for _ in SIMPLE]
    linear, _, smoothed = (one[..., : observed.shape[2]] for one in every[-len(SIMPLE) :])
    if stack.uses("low_rank"):
        found[0] = stack.low_rank.variance_of(linear, observed)
    if stack.uses("psth") and condition is not None:
        known, place = stack.psth.among(condition)
        variances = stack.psth.variances[place, : observed.shape[1]]
        found[1][known, : variances.shape[1]] = variances
    if stack.uses("smoothing"):
        found[2] = stack.smoother.variance_of(smoothed, observed)
    return found


def mean(weights: Float[np.ndarray, "estimate ..."], every: Sequence[Estimate]) -> Estimate:
    """The weighted mean of estimates. One that is not finite counts for nothing where its weight is
    0."""
    total = np.zeros_like(every[0])
    for weight, one in zip(weights, every, strict=True):
        if np.any(weight):
            total += np.multiply(weight, one, where=weight != 0, out=np.zeros_like(one))
    return total


def best_weights(
    observation: Observation, every: Sequence[Estimate], values: Values, where: Mask
) -> Float[np.ndarray, " estimate"]:
    """The weights, none negative and 1 in all, under whose mean the values at these points are most
    likely; of few trials not one optimum, but the mean of those of `DRAWS` bootstrap samples. An
    estimate that is not finite at all of them counts for nothing.

    Of Poisson counts, the likelihood has one maximum; of others, it is the one near equal weights.
    Bagging: Breiman 1996 (Machine Learning 24, 123).
    """
    trial = np.nonzero(where)[0]
    some = np.unique(np.linspace(0, len(trial) - 1, MAX_POINTS, dtype=int))  # enough for weights
    blocks = np.stack([np.split(one, observation.outputs, axis=-1) for one in every])
    points = blocks[:, :, where][..., some].transpose(0, 2, 1).astype(np.float64)
    values = values[where][some, None].astype(np.float64)
    trials, trial = np.unique(trial[some], return_inverse=True)
    sound = np.isfinite(points).all((1, 2))
    if not sound.any():
        return np.eye(len(every))[0]
    points = points[sound]
    rng, count = np.random.default_rng(0), len(trials)
    drawn = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(DRAWS)]

    def loss(weights, times):
        output = output_of(observation, np.tensordot(np.abs(weights), points, 1))
        return times @ observation.nll(output, values)[:, 0]

    losses = [partial(loss, times=times[trial].astype(float)) for times in drawn]
    weights = np.zeros(len(every))
    weights[sound] = np.round(np.mean([_least(one, len(points)) for one in losses], axis=0), 2)
    return weights / weights.sum()


def _least(loss: Callable[[np.ndarray], float], count: int) -> np.ndarray:
    from scipy.optimize import LinearConstraint, minimize  # importing sbtt_jax does not wait for it

    scale = np.ptp([loss(corner) for corner in np.eye(count)]) or 1.0  # or steps seem too small
    found = minimize(
        lambda weights: loss(weights) / scale,
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints=LinearConstraint(np.ones(count), 1, 1),
        method="SLSQP",
        options={"ftol": 1e-9},
    )
    return np.clip(found.x, 0, 1)


def trajectories(output: Output) -> Output:
    """Inferred outputs as trajectories for all bins: past the end of a trial, where they are NaN,
    the mean of those of the others."""
    missing = np.isnan(output)
    there = np.where(missing, 0, output).sum(0) / np.maximum(1, (~missing).sum(0))
    return np.where(missing, there, output)
