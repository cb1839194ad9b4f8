"""Epochs that fit the prior: each trial has to be explained by what was inferred from others.

A step draws some trials, and others whose trajectories it infers with some of their points hidden.
The loss is the negative log of the mean likelihood of the former trials' observed values over the
latter's trajectories: a leave-one-out estimate of the marginal likelihood under the learned prior,
in which nothing can be copied from the trial itself. It trains what `model.posterior` does, and is
validated by that.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sbtt_jax.config import TrainSettings
from sbtt_jax.data.problem import Masks, Trials
from sbtt_jax.model import posterior
from sbtt_jax.observations import output_of
from sbtt_jax.training import epoch
from sbtt_jax.training.epoch import Kind, ModelState, Sums
from sbtt_jax.training.optimizer import optimizer

STEPS = 20  # of an epoch
EXPLAINED, OTHERS = 96, 384  # trials of a step, of enough; otherwise a fifth of all, and the rest
HIDDEN = 0.2  # share of the others' points


def _begin(settings: TrainSettings, state: ModelState) -> ModelState:
    """The first begins with the best weights so far, and with a new optimizer. Those weights stay
    the best if no later loss is smaller: the posterior may not be how to infer these trials."""
    first = (state.epoch == settings.epochs) & ~state.recovery.failed
    fresh = _optimizer(settings, state).init(state.best.params)
    begun = state._replace(
        params=state.best.params,
        optimizer=fresh,
        average=None if state.average is None else state.best.params,
    )
    return epoch.where(first, begun, state)


def _optimizer(settings: TrainSettings, state: ModelState):
    epochs = settings.marginal_epochs
    own = {"epochs": epochs, "warmup_epochs": min(1, epochs / 4), "schedule": "cosine"}
    values = state.values._replace(learning_rate=jnp.float32(settings.marginal_rate))
    return optimizer(settings.model_copy(update=own), STEPS, values, state.recovery.rate)


def _train(model_def, settings: TrainSettings, trials: Trials, masks: Masks, state, key):
    count = len(trials.train)
    explained = max(1, min(EXPLAINED, count // 5))
    drawn = explained + min(OTHERS, count - explained)
    order_key, step_key = jax.random.split(key)
    keys = jax.random.split(order_key, STEPS)
    order = jax.vmap(lambda key: jax.random.permutation(key, trials.train)[:drawn])(keys)

    def loss(params, batch, key):
        hide_key, dropout_key = jax.random.split(key)
        model = nnx.merge(model_def, params)
        counts, observed, lengths, *_ = epoch.gather(trials, masks.observed, batch[explained:])
        hidden = jax.random.bernoulli(hide_key, HIDDEN, observed.shape)
        shown = epoch.given(trials, observed) & ~hidden
        dropout = state.values.dropout if model.dropout else 0.0
        rngs = nnx.Rngs(dropout_key)
        outputs = model(counts, shown, lengths, rngs=rngs, dropout=dropout).output
        counts, observed, *_ = epoch.gather(trials, masks.observed, batch[:explained])
        likelihoods = posterior.log_likelihoods(model.observation, outputs, counts, observed)
        error = None if trials.rates is None else jnp.full(trials.counts.shape[2], jnp.nan)
        sums = Sums(-posterior.log_marginal(likelihoods).sum(), observed.sum(), error)
        return sums.mean, sums

    return epoch.descend(loss, _optimizer(settings, state), state, order, step_key)


def _validate(model_def, settings: TrainSettings, trials: Trials, masks: Masks, params):
    """By the posterior over the trajectories of all training trials."""
    model = nnx.merge(model_def, params)
    observation = model.observation

    def trajectories(batch):
        counts, observed, lengths, *_ = epoch.gather(trials, masks.observed, batch)
        return model(counts, epoch.given(trials, observed), lengths).output

    batches = epoch.batches(trials.train, settings.batch_size)
    outputs = lax.map(trajectories, batches)
    outputs = outputs.reshape(-1, *outputs.shape[2:])
    # Rows that fill up the last batch are no trials.
    outside = jnp.where(batches.reshape(-1) >= 0, 0.0, -jnp.inf)

    def infer(counts, observed, lengths):
        own = outputs, counts, observed, outside
        return output_of(observation, posterior.expected(observation, *own)[0])

    return epoch.validate(model, settings, trials, masks, infer)


MARGINAL = Kind(_begin, _train, _validate)
