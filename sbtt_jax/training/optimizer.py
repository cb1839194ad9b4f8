"""The optimizer of one model, and the settings in which the models of a run may differ."""

from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Float

from sbtt_jax.config import ModelSettings, TrainSettings

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

    The weights that it is given decay, so give 0 for numbers that are not trained.

    steps: per epoch. values: of one model, instead of those in `settings`. rate: multiplies every
      step's size.
    """
    warmup = min(round(settings.warmup_epochs * steps), settings.epochs * steps - 1)
    size = values.learning_rate * rate
    schedule = optax.constant_schedule(size)
    if settings.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(size, settings.epochs * steps - warmup)
    if warmup:
        rise = optax.linear_schedule(0.0, size, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    decay = optax.add_decayed_weights(values.weight_decay)
    adam = optax.scale_by_adam(b2=values.adam_b2)
    return optax.chain(
        optax.clip_by_global_norm(values.clip_norm) if settings.clip_norm else optax.identity(),
        *((decay, adam) if settings.optimizer == "adam" else (adam, decay)),
        optax.scale_by_learning_rate(schedule),
    )
