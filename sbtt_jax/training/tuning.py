"""Settings tuned by held-out likelihood while the models train (population-based training).

All models of a bandwidth and seed are members of a population. After each generation, the worst
members continue from the weights of the best ones, with settings near theirs (Jaderberg et al.
2017; for sequential autoencoders of neurons, Keshtkaran et al. 2022). A generation changes arrays
of the state, not the program.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from sbtt_jax.config import Settings
from sbtt_jax.data.problem import Problem
from sbtt_jax.grid import ModelKey, with_values
from sbtt_jax.training.epoch import ModelState
from sbtt_jax.training.optimizer import Hyperparameters, used

GENERATION = 100  # optimizer steps, at least
REPLACED = 0.25  # share of a population that each generation replaces
STRIDE = 0.15  # standard deviation of a step away from a parent's setting, as a share of its range
LATENTS = 1, 2, 4  # times the recipe's, of which each member draws one; they come with the weights


class Range(NamedTuple):
    """Where a setting is looked for, evenly in its logarithm if `log`."""

    low: float
    high: float
    log: bool = False

    def at(self, share: float) -> float:
        """The value at a share, from 0 to 1, of the way from the lowest to the highest."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share

    def share(self, value: float) -> float:
        """The inverse of `at`; of values outside, that of the nearest end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


RANGES = {
    "weight_decay": Range(1e-3, 1.0, log=True),
    "dropout": Range(0.0, 0.5),
    "coordinated_dropout": Range(0.2, 0.8),
    "coordinated_dropout_whole": Range(0.0, 0.2),
    "input_penalty": Range(1e-2, 10.0, log=True),
}


def ranges(settings: Settings) -> dict[str, Range]:
    """What is tuned in a run of these settings."""
    rate = settings.train.learning_rate
    found = {"learning_rate": Range(rate / 4, rate * 2.5, log=True), **RANGES}
    if settings.train.optimizer == "adam":  # whose L2 goes through Adam's moments: much stronger
        found["weight_decay"] = Range(1e-7, 1e-2, log=True)
    if not settings.model.inferred_inputs:
        del found["input_penalty"]
    if not used(settings.train.coordinated_dropout_pass):  # by which alone such trials count
        del found["coordinated_dropout_whole"]
    return found


def program(settings: Settings) -> Settings:
    """Settings of a program that serves all values that a run's models may come to have: lists."""
    values = {}
    if settings.tune:
        values = {name: (own.low, own.high) for name, own in ranges(settings).items()}
        if settings.model.latent_size:
            values["latent_size"] = max(LATENTS) * settings.model.latent_size
    for _, name, value in settings.changes:
        group = settings.model if name in type(settings.model).model_fields else settings.train
        values[name] = (*values.get(name, (getattr(group, name),)), value)
    return with_values(settings, values)


def changed(settings: Settings, values: Hyperparameters, epoch: int) -> Hyperparameters:
    """Those of all models, stacked, in an epoch, from those that training began with."""
    for begins, name, value in sorted(settings.changes, key=lambda change: change[0]):
        if begins <= epoch:
            values = values._replace(**{name: np.full_like(getattr(values, name), value)})
    return values


def seed(key: ModelKey) -> np.uint32:
    """Of a model's weights, shuffling and dropout; a run's own seed for member 0."""
    if not key.member:
        return np.uint32(key.seed)
    return np.random.SeedSequence((key.seed, key.member)).generate_state(1)[0]


def first(settings: Settings, key: ModelKey, values: Hyperparameters) -> Hyperparameters:
    """A member's values in the first generation: `values`, those of the settings, for member 0, and
    drawn from everywhere within the ranges for others."""
    if not key.member:
        return values
    rng = _rng(key, 0)
    drawn = {name: own.at(rng.random()) for name, own in ranges(settings).items()}
    return values._replace(**{name: np.float32(value) for name, value in drawn.items()})


def latent_size(settings: Settings, key: ModelKey) -> int | None:
    """A member's number of latents in the first generation; that of the settings for member 0."""
    size = settings.model.latent_size
    if not (key.member and size):
        return size
    return size * int(_rng(key, 0).spawn(1)[0].choice(LATENTS))


def begins(problem: Problem, done: int) -> bool:
    """Whether a generation, but for the first, begins after so many epochs."""
    return done < problem.train.epochs and done % generation(problem.steps) == 0


def generation(steps: int) -> int:
    """How many epochs of so many optimizer steps a generation lasts."""
    return math.ceil(GENERATION / steps)


def successors(
    loss: Float[np.ndarray, " member"], best: Float[np.ndarray, " member"]
) -> Int[np.ndarray, " member"]:
    """Of each member of the next generation, the member from whose weights it continues.

    loss: held-out loss of each now; infinite or NaN for one whose numbers are not finite.
    best: the least that it has had.

    The worst take over from the best, but for member 0, which keeps the settings that it began with
    to the end, and the one with the best epoch so far.
    """
    loss = np.where(np.isfinite(loss), loss, np.inf)
    order = np.argsort(loss, kind="stable")
    replaced = max(1, int(REPLACED * len(loss)))
    kept = {0, int(np.argmin(np.where(np.isfinite(best), best, np.inf)))}
    worst = [member for member in order[::-1] if member not in kept][:replaced]
    source = np.arange(len(loss))
    for member, parent in zip(worst, order, strict=False):
        if loss[parent] < loss[member]:
            source[member] = parent
    return source


def next_generation(
    settings: Settings,
    keys: Sequence[ModelKey],
    loss: Float[np.ndarray, " model"],
    best: Float[np.ndarray, " model"],
    values: Hyperparameters,
    done: int,
) -> tuple[Int[np.ndarray, " model"], Hyperparameters]:
    """For each model, in the order in which states are stacked, the model from whose weights it
    continues, and its settings.

    loss, best: as of `successors`. values: so far. done: epochs, which tell generations apart.
    """
    source = np.arange(len(keys))
    for where in populations(keys).values():
        source[where] = where[successors(loss[where], best[where])]
    new = Hyperparameters(*(np.array(leaf)[source] for leaf in values))
    tuned = ranges(settings)
    for model in np.flatnonzero(source != np.arange(len(keys))):
        rng = _rng(keys[model], done)
        for name, own in tuned.items():
            share = own.share(float(getattr(new, name)[model])) + STRIDE * rng.standard_normal()
            getattr(new, name)[model] = own.at(min(max(share, 0.0), 1.0))
    return source, new


def populations(keys: Sequence[ModelKey]) -> dict[ModelKey, Int[np.ndarray, " member"]]:
    """The positions of the members of each population among all models, by what the best of them
    is called. Without tuning, each model is a population of its own."""
    found: dict[ModelKey, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key._replace(member=None), []).append(position)
    return {key: np.array(positions) for key, positions in found.items()}


def _rng(key: ModelKey, done: int) -> np.random.Generator:
    return np.random.default_rng((key.seed, key.bandwidth, key.member, done))


def take(
    state: ModelState, source: Int[jax.Array, " model"], values: Hyperparameters
) -> ModelState:
    """The stacked state in which every model continues from `source`, with its own seed and these
    values."""
    taken = jax.tree.map(lambda leaf: leaf[source], state)
    return taken._replace(seed=state.seed, parent=source, values=values)
