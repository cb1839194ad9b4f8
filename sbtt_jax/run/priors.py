"""What inference needs of the training trials, learned from them once a model is trained."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sbtt_jax.model import factors, low_rank, metrics, stacking
from sbtt_jax.model.autoencoder import Inference
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.factors import Factors
from sbtt_jax.model.inference import Prior, encode_all, infer_all
from sbtt_jax.model.low_rank import LowRank, Smoother
from sbtt_jax.model.stacking import ESTIMATES, MAX_TRAJECTORIES, SIMPLE, Psth, Stack
from sbtt_jax.observations import predicted
from sbtt_jax.run.baselines import Chosen, by_condition
from sbtt_jax.run.scores import View

LEAST_WEIGHT = 0.05  # of what takes a second inference
MAX_RANK = 10  # that is tried, besides all factors

Learner = Callable[[Model], Prior | None]


class Simple(NamedTuple):
    """What a `Stack` has that no network is needed for."""

    low_rank: LowRank
    psth: Psth
    smoother: Smoother
    rest: Float[np.ndarray, "simple 2 parameter"]


def learn(view: View, model: Model) -> Prior | None:
    """What `infer_all` takes as its prior; None if the model infers each trial by itself.

    With `model.posterior`, it has initial conditions of the training trials, and the weight of what
    the encoder infers; with `model.stacked`, a `Stack`; with `model.latent_size` or `model.rank`,
    the factors of the training trials' latents. Weights and rank are chosen by the same points as
    the model's epoch, if there are any.
    """
    return learner(view)(model)


def learner(view: View, chosen: Chosen | None = None) -> Learner:
    """`learn` for several models; what no network is needed for is learned once, or taken from
    `chosen`, the baselines of the same view."""
    simple = cache(lambda: _simple(view, Chosen(view) if chosen is None else chosen))

    def of_model(model):
        train, prior, chooses = view.data.train, Prior(), bool(view.passes())
        if model.posterior:
            prior = Prior(encode_all(model, *view.of(train, view.given[train])))
        if model.bottleneck is not None or model.rank is not None:
            inferred = _inferred(view, model, None)
            found = factors.learn(model, inferred.latent)
            rank = _rank(view, model, found, inferred)
            prior = prior._replace(factors=found.first(rank))
        if model.posterior and chooses:
            prior = prior._replace(own=_own_weight(view, model, prior))
        if model.stacked and chooses:
            prior = prior._replace(stack=_stack(view, model, prior, simple()))
        parts = prior.ic, prior.stack, prior.factors
        return prior if any(part is not None for part in parts) else None

    return of_model


def _some_training(view: View) -> np.ndarray:
    """Training trials, evenly spaced if they are more than `MAX_TRAJECTORIES`."""
    train = view.data.train
    return train[np.unique(np.linspace(0, len(train) - 1, MAX_TRAJECTORIES, dtype=int))]


def _inferred(view: View, model: Model, prior: Prior | None) -> Inference:
    """What the model infers about `_some_training` trials."""
    data, trials = view.data, _some_training(view)
    # All trials, if they are few: by the program that infers them anyway.
    some = trials if len(trials) == MAX_TRAJECTORIES else np.arange(len(data.counts))
    inferred = infer_all(model, *view.of(some, view.given[some]), prior=prior)
    rows = np.searchsorted(some, trials)
    return jax.tree.map(lambda values: values[rows], inferred)


def _simple(view: View, chosen: Chosen) -> Simple:
    training, (_, parameters, rest) = chosen.training, chosen("low_rank")
    rests = dict.fromkeys(SIMPLE, rest)
    scale, none = training.scale, np.zeros((0, *training.counts.shape[1:]))
    psth, smoother = Psth(np.zeros(0), none, none), Smoother(scale, 1.0, 1.0)
    if training.condition is not None:
        own, *every_trial = by_condition(training)
        _, how, rests["psth"] = chosen("psth")
        known, prior = low_rank.sums(*every_trial, how["width"]), how["prior"]
        means = known.rates(scale.mean, prior)
        variances = scale.noise(means) / (known.weight + prior)
        psth = Psth(view.data.condition_values[own], means, variances)
    if not view.settings.model.smoothing:
        _, widths, rests["smoothing"] = chosen("smoothing")
        smoother = smoother._replace(**widths)
    every = low_rank.learn(training.counts, training.observed, scale, parameters["width"])
    every = low_rank.truncated(every, parameters["rank"])
    return Simple(every, psth, smoother, np.stack([rests[name] for name in SIMPLE]))


def _rank(view: View, model: Model, found: Factors, inferred: Inference) -> int:
    """How many factors rates follow. inferred: about training trials, whose factors these are."""
    if model.rank is None or (model.rank == "auto" and not view.passes()):
        return found.rank
    if model.rank != "auto":
        return min(model.rank, found.rank)
    ranks = sorted({*range(1, min(found.rank, MAX_RANK) + 1), found.rank})

    def projected(one):
        given = one.output, one.latent
        return [factors.projected(model, found.first(rank), *given) for rank in ranks]

    if model.posterior:  # over these few trajectories
        library = [stacking.trajectories(output) for output in projected(inferred)]

        def estimates(counts, shown, lengths):
            return [stacking.similar_trials(model, output, counts, shown)[0] for output in library]
    else:

        def estimates(*given):
            return [
                predicted(model.observation, out) for out in projected(infer_all(model, *given))
            ]

    every, *points = view.hidden(estimates)
    losses = [metrics.nll(rates, *points, model.observation) for rates in every]
    return ranks[int(np.argmin(losses))]


def _own_weight(view: View, model: Model, prior: Prior) -> float:
    """Of what the encoder infers, beside the posterior; 0 or 1 where the other has nearly all."""

    def estimates(*given):
        both = (infer_all(model, *given, prior=one) for one in (prior._replace(ic=None), prior))
        return [predicted(model.observation, one.output) for one in both]

    passes = view.passes()
    for some in (passes[:1], passes):  # one is enough where it says that this hardly counts
        own, _ = stacking.best_weights(view.observation, *view.hidden(estimates, some))
        if own < LEAST_WEIGHT:
            return 0.0
    return 1.0 if own > 1 - LEAST_WEIGHT else float(own)


def _stack(view: View, model: Model, prior: Prior, simple: Simple) -> Stack:
    data, condition = view.data, view.data.conditions_of(view.data.valid)
    known = condition is not None and simple.psth.among(condition)[0].any()
    apply = {"psth": known, "smoothing": model.smoothing is None}
    used = np.array([apply.get(name, True) for name in ESTIMATES])
    trajectories = stacking.trajectories(_inferred(view, model, prior).output)
    some = _some_training(view)
    sources = stacking.identities(data.counts[some], view.given[some])
    stack = Stack(*[used / used.sum()] * 2, trajectories, sources, *simple)

    def estimates(counts, shown, lengths):
        output = infer_all(model, counts, shown, lengths, prior=prior).output
        return stacking.estimates(model, stack, output, counts, shown, condition)[0]

    def best(every, counts, where):
        weights = np.zeros(len(ESTIMATES))
        some = [one for one, its in zip(every, used, strict=True) if its]
        weights[used] = stacking.best_weights(view.observation, some, counts, where)
        return weights

    *found, where = view.hidden(estimates)
    unseen = where & ~view.given[data.valid].any(1, keepdims=True)
    lacking = (*found, unseen) if unseen.any() else view.hidden(estimates, view.lacking())
    weights = best(*found, where & ~unseen if (where & ~unseen).any() else where), best(*lacking)
    stack = stack._replace(weights=weights[0], weights_unseen=weights[1])
    if not stack.uses("similar_trials"):
        stack = stack._replace(trajectories=trajectories[:0], sources=sources[:0])
    return stack
