"""What inference needs of the training trials, learned from them once a model is trained."""

import numpy as np

from sbtt_jax.model import low_rank, stacking
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.inference import Prior, encode_all, infer_all
from sbtt_jax.model.stacking import ESTIMATES, MAX_TRAJECTORIES, Psth, Stack
from sbtt_jax.run import baselines
from sbtt_jax.run.scores import View


def learn(view: View, model: Model) -> Prior | None:
    """What `infer_all` takes as its prior; None if the model infers each trial by itself.

    With `model.posterior`, initial conditions of the training trials. With `model.stacked`, a
    `Stack`, whose weights are chosen by the same points as the model's epoch; None if there are
    none.
    """
    data, train = view.data, view.data.train
    if model.posterior:
        return encode_all(model, *view.of(train, view.given[train]))
    passes = [] if view.folds is None else [one for one in view.passes() if one[1].any()]
    if not model.stacked or not passes:
        return None
    stack = _unweighted(view, model)
    counts, _, lengths = view.of(data.valid, view.given[data.valid])
    condition = data.conditions_of(data.valid)
    where = np.any([hidden for _, hidden in passes], axis=0)
    every: list[np.ndarray] = []
    for shown, hidden in passes:
        output = infer_all(model, counts, shown, lengths).output
        found = stacking.estimates(model, stack, output, counts, shown, condition)
        hidden = np.tile(hidden, view.observation.outputs)
        every = [np.where(hidden, *pair) for pair in zip(found, every or found, strict=True)]
    there = every if len(stack.psth.conditions) else every[: ESTIMATES.index("psth")]
    found = stacking.best_weights(view.observation, there, counts, where)
    weights = np.pad(found, (0, len(ESTIMATES) - len(found)))
    needed = stack.trajectories[: None if weights[ESTIMATES.index("similar_trials")] else 0]
    return stack._replace(weights=weights, trajectories=needed)


def _unweighted(view: View, model: Model) -> Stack:
    training = baselines.training_of(view)
    _, parameters = baselines.chosen(view, "low_rank", training)
    every = low_rank.learn(training.counts, training.observed, training.scale, parameters["width"])
    psth = Psth(np.zeros(0), np.zeros((0, *training.counts.shape[1:])))
    if training.condition is not None:
        means, _ = baselines.chosen(view, "psth", training)
        own = np.unique(training.condition)
        own = own[own >= 0]
        psth = Psth(view.data.condition_values[own], means(training.counts, None, own))
    some = np.linspace(0, len(view.data.train) - 1, MAX_TRAJECTORIES, dtype=int)
    trials = view.data.train[np.unique(some)]
    output = infer_all(model, *view.of(trials, view.given[trials])).output
    own = low_rank.truncated(every, parameters["rank"])
    equal = np.full(len(ESTIMATES), 1 / len(ESTIMATES))
    return Stack(equal, stacking.trajectories(output), own, psth, training.rest)
