"""Training: one jitted epoch that advances every model of a run at once.

A run has a model for each combination of bandwidth, seed and settings that are lists. The values of
the latter are part of a model's state, so that one program serves all; settings that are alike for
all models are constants of the program. The states are stacked along a leading axis and dealt to
the devices; each device takes its share through a whole epoch (steps as a scan, then validation)
without returning to the host.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from sbtt_jax import config
from sbtt_jax.config import ModelSettings, TrainSettings
from sbtt_jax.losses import poisson_nll_sum
from sbtt_jax.model import SequentialAutoencoder

Params = Any  # the weights of one model, as nnx.split leaves them

# A model whose numbers stop being finite goes back to where the epoch began and takes steps of
# this share of their size from there on; so many epochs in a row lost this way, and it has failed.
RETRY_RATE = 0.3
RETRIES = 5


class Trials(NamedTuple):
    """What all models share. `rates` (expected counts per bin) are only ever reported on."""

    counts: Int[Array, "trial bin neuron"]
    rates: Float[Array, "trial bin neuron"] | None
    train: Int[Array, " train_trial"]
    valid: Int[Array, " valid_trial"]
    train_variation: Float[Array, " neuron"] | None  # summed squared deviation of the true rates
    valid_variation: Float[Array, " neuron"] | None
    lengths: Int[Array, " trial"] | None = None  # bins of each trial, where some are padded


class Masks(NamedTuple):
    """What one model may see, and what it is judged by. A point is in one of them at most."""

    observed: Bool[Array, "trial bin neuron"]
    heldout: Bool[Array, "trial bin neuron"] | None


class Best(NamedTuple):
    """The epoch of least validation loss so far; -1 before the first."""

    params: Params
    nll: Float[Array, ""]
    epoch: Int[Array, ""]


class Recovery(NamedTuple):
    """How one model stands after numbers that were not finite."""

    rate: Float[Array, ""]  # multiplies every step; 1 until something went wrong
    retries: Int[Array, ""]  # epochs in a row that were lost
    failed: Bool[Array, ""]  # given up: its state no longer changes


class ModelState(NamedTuple):
    """Everything about one model that an epoch changes, and what sets it apart from others.

    `varied` are its values of the settings that differ between models; None where none does.
    """

    params: Params
    optimizer: optax.OptState
    average: Params | None
    best: Best
    epoch: Int[Array, ""]  # epochs done
    seed: Int[Array, ""]
    recovery: Recovery
    varied: dict[str, Float[Array, ""]] | None = None


class EpochLog(NamedTuple):
    """Nats a point, R2 against true rates where there are some, and what became of the epoch."""

    train_nll: Float[Array, ""]
    valid_nll: Float[Array, ""]
    heldout_nll: Float[Array, ""] | None
    train_r2: Float[Array, ""] | None
    valid_r2: Float[Array, ""] | None
    lost: Bool[Array, ""]  # a number was not finite, and the epoch was undone
    failed: Bool[Array, ""]  # given up, now or before


class _Sums(NamedTuple):
    nll: Float[Array, ""]
    points: Num[Array, ""]  # summed weights, where points differ in weight
    squared_error: Float[Array, " neuron"] | None


def build(neurons: int, settings: ModelSettings, seed: int | Array = 0) -> SequentialAutoencoder:
    """A new model with weights drawn from `seed`."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return SequentialAutoencoder(neurons, **settings.model_dump(), rngs=nnx.Rngs(key))


@cache
def graph(neurons: int, settings: ModelSettings) -> nnx.GraphDef:
    """The model without its weights: with weights, `nnx.merge` makes it whole."""
    return nnx.split(nnx.eval_shape(lambda: build(neurons, settings)))[0]


