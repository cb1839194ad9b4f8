"""The optimizer of one model, and the settings in which the models of a run may differ."""

from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Float

from sbtt_jax.config import ModelSettings, TrainSettings


class Hyperparameters(NamedTuple):
    """The values of one model of all settings that can be lists.

    They are part of a model's state, not of the compiled program, so that one program serves all
    models of a run. A setting that is None is 0 here, and the program does without it.
    """

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    adam_b2: Float[Array, ""]
    clip_norm: Float[Array, ""]
    average_decay: Float[Array, ""]
    dropout: Float[Array, ""]
    coordinated_dropout: Float[Array, ""]
    coordinated_dropout_pass: Float[Array, ""]
    coordinated_dropout_whole: Float[Array, ""]


def hyperparameters(model: ModelSettings, train: TrainSettings) -> Hyperparameters:
    """Those of the settings of one model, in which nothing is a list."""
    values = {**dict(train), "dropout": model.dropout}
    return Hyperparameters(*(np.float32(values[n] or 0) for n in Hyperparameters._fields))


def used(setting: float | tuple[float, ...] | None) -> bool:
    """Whether any model of the run has a value of this setting other than 0 or None."""
    return bool(max(setting)) if isinstance(setting, tuple) else bool(setting)


def optimizer(
    settings: TrainSettings,
    steps_per_epoch: int,
    values: Hyperparameters,
    rate: float | Float[Array, ""] = 1.0,
) -> optax.GradientTransformation:
    """Adam as in PyTorch (L2 enters the gradient before the moments), or AdamW.

    values: of one model; they count instead of those in `settings`.
    rate: multiplies every step size.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    size = values.learning_rate * rate
    schedule = optax.constant_schedule(size)
    if settings.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(size, settings.epochs * steps_per_epoch - warmup)
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
