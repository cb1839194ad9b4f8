"""All models of a run at once: begin, place on devices, compile, fit.

The states of all models are stacked along a leading axis and placed on the devices. Each device
takes its share through a whole epoch (steps as a scan, then validation) without returning to the
host. Nothing here reads or writes files, handles signals or prints.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbtt_jax import grid
from sbtt_jax.config import Settings
from sbtt_jax.data.dataset import Statistics
from sbtt_jax.data.problem import Masks, Problem, Trials
from sbtt_jax.grid import ModelKey
from sbtt_jax.training import devices, epoch, marginal, tuning
from sbtt_jax.training.epoch import EpochLog, Kind, ModelState
from sbtt_jax.training.optimizer import hyperparameters

Advance = Callable[[ModelState, Masks, Trials], tuple[ModelState, EpochLog]]


def fit(
    problem: Problem,
    state: ModelState | None = None,
    *,
    mesh: Mesh | None = None,
    on_epoch: Callable[[ModelState, EpochLog], bool | None] | None = None,
) -> ModelState:
    """Train all models of a problem to the end of their epochs, or until none has anything to gain.

    state: to continue from, stacked by model; `begin(problem)` if None.
    mesh: devices to train on; `devices.model_mesh` if None.
    on_epoch: called after every epoch with the state, on the devices and valid only during the
      call, and the log, stacked by model, as NumPy arrays. Training stops where it returns true.

    Returns the last state, whose `best` has each model's best weights. Raises InputError if the
    masks leave a neuron without samples, or the devices cannot be divided among the models.
    """
    state = begin(problem) if state is None else state
    mesh = mesh or devices.model_mesh(len(problem.keys), problem.train.data_devices)
    begun = int(np.asarray(state.epoch)[0])
    done = np.asarray(epoch.is_done(state, problem.train))
    train, beginning = problem.train, jax.tree.map(np.asarray, state.values)
    state, masks, trials = place(mesh, state, problem.masks, problem.trials)
    changes = {begun, *(when for when, *_ in problem.settings.changes)}
    for number in range(begun, begun if done.all() else train.all_epochs):
        if number in (begun, train.epochs):
            kind = epoch.ORDINARY if number < train.epochs else marginal.MARGINAL
            advance = compile_epoch(mesh, problem, kind=kind)
            if devices.is_distributed():  # so that no device waits while another still compiles
                advance = advance.lower(state, masks, trials).compile()
                devices.barrier("compiled")
        if problem.settings.changes and number in changes:
            values = tuning.changed(problem.settings, beginning, number)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state.values)
            state = state._replace(values=jax.device_put(values, shardings))
        state, log = advance(state, masks, trials)
        log = devices.on_host(log)
        state = _next_generation(problem, state, log, number + 1)
        if (on_epoch and on_epoch(state, log)) or log.done.all():
            break
    return state


def begin(problem: Problem) -> ModelState:
    """The states of all models before the first epoch, stacked, on the host.

    A model's state depends on its own seed and settings, not on the other models.
    """
    program = tuning.program(problem.settings)
    with ThreadPoolExecutor(1) as beside:
        masks = beside.submit(lambda: problem.masks)  # NumPy draws them while JAX compiles
        settings, keys = problem.settings, problem.keys
        own = [grid.settings_of(settings, key) for key in keys]
        statistics = [None] * len(own)
        if problem.model.standardize:
            masks.result()  # which would be drawn twice otherwise
            statistics = problem.statistics()
        # Not under vmap, whose random weights would depend on the number of models.
        states = [
            _initial(program, key, problem, one, values, tuning.latent_size(settings, key))
            for key, one, values in zip(keys, own, statistics, strict=True)
        ]
        if settings.tune:
            # Latents that a member lacks are zeros in all weights to and from them, and so are
            # their derivatives: they stay zero.
            most = program.model.latent_size
            first = keys[0], problem, own[0], statistics[0]
            shapes = jax.eval_shape(lambda: _initial(program, *first, most))
            states = [epoch.filled_up(one, shapes) for one in states]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        if settings.tune:
            state = state._replace(parent=np.arange(len(keys), dtype=np.int32))
        masks.result()
    return state


def _initial(
    program: Settings,
    key: ModelKey,
    problem: Problem,
    own: Settings,
    values: Statistics | None,
    latents: int | None,
) -> ModelState:
    """The state of one model, of the parts that a program has and so many latents."""
    drawn = tuning.first(problem.settings, key, hyperparameters(own.model, own.train))
    model = program.model.model_copy(update={"latent_size": latents})
    sizes = problem.neurons, model, program.train, problem.steps
    return epoch.initial(tuning.seed(key), drawn, values, *sizes)


def _next_generation(problem: Problem, state: ModelState, log: EpochLog, done: int) -> ModelState:
    """The state of the generation that begins after `done` epochs, if one does."""
    if not (problem.settings.tune and tuning.begins(problem, done)):
        return state
    loss = np.where(log.lost | log.failed, np.inf, log.heldout_nll)
    best, values = devices.on_host((state.best.nll, state.values))
    source, values = tuning.next_generation(
        problem.settings, problem.keys, loss, best, values, done
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    taken = jax.jit(tuning.take, out_shardings=shardings, donate_argnums=0)
    return taken(state, source.astype(np.int32), values)


def place(
    mesh: Mesh, state: ModelState, masks: Masks, trials: Trials
) -> tuple[ModelState, Masks, Trials]:
    """State and masks placed on the devices by model, the trials on each of them.

    The state is a copy, which `compile_epoch` may overwrite.
    """
    by_model = NamedSharding(mesh, PartitionSpec("model"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = by_model, by_model, everywhere
    return jax.device_put((state, masks, trials), shardings, may_alias=(False, True, True))


def compile_epoch(
    mesh: Mesh, problem: Problem, vmap: bool | None = None, kind: Kind = epoch.ORDINARY
) -> Advance:
    """The jitted epoch of all models: (state, masks, trials) -> (state, log), stacked by model.

    vmap: whether the models of a device advance together or take turns. By default they take turns
      on a CPU, where one model's arrays fit a core's cache (eight at once measured two thirds to
      half as fast), and nowhere else.
    kind: `epoch.ORDINARY` or `marginal.MARGINAL`.
    """
    vmap = mesh.devices.flat[0].platform != "cpu" if vmap is None else vmap
    program = tuning.program(problem.settings)
    model_def = epoch.graph(problem.neurons, program.model)

    def local(state, masks, trials):
        one = partial(epoch.run_epoch, kind, model_def, program.train, trials)
        if vmap:
            return jax.vmap(one)(masks, state)
        return lax.map(lambda own: one(*own), (masks, state))

    by_model = PartitionSpec("model")
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_model, by_model, PartitionSpec()),
        out_specs=by_model,
        # The compiler handles the axis "data", if there is more than one device along it.
        axis_names={"model"} if mesh.shape["data"] > 1 else set(mesh.axis_names),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)