def optimizer(
    settings: TrainSettings, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Adam as PyTorch has it (L2 enters the gradient before the moments), or AdamW.

    Its `update` takes a `rate` that multiplies the step size, 1 where none is given.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    after = settings.epochs * steps_per_epoch - warmup
    rate = settings.learning_rate
    main = optax.cosine_decay_schedule(rate, after) if settings.schedule == "cosine" else rate
    if warmup:
        later = main if callable(main) else optax.constant_schedule(rate)
        main = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), later], [warmup])
    decay = optax.add_decayed_weights(settings.weight_decay)
    adam = optax.scale_by_adam(b2=settings.adam_b2)
    return optax.chain(
        optax.identity()
        if settings.clip_norm is None
        else optax.clip_by_global_norm(settings.clip_norm),
        *((decay, adam) if settings.optimizer == "adam" else (adam, decay)),
        _scale_by_learning_rate(main),
    )


def _scale_by_learning_rate(
    schedule: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Optax's own, but for `rate`. That multiplies the step size and not the step, so that a rate
    of 1 leaves every number as it is: the compiler fuses the step with what comes after."""
    inner = optax.scale_by_learning_rate(schedule)

    def update(updates, state, params=None, *, rate=1.0, **_):
        size = schedule(state.count) if callable(schedule) else schedule
        _, state = inner.update(updates, state, params)
        return jax.tree.map(lambda u: jnp.asarray(-size * rate, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def batches(trials: Int[Array, " trial"], batch_size: int) -> Int[Array, "step batch"]:
    """Trial indices in rows of a batch; the last row is filled up with -1."""
    batch_size = max(1, min(batch_size, trials.shape[0]))
    steps = -(-trials.shape[0] // batch_size)
    padded = jnp.pad(trials, (0, steps * batch_size - trials.shape[0]), constant_values=-1)
    return padded.reshape(steps, batch_size)


def begin(
    seeds: Sequence[int],
    neurons: int,
    train_trials: int,
    model: ModelSettings,
    train: TrainSettings,
    varied: Mapping[str, Sequence[float]] | None = None,
) -> ModelState:
    """The states of all models before the first epoch, stacked; a model's state depends on its
    own seed alone.

    `varied` has a value for each model of every setting that differs between them, which then
    counts instead of that in `model` or `train`.
    """
    steps = -(-train_trials // train.batch_size)

    def own(i):
        return {name: np.float32(values[i]) for name, values in varied.items()} if varied else None

    # Not under vmap: a model's weights must not depend on how many others there are.
    states = [
        _initial(np.uint32(seed), own(i), neurons, model, train, steps)
        for i, seed in enumerate(seeds)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _initial(seed, varied, neurons: int, model: ModelSettings, train: TrainSettings, steps: int):
    """The state of one model before the first epoch."""
    params = nnx.state(build(neurons, model, seed))
    average = params if train.average_decay else None
    best = Best(params, jnp.float32(jnp.inf), jnp.int32(-1))
    recovery = Recovery(jnp.float32(1), jnp.int32(0), jnp.bool_(False))
    moments = optimizer(train, steps).init(params)
    return ModelState(params, moments, average, best, jnp.int32(0), seed, recovery, varied)


def _train_epoch(model_def, tx, settings: TrainSettings, trials: Trials, masks: Masks, state, key):
    """All batches of one epoch, in an order of its own."""
    dropout = (state.varied or {}).get("dropout")
    shuffle_key, step_key = jax.random.split(key)

    def loss(params, batch, key):
        hide_key, dropout_key = jax.random.split(key)
        counts, observed, lengths, rates, real = _gather(trials, masks.observed, batch)
        shown = observed
        if _may_act(settings.coordinated_dropout):
            shown &= ~_hidden(hide_key, settings, observed.shape)
        model = nnx.merge(model_def, params)
        rngs = nnx.Rngs(dropout_key)
        lograte = model(counts, shown, lengths, rngs=rngs, dropout=dropout).lograte
        nll, points = poisson_nll_sum(lograte, counts, shown)
        if _may_act(settings.coordinated_dropout):
            hidden_nll, hidden_points = poisson_nll_sum(lograte, counts, observed & ~shown)
            weight = _if_acts(settings.coordinated_dropout, settings.coordinated_dropout_pass, 1.0)
            nll = hidden_nll + weight * nll
            points = hidden_points + weight * points
        sums = _Sums(nll, points, _squared_error(lograte, rates, real))
        return nll / jnp.maximum(points, 1), sums

    def step(carry, batch):
        params, opt, average, count = carry
        key = jax.random.fold_in(step_key, count)
        grads, sums = jax.grad(loss, has_aux=True)(params, batch, key)
        updates, opt = tx.update(grads, opt, params, rate=state.recovery.rate)
        params = optax.apply_updates(params, updates)
        if average is not None:
            # A short memory at the start, so that the initial weights are soon forgotten.
            done = state.epoch * order.shape[0] + count
            decay = jnp.minimum(settings.average_decay, (1.0 + done) / (10.0 + done))
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, opt, average, count + 1), sums

    order = batches(jax.random.permutation(shuffle_key, trials.train), settings.batch_size)
    start = (state.params, state.optimizer, state.average, jnp.int32(0))
    (params, opt, average, _), sums = lax.scan(step, start, order)
    return params, opt, average, jax.tree.map(lambda s: s.sum(0), sums)


def _may_act(share: float | Array) -> bool:
    """Whether a share is above 0, as far as that is known before a program runs."""
    return isinstance(share, Array) or share > 0


def _if_acts(share: float | Array, yes, no):
    """`yes` where a share is above 0, else `no`; a constant's choice is not left to the program."""
    if isinstance(share, Array):
        return jnp.where(share > 0, yes, no)
    return yes if share > 0 else no


def _hidden(key, settings: TrainSettings, shape) -> Bool[Array, "trial bin neuron"]:
    """Which points coordinated dropout hides from the input."""
    share = settings.coordinated_dropout
    if _may_act(settings.coordinated_dropout_whole):
        other_key, whole_key = jax.random.split(key)
        key = _if_acts(settings.coordinated_dropout_whole, other_key, key)
        whole = jax.random.bernoulli(
            whole_key, settings.coordinated_dropout_whole, (shape[0], 1, 1)
        )
        share = jnp.where(whole, 0.0, share)
    return jax.random.bernoulli(key, share, shape)


def _validate(model_def, batch_size: int, trials: Trials, masks: Masks, params):
    """Sums over the validation trials, without dropout: at observed and at held-out points."""
    model = nnx.merge(model_def, params)

    def evaluate(batch):
        counts, observed, lengths, rates, real = _gather(trials, masks.observed, batch)
        lograte = model(counts, observed, lengths).lograte
        seen = _Sums(
            *poisson_nll_sum(lograte, counts, observed), _squared_error(lograte, rates, real)
        )
        if masks.heldout is None:
            return seen, None
        heldout = masks.heldout[batch] & real
        return seen, _Sums(*poisson_nll_sum(lograte, counts, heldout), None)

    sums = lax.map(evaluate, batches(trials.valid, batch_size))
    return jax.tree.map(lambda s: s.sum(0), sums)


def _gather(trials: Trials, observed, batch):
    """A batch's trials; a row of -1 is no trial, and nothing of it is observed."""
    real = (batch >= 0)[:, None, None]
    lengths = None if trials.lengths is None else trials.lengths[batch]
    if lengths is not None:
        real &= (jnp.arange(observed.shape[1]) < lengths[:, None])[..., None]
    rates = None if trials.rates is None else trials.rates[batch]
    return _shared_out((trials.counts[batch], observed[batch] & real, lengths, rates, real))


def _shared_out(batch):
    """A batch whose trials are shared out among the devices of the axis "data", if several. That
    says where numbers are computed, not what they are: draws and sums are those of the batch."""
    if not jax.sharding.get_abstract_mesh().auto_axes:
        return batch
    return lax.with_sharding_constraint(batch, PartitionSpec("data"))


def _squared_error(lograte, rates, real):
    if rates is None:
        return None
    return jnp.where(real, (jnp.exp(lograte) - rates) ** 2, 0.0).sum((0, 1))


def _mean(sums: _Sums) -> Float[Array, ""]:
    return sums.nll / jnp.maximum(sums.points, 1)


def _r2(sums: _Sums, variation) -> Float[Array, ""] | None:
    if variation is None:
        return None
    explained = 1 - sums.squared_error / jnp.where(variation > 0, variation, 1)
    return jnp.where(variation > 0, explained, 0).mean()  # a constant rate has nothing to explain


def _epoch(
    model_def, tx, settings: TrainSettings, trials: Trials, masks: Masks, state: ModelState
) -> tuple[ModelState, EpochLog]:
    """One model, one epoch: train, validate, and keep the weights if they are the best so far.

    An epoch in which the loss, the weights or the optimiser's moments (and so any gradient) stop
    being finite is undone, all but its number.
    """
    # The key comes from seed and epoch, so that a resumed run draws what an unbroken one draws,
    # and an epoch that follows a lost one draws anew.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 1), state.epoch)
    params, opt, average, train = _train_epoch(model_def, tx, settings, trials, masks, state, key)
    validated = params if average is None else average
    valid, heldout = _validate(model_def, settings.batch_size, trials, masks, validated)
    losses = _mean(train), _mean(valid), None if heldout is None else _mean(heldout)
    finite = _all_finite((losses, params, opt, average))
    criterion = losses[1] if heldout is None else losses[2]
    now = Best(validated, criterion, state.epoch)
    best = _where(criterion < state.best.nll, now, state.best)

    # R2 is left out: true rates steer nothing, this neither.
    recovery = state.recovery
    gone_on = state._replace(
        params=params,
        optimizer=opt,
        average=average,
        best=best,
        recovery=recovery._replace(retries=jnp.int32(0)),
    )
    retries = recovery.retries + 1
    undone = Recovery(recovery.rate * RETRY_RATE, retries, retries > RETRIES)
    after = _where(finite & ~recovery.failed, gone_on, state)
    after = after._replace(recovery=_where(finite | recovery.failed, after.recovery, undone))
    log = EpochLog(
        *losses,
        _r2(train, trials.train_variation),
        _r2(valid, trials.valid_variation),
        ~finite & ~recovery.failed,
        after.recovery.failed,
    )
    return after._replace(epoch=state.epoch + 1), log


def _where(condition: Bool[Array, ""], yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _all_finite(tree) -> Bool[Array, ""]:
    return jnp.isfinite(ravel_pytree(tree)[0]).all()  # as one array: the compiler has less to do


def place(mesh: Mesh, state: ModelState, masks: Masks, trials: Trials):
    """State and masks dealt to the devices by model, the trials on each of them."""
    by_model = NamedSharding(mesh, PartitionSpec("model"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return _put(state, by_model), _put(masks, by_model), _put(trials, everywhere)


def _put(tree, sharding: NamedSharding):
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # Each process has everything and gives its own devices their part.
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(np.shape(a), sharding, np.asarray(a).__getitem__),
        tree,
    )


def compile_epoch(
    mesh: Mesh,
    neurons: int,
    train_trials: int,
    model: ModelSettings,
    train: TrainSettings,
    vmap: bool | None = None,
) -> Callable[[ModelState, Masks, Trials], tuple[ModelState, EpochLog]]:
    """The jitted epoch of all models: (state, masks, trials) -> (state, log), stacked by model.

    With `vmap`, a device's models advance together; without, they take turns. By default they
    take turns on a CPU, where one model's arrays fit a core's cache and eight at once measured
    two thirds to half as fast, and advance together on anything else.
    """
    if vmap is None:
        vmap = mesh.devices.flat[0].platform != "cpu"
    model_def = graph(neurons, model)
    steps = -(-train_trials // train.batch_size)

    def local(state, masks, trials):
        def one(pair):
            own = config.with_values(train, pair[0].varied or {})
            return _epoch(model_def, optimizer(own, steps), own, trials, pair[1], pair[0])

        return jax.vmap(one)((state, masks)) if vmap else lax.map(one, (state, masks))

    by_model = PartitionSpec("model")
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_model, by_model, PartitionSpec()),
        out_specs=by_model,
        # The compiler sees to "data", where there is anything to see to.
        axis_names={"model"} if mesh.shape["data"] > 1 else set(mesh.axis_names),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)
