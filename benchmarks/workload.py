"""What benchmarks train: the models of a settings file, prepared as train.py prepares them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sbtt_jax import devices, experiment, grid, training
from sbtt_jax.config import Settings
from sbtt_jax.grid import ModelKey


class Problem(NamedTuple):
    """All that training works on, on the host."""

    settings: Settings
    keys: list[ModelKey]
    masks: training.Masks
    trials: training.Trials

    @property
    def sizes(self) -> tuple[Any, ...]:
        """Neurons, training trials, model and training settings, as `training` asks for them."""
        neurons = self.trials.counts.shape[2]
        first = grid.single(self.settings, self.keys[0].varied)
        return neurons, len(self.trials.train), first.model, first.train

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return -(-len(self.trials.train) // self.settings.train.batch_size)


class Ready(NamedTuple):
    """A problem on its devices; `advance` compiles when it is first called."""

    mesh: Mesh
    state: training.ModelState
    masks: training.Masks
    trials: training.Trials
    advance: Callable[..., tuple[training.ModelState, training.EpochLog]]


def prepare(settings: Settings) -> Problem:
    """Data and masks of the settings."""
    data = experiment.load_data(settings)
    keys = experiment.models(settings, data.neurons)
    masks = experiment.observation_masks(settings, data, keys)
    return Problem(settings, keys, masks, experiment._trials(data))


def place(problem: Problem, vmap: bool | None = None) -> Ready:
    """Initial states, masks and trials on the devices there are."""
    mesh = devices.model_mesh(len(problem.keys))
    seeds, varied = [key.seed for key in problem.keys], grid.stacked(problem.keys)
    state = training.begin(seeds, *problem.sizes, varied)
    placed = training.place(mesh, state, problem.masks, problem.trials)
    return Ready(mesh, *placed, training.compile_epoch(mesh, *problem.sizes, vmap))


def on_host(log: training.EpochLog) -> training.EpochLog:
    """Wait for an epoch to end, and its log, as training does after each."""
    return jax.tree.map(np.asarray, log)
