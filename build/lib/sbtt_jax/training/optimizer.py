"""The optimizer of one model, and the settings in which the models of a run may differ."""

from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from sbtt_jax.config import ModelSettings, TrainSettings
from sbtt_jax.model.autoencoder import Statistic

Scalar = Float[Array, ""]


class Hyperparameters(NamedTuple):
    """One model's values of all settings that can be lists; 0 for a setting that is None.

    They are part of a model's state, not of the program, so that one program serves all models.
    """

    learning_rate: Scalar
    weight_decay: Scalar
    adam_b2: Scalar
    clip_norm: Scalar
    average_decay: Scalar
    dropout: Scalar
    coordinated_dropout: Scalar
    coordinated_dropout_pass: Scalar
    coordinated_dropout_whole: Scalar
    input_penalty: Scalar


def hyperparameters(model: ModelSettings, train: TrainSettings) -> Hyperparameters:
    """Those of one model, in whose settings nothing is a list."""
    values = {**dict(train), "dropout": model.dropout}
    return Hyperparameters(*(np.float32(values[n] or 0) for n in Hyperparameters._fields))


def used(setting: float | tuple[float, ...] | None) -> bool:
    """Whether any model of the run has a value of this setting other than 0 or None."""
    return bool(np.any(setting or 0))


def optimizer(
    settings: TrainSettings, steps: int, values: Hyperparameters, rate: float | Scalar = 1.0
) -> optax.GradientTransformation:
    """Adam as in PyTorch (L2 enters the gradient before the moments), or AdamW.

    steps: per epoch. values: of one model, instead of those in `settings`. rate: multiplies every
      step's size.
    """
    warmup = round(settings.warmup_epochs * steps)
    size = values.learning_rate * rate
    schedule = optax.constant_schedule(size)
    if settings.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(size, settings.epochs * steps - warmup)
    if warmup:
        rise = optax.linear_schedule(0.0, size, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    decay = _decay(values)
    adam = optax.scale_by_adam(b2=values.adam_b2)
    return optax.chain(
        optax.clip_by_global_norm(values.clip_norm) if settings.clip_norm else optax.identity(),
        *((decay, adam) if settings.optimizer == "adam" else (adam, decay)),
        optax.scale_by_learning_rate(schedule),
    )


def _decay(values: Hyperparameters) -> optax.GradientTransformation:
    """optax.add_decayed_weights for what is trained. Its own mask would change the optimizer's
    state, and with it the checkpoints of every model."""

    def decayed(update, weight):
        return update if is_statistic(weight) else update + values.weight_decay * weight

    def is_statistic(leaf):
        return isinstance(leaf, Statistic)

    return optax.stateless(
        lambda updates, params: jax.tree.map(decayed, updates, params, is_leaf=is_statistic)
    )
