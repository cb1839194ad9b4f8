"""What inference needs of the training trials, learned from them once a model is trained."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sbtt_jax.model import low_rank, stacking
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.inference import Prior, encode_all, infer_all
from sbtt_jax.model.low_rank import LowRank
from sbtt_jax.model.stacking import ESTIMATES, MAX_TRAJECTORIES, Psth, Stack
from sbtt_jax.run import baselines
from sbtt_jax.run.scores import View

Learner = Callable[[Model], Prior | None]


class Simple(NamedTuple):
    """What a `Stack` has that no network is needed for."""

    low_rank: LowRank
    psth: Psth
    rest: Float[np.ndarray, " parameter"]


def learn(view: View, model: Model) -> Prior | None:
    """What `infer_all` takes as its prior; None if the model infers each trial by itself.

    With `model.posterior`, initial conditions of the training trials. With `model.stacked`, a
    `Stack`, whose weights are chosen by the same points as the model's epoch; None if there are
    none.
    """
    return learner(view)(model)


def learner(view: View) -> Learner:
    """`learn` for several models; what no network is needed for is learned once."""
    simple = cache(lambda: _simple(view))

    def of_model(model):
        if model.posterior:
            train = view.data.train
            return encode_all(model, *view.of(train, view.given[train]))
        passes = [] if view.folds is None else [one for one in view.passes() if one[1].any()]
        return _stack(view, model, simple(), passes) if model.stacked and passes else None

    return of_model


def _simple(view: View) -> Simple:
    training = baselines.training_of(view)
    _, parameters = baselines.chosen(view, "low_rank", training)
    every = low_rank.learn(training.counts, training.observed, training.scale, parameters["width"])
    psth = Psth(np.zeros(0), np.zeros((0, *training.counts.shape[1:])))
    if training.condition is not None:
        means, _ = baselines.chosen(view, "psth", training)
        own = np.unique(training.condition[training.condition >= 0])
        psth = Psth(view.data.condition_values[own], means(training.counts, None, own))
    return Simple(low_rank.truncated(every, parameters["rank"]), psth, training.rest)


def _stack(view: View, model: Model, simple: Simple, passes) -> Stack:
    data = view.data
    trials = np.linspace(0, len(data.train) - 1, MAX_TRAJECTORIES, dtype=int)
    trials = data.train[np.unique(trials)]
    # All trials, if they are few: by the program that infers them anyway.
    some = trials if len(trials) == MAX_TRAJECTORIES else np.arange(len(data.counts))
    output = infer_all(model, *view.of(some, view.given[some])).output
    output = output[np.searchsorted(some, trials)]
    equal = np.full(len(ESTIMATES), 1 / len(ESTIMATES))
    stack = Stack(equal, stacking.trajectories(output), *simple)
    counts, _, lengths = view.of(data.valid, view.given[data.valid])
    condition = data.conditions_of(data.valid)
    where = np.any([hidden for _, hidden in passes], axis=0)
    every: list[np.ndarray] = []
    for shown, hidden in passes:
        output = infer_all(model, counts, shown, lengths).output
        found = stacking.estimates(model, stack, output, counts, shown, condition)
        hidden = np.tile(hidden, view.observation.outputs)
        every = [np.where(hidden, *pair) for pair in zip(found, every or found, strict=True)]
    known = condition is not None and stack.psth(condition)[0].any()
    there = every if known else every[: ESTIMATES.index("psth")]
    found = stacking.best_weights(view.observation, there, counts, where)
    weights = np.pad(found, (0, len(ESTIMATES) - len(found)))
    needed = stack.trajectories[: None if weights[ESTIMATES.index("similar_trials")] else 0]
    return stack._replace(weights=weights, trajectories=needed)
