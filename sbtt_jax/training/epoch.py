"""One model, one epoch: train, validate, keep the weights if they are the best so far.

Pure functions of one model's state. What differs between the models of a run is in the state; what
changes the program is in the settings, which are constants of it.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num, UInt

from sbtt_jax.config import ModelSettings, TrainSettings
from sbtt_jax.data.dataset import Statistics
from sbtt_jax.data.problem import Masks, Trials
from sbtt_jax.model.autoencoder import SequentialAutoencoder, Statistic
from sbtt_jax.model.metrics import r2_from_sums
from sbtt_jax.observations import masked_nll
from sbtt_jax.training.optimizer import Hyperparameters, Scalar, optimizer, used

Params = Any  # the weights of one model, as `nnx.state` gives them

# A model whose numbers stop being finite goes back to the beginning of the epoch, and its steps are
# this fraction of their size from then on. After more than so many such epochs in a row it failed.
RETRY_RATE = 0.3
RETRIES = 5


class Best(NamedTuple):
    """The epoch of least validation loss so far; -1 before the first."""

    params: Params
    nll: Scalar
    epoch: Int[Array, ""]


class Recovery(NamedTuple):
    """How a model stands after numbers that were not finite."""

    rate: Scalar  # multiplies every step size; 1 until something went wrong
    retries: Int[Array, ""]  # epochs lost in a row
    failed: Bool[Array, ""]  # given up: the state no longer changes


class ModelState(NamedTuple):
    """All that an epoch changes of one model, and what sets the model apart from others."""

    params: Params
    optimizer: optax.OptState
    average: Params | None
    best: Best
    epoch: Int[Array, ""]  # epochs done
    seed: UInt[Array, ""]
    recovery: Recovery
    values: Hyperparameters
    parent: Int[Array, ""] | None = None  # in a run that is tuned: whose weights it continued from


class EpochLog(NamedTuple):
    """Mean losses (nats per point), R2 against true rates if known, and whether all was well."""

    train_nll: Scalar
    valid_nll: Scalar
    train_r2: Scalar | None
    valid_r2: Scalar | None
    heldout_nll: Scalar | None
    lost: Bool[Array, ""]  # a number was not finite, and the epoch was undone
    failed: Bool[Array, ""]  # given up, now or before
    done: Bool[Array, ""]  # nothing more to gain; training ends when all models are
    ended: Bool[Array, ""]  # was done before, and the epoch was undone
    # In a run that is tuned: what the epoch was trained with, whose weights it began from, and how
    # many latents those have, if any.
    values: Hyperparameters | None = None
    parent: Int[Array, ""] | None = None
    latent_size: Int[Array, ""] | None = None


NUMBERS = EpochLog._fields[:5]


class Kind(NamedTuple):
    """A kind of epoch.

    begin: (settings, state) -> the state that the epoch starts from.
    train, validate: as `_train` and `_validate`.
    """

    begin: Callable
    train: Callable
    validate: Callable


class Sums(NamedTuple):
    nll: Scalar
    points: Num[Array, ""]  # summed weights, where points differ in weight
    squared_error: Float[Array, " neuron"] | None

    @property
    def mean(self) -> Scalar:
        return self.nll / jnp.where(self.points > 0, self.points, 1)


def build(neurons: int, settings: ModelSettings, seed: int | Array = 0) -> SequentialAutoencoder:
    """A new model with weights drawn from `seed`."""
    own = settings.model_dump()
    if isinstance(settings.dropout, tuple):  # training gives each model its own rate
        own["dropout"] = max(settings.dropout)
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return SequentialAutoencoder(neurons, **own, rngs=nnx.Rngs(key))


@cache
def graph(neurons: int, settings: ModelSettings) -> nnx.GraphDef:
    """The model without weights; `nnx.merge` with weights makes it whole."""
    return nnx.split(nnx.eval_shape(lambda: build(neurons, settings)))[0]


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def initial(
    seed: UInt[Array, ""],
    values: Hyperparameters,
    statistics: Statistics | None,
    neurons: int,
    model: ModelSettings,
    train: TrainSettings,
    steps: int,
) -> ModelState:
    """The state of one model before its first epoch of `steps` optimizer steps.

    statistics: of what it trains on, if the model standardizes.
    """
    network = build(neurons, model, seed)
    if network.mean is not None:
        network.mean[...], network.deviation[...] = map(jnp.float32, statistics)
    params = nnx.state(network)
    average = params if train.average_decay else None
    best = Best(params, jnp.float32(jnp.inf), jnp.int32(-1))
    recovery = Recovery(jnp.float32(1), jnp.int32(0), jnp.bool_(False))
    moments = optimizer(train, steps, values).init(params)
    return ModelState(params, moments, average, best, jnp.int32(0), seed, recovery, values)


def filled_up(state: Any, like: Any) -> Any:
    """A state or weights with zeros at the end of every axis, up to the shapes of `like`."""

    def longer(leaf, whole):
        found = np.zeros(whole.shape, whole.dtype)
        found[tuple(map(slice, leaf.shape))] = leaf
        return found

    return jax.tree.map(longer, state, like)


def latents(kernel: Float[Array | np.ndarray, "decoder latent"]) -> Int[Array, ""] | np.integer:
    """How many latents a model has, of those of its program; all weights to the rest are zero."""
    return ((kernel != 0).any(0) * np.arange(1, kernel.shape[1] + 1)).max()


def run_epoch(
    kind: Kind,
    model_def: nnx.GraphDef,
    settings: TrainSettings,
    trials: Trials,
    masks: Masks,
    state: ModelState,
) -> tuple[ModelState, EpochLog]:
    """One epoch of one model.

    If the loss, the weights or the optimizer's moments (and so any gradient) stop being finite, the
    epoch is undone, except for its number; so it is if the model was done before, so that a model
    is the same whether others, which are not done, train beside it or not. (Members of a search are
    done when all are, since each may still take over.) R2 plays no part: true rates steer nothing.
    """
    # The key depends on seed and epoch only, so that a resumed run draws what an unbroken one
    # draws, and an epoch after a lost one draws anew.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 1), state.epoch)
    ended = state.recovery.failed if state.parent is not None else is_done(state, settings)
    state = kind.begin(settings, state)
    params, opt, average, train = kind.train(model_def, settings, trials, masks, state, key)
    validated, kept = (params, state.params) if average is None else (average, state.average)
    validated = where(ended, kept, validated)
    valid, heldout = kind.validate(model_def, settings, trials, masks, validated)
    losses = train.mean, valid.mean, None if heldout is None else heldout.mean
    finite = jnp.isfinite(ravel_pytree((losses, params, opt, average))[0]).all()
    criterion = losses[1] if heldout is None else losses[2]
    best = where(criterion < state.best.nll, Best(validated, criterion, state.epoch), state.best)

    before = state.recovery
    fine = before._replace(retries=jnp.int32(0))
    lost = Recovery(before.rate * RETRY_RATE, before.retries + 1, before.retries >= RETRIES)
    after = state._replace(params=params, optimizer=opt, average=average, best=best, recovery=fine)
    undone = state._replace(recovery=where(ended, before, lost))
    after = where(finite & ~ended, after, undone)
    r2 = (
        None if d is None else r2_from_sums(sums.squared_error, d)
        for sums, d in ((train, trials.train_deviation), (valid, trials.valid_deviation))
    )
    after = after._replace(epoch=state.epoch + 1)
    lost, failed = ~finite & ~ended, after.recovery.failed
    tuned = (None, None, None)
    if state.parent is not None:
        bottleneck = nnx.merge(model_def, state.params).bottleneck
        size = None if bottleneck is None else latents(bottleneck.kernel[...])
        tuned = (state.values, state.parent, size)
    done = is_done(after, settings)
    return after, EpochLog(*losses[:2], *r2, losses[2], lost, failed, done, ended, *tuned)


def is_done(state: ModelState, settings: TrainSettings) -> Bool[Array | np.ndarray, "*model"]:
    """Whether a model has nothing more to gain: it failed, or is out of patience."""
    if settings.patience is None:
        return state.recovery.failed
    # An epoch that was undone says nothing about the smaller steps of the next.
    waited = state.epoch - 1 - state.best.epoch >= settings.patience
    return state.recovery.failed | (waited & (state.recovery.retries == 0))


def batches(trials: Int[Array, " trial"], batch_size: int) -> Int[Array, "step batch"]:
    """Trial indices in rows of one batch each; the last row is filled up with -1."""
    batch_size = max(1, min(batch_size, len(trials)))
    padded = jnp.pad(trials, (0, -len(trials) % batch_size), constant_values=-1)
    return padded.reshape(-1, batch_size)


def _order(key, trials, settings: TrainSettings) -> Int[Array, "step batch"]:
    """The batches of an epoch: all trials once, or as many newly shuffled times as its steps ask
    for, the last time in part."""
    if settings.steps_per_epoch is None:
        return batches(jax.random.permutation(key, trials), settings.batch_size)
    size = min(settings.batch_size, len(trials))
    needed = settings.steps_per_epoch * size
    keys = jax.random.split(key, -(-needed // len(trials)))
    order = jax.vmap(lambda own: jax.random.permutation(own, trials))(keys)
    return order.reshape(-1)[:needed].reshape(-1, size)


def _train(model_def, settings: TrainSettings, trials: Trials, masks: Masks, state, key):
    """All batches of one epoch, newly shuffled."""
    values = state.values
    hides = used(settings.coordinated_dropout) or masks.lacking is not None
    shuffle_key, step_key = jax.random.split(key)
    order = _order(shuffle_key, trials.train, settings)
    tx = optimizer(settings, order.shape[0], values, state.recovery.rate)

    def loss(params, batch, key):
        hide_key, dropout_key = jax.random.split(key)
        counts, observed, lengths, rates, inside = gather(trials, masks.observed, batch)
        shown = given(trials, observed)
        if hides:
            shown &= ~_hidden(hide_key, settings, values, observed.shape, masks.lacking)
        model = nnx.merge(model_def, params)
        dropout = values.dropout if model.dropout else 0.0
        inferred = model(counts, shown, lengths, rngs=nnx.Rngs(dropout_key), dropout=dropout)
        output = inferred.output
        known = shown if hides else observed
        nll, points = masked_nll(model.observation, output, counts, known)
        if hides:
            hidden = masked_nll(model.observation, output, counts, observed & ~shown)
            weight = values.coordinated_dropout_pass
            weight = jnp.where(values.coordinated_dropout > 0, weight, 1.0)
            nll, points = hidden[0] + weight * nll, hidden[1] + weight * points
        sums = Sums(nll, points, _squared_error(model, output, rates, inside))
        if inferred.inputs is None or not used(settings.input_penalty):
            return sums.mean, sums
        bins = jnp.broadcast_to(inside, (*inferred.inputs.shape[:2], 1)).sum()
        squares = jnp.where(inside, inferred.inputs**2, 0.0).mean(-1).sum() / bins
        return sums.mean + values.input_penalty * squares, sums

    *weights, sums = descend(loss, tx, state, order, step_key)
    if settings.steps_per_epoch is not None and sums.squared_error is not None:
        # Of as many trials as the deviation that it is compared to.
        error = sums.squared_error * (len(trials.train) / order.size)
        sums = sums._replace(squared_error=error)
    return *weights, sums


def descend(
    loss: Callable, tx: optax.GradientTransformation, state: ModelState, order: Array, key: Array
) -> tuple[Params, optax.OptState, Params | None, Any]:
    """A step down `loss(params, batch, key)`, which returns sums beside it, per row of `order`.

    Returns weights, the optimizer's state, the average of the weights, and the sums of all steps.
    """
    # All numbers of the model in a row, so that a step of the optimizer is a few kernels on an
    # accelerator instead of a few for each weight.
    structure = jax.tree.structure(state.params)
    weights, unravel = ravel_pytree(state.params)
    trained, _ = ravel_pytree(_trained(state.params))

    def of_weights(part):
        return jax.tree.structure(part) == structure

    def in_a_row(part):
        return ravel_pytree(part)[0] if of_weights(part) else part

    def step(carry, batch):
        weights, opt, average, count = carry
        own = jax.random.fold_in(key, count)
        grads, sums = jax.grad(lambda w: loss(unravel(w), batch, own), has_aux=True)(weights)
        updates, opt = tx.update(grads, opt, jnp.where(trained, weights, 0))
        weights = optax.apply_updates(weights, updates)
        if average is not None:
            # A short memory at first, so that the initial weights are soon forgotten.
            done = state.epoch * order.shape[0] + count
            decay = jnp.minimum(state.values.average_decay, (1.0 + done) / (10.0 + done))
            average = decay * average + (1 - decay) * weights
        return (weights, opt, average, count + 1), sums

    opt, average = jax.tree.map(in_a_row, (state.optimizer, state.average), is_leaf=of_weights)
    start = (weights, opt, average, jnp.int32(0))
    (weights, opt, average, _), sums = lax.scan(step, start, order)
    opt, average = jax.tree.map(lambda x: unravel(x) if x.ndim else x, (opt, average))
    return unravel(weights), opt, average, jax.tree.map(lambda s: s.sum(0), sums)


def _trained(params: Params) -> Any:
    """Which numbers among the weights are trained: all but statistics of the data."""

    def same(variable):
        return jnp.full(variable.shape, not isinstance(variable, Statistic))

    return jax.tree.map(same, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _hidden(key, settings: TrainSettings, values: Hyperparameters, shape, lacking: Array | None):
    """Which points coordinated dropout hides from the input."""
    fraction = values.coordinated_dropout
    if used(settings.coordinated_dropout_whole):
        other_key, whole_key = jax.random.split(key)
        share = values.coordinated_dropout_whole
        key = jnp.where(share > 0, other_key, key)  # as if this model were trained alone
        whole = jax.random.bernoulli(whole_key, share, (shape[0], 1, 1))
        fraction = jnp.where(whole, 0.0, fraction)
        lacking = None if lacking is None else jnp.where(whole, 0.0, lacking)
    hidden = jax.random.bernoulli(key, fraction, shape)
    if lacking is not None:
        neurons_key = jax.random.fold_in(key, 0)
        hidden |= jax.random.bernoulli(neurons_key, lacking, (shape[0], 1, shape[2]))
    return hidden


def _validate(model_def, settings: TrainSettings, trials: Trials, masks: Masks, params):
    model = nnx.merge(model_def, params)
    return validate(model, settings, trials, masks, lambda *batch: model(*batch).output)


def validate(model, settings: TrainSettings, trials: Trials, masks: Masks, output_of: Callable):
    """Sums over the validation trials, without dropout: at observed points, and at those that are
    hidden in one of the passes. `output_of(counts, observed, lengths)` infers a batch."""
    passes = 1 if masks.folds is None else settings.folds

    def evaluate(part):
        batch, fold = part
        counts, observed, lengths, rates, inside = gather(trials, masks.observed, batch)
        hidden = None
        if masks.folds is not None:
            hidden = (masks.folds[batch] == fold) & inside
            observed &= ~hidden
        output = output_of(counts, given(trials, observed), lengths)
        error = _squared_error(model, output, rates, inside)
        error = None if error is None else error / passes
        seen = Sums(*masked_nll(model.observation, output, counts, observed), error)
        if hidden is None:
            return seen, None
        return seen, Sums(*masked_nll(model.observation, output, counts, hidden), None)

    order = batches(trials.valid, settings.batch_size)
    fold = jnp.repeat(jnp.arange(passes) + 1, len(order))
    sums = lax.map(evaluate, (jnp.tile(order, (passes, 1)), fold))
    return jax.tree.map(lambda s: s.sum(0), sums)


def gather(trials: Trials, observed, batch):
    """The trials of a batch; nothing is observed in a row of -1, which is no trial."""
    inside = (batch >= 0)[:, None, None]
    lengths = None if trials.lengths is None else trials.lengths[batch]
    if lengths is not None:
        inside &= (jnp.arange(observed.shape[1]) < lengths[:, None])[..., None]
    rates = None if trials.rates is None else trials.rates[batch]
    gathered = trials.counts[batch], observed[batch] & inside, lengths, rates, inside
    if not jax.sharding.get_abstract_mesh().auto_axes:
        return gathered
    # Devices of the axis "data" share the trials. That says where numbers are computed, not what
    # they are: random draws and sums are those of the whole batch.
    return lax.with_sharding_constraint(gathered, PartitionSpec("data"))


def given(trials: Trials, observed):
    """Of the observed points, those that may be input; others are only predicted."""
    return observed if trials.given is None else observed & trials.given


def _squared_error(model, output, rates, inside):
    if rates is None:
        return None
    return jnp.where(inside, (model.observation.mean(output) - rates) ** 2, 0.0).sum((0, 1))


def where(condition: Bool[Array, ""], yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


ORDINARY = Kind(lambda settings, state: state, _train, _validate)
