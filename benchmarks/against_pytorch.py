"""How much faster than PyTorch is training, per epoch and level, on the same cores?

    python -m benchmarks.against_pytorch

A round is one epoch of one level in PyTorch (`pytorch_program.py`) with one thread per core, the
same with a single thread, and one epoch of all levels here. Each side has a process of its own,
idle while another is timed; as the sides alternate, other load on the machine affects all of them
alike. Ratios are taken within a round, then the median over rounds. The work is the same: data,
masks, model, batches, optimizer, validation. The difference is in PyTorch's favor: here, every
epoch also computes R2 and keeps the best weights. First, one epoch of both, from the same weights,
in the same order and without dropout, must give the same losses.

PyTorch with one thread leaves the other cores free; the ratio of CPU times is what would remain if
they trained other levels at the same time. On a busy machine, PyTorch's threads lose much time
waiting for each other in loops; with OMP_WAIT_POLICY=passive in the environment they sleep instead.

Needs PyTorch, which the package itself does not: pip install torch
"""

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from benchmarks import report
from benchmarks.parity import to_pytorch
from sbtt_jax import cli, config, convert, grid, recipes
from sbtt_jax.config import ModelSettings, Settings, TrainSettings
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError
from sbtt_jax.training import devices, epoch, population

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-4  # nats, between the losses of both sides in an epoch without dropout


@dataclass
class Arguments:
    """Time epochs of training here and in PyTorch, alternately, and compare."""

    config: str = str(ROOT / "configs" / "reference.yaml")
    """Settings file of the models to train: the published recipe, except for sizes."""
    rounds: int = 12
    """Epochs on each side."""
    out: str = str(report.RESULTS)
    """Folder for against_pytorch.json."""


class Cost(NamedTuple):
    """Seconds per epoch and level: wall-clock time, and CPU time of all cores."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


class PyTorch:
    """The PyTorch side: one model per level; each epoch trains the next level."""

    def __init__(self, settings: Settings, threads: int):
        import torch

        from benchmarks import pytorch_program

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.program = pytorch_program
        self.problem = prepare(settings)
        self.levels = [self._training(i, settings.model.dropout) for i in range(self.count)]
        self.done = 0

    @property
    def count(self) -> int:
        return len(self.problem.keys)

    def _training(self, level: int, dropout: float):
        trials, settings = self.problem.trials, self.problem.settings
        observed = self.problem.masks.observed[level]
        counts = np.where(observed, trials.counts, np.float32(np.nan)).astype(np.float32)
        return self.program.Training(
            counts[trials.train],
            counts[trials.valid],
            encoder_size=settings.model.encoder_size,
            decoder_size=settings.model.decoder_size,
            dropout=dropout,
            batch_size=settings.train.batch_size,
            learning_rate=settings.train.learning_rate,
            weight_decay=settings.train.weight_decay,
        )

    def losses(self, level: int, weights: dict[str, np.ndarray]) -> tuple[float, float]:
        """Training and validation NLL of an epoch in the order of the data, without dropout."""
        one = self._training(level, dropout=0.0)
        one.load(weights)
        return one.epoch(np.arange(len(self.problem.trials.train)))

    def epoch(self) -> Cost:
        cost = timed(self.levels[self.done % self.count].epoch)
        self.done += 1
        return cost


class Package:
    """This side: all levels at once, placed on the cores as in training."""

    def __init__(self, settings: Settings):
        jax.config.update("jax_platforms", "cpu")
        devices.use_cores(len(grid.models(settings, 1)))
        self.problem = problem = prepare(settings)
        self.mesh = devices.model_mesh(len(problem.keys))
        state = population.begin(problem)
        state, *self.rest = population.place(self.mesh, state, problem.masks, problem.trials)
        self.state, self.advance = state, population.compile_epoch(self.mesh, problem)
        self.epoch()  # compiles

    def devices(self) -> int:
        return self.mesh.size

    def initial_weights(self, level: int) -> dict[str, np.ndarray]:
        seed = self.problem.keys[level].seed
        return to_pytorch(epoch.build(self.problem.neurons, self.problem.model, seed))

    def losses(self, level: int, weights: dict[str, np.ndarray]) -> tuple[float, float]:
        """As PyTorch.losses. Here each batch is an epoch of its own, which fixes the order."""
        own = grid.settings_of(self.problem.settings, self.problem.keys[level])
        problem = prepare(config.updated(own, model={"dropout": 0.0}), self.problem.data)
        mesh = devices.model_mesh(1)
        start = nnx.state(convert.from_pytorch(weights))
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[None], start)
        state = population.begin(problem)._replace(params=params)
        state, masks, trials = population.place(mesh, state, problem.masks, problem.trials)
        advance, logs = population.compile_epoch(mesh, problem), []
        order = epoch.batches(problem.trials.train, problem.train.batch_size)
        for batch in np.asarray(order):  # a row of -1 is not a trial
            state, log = advance(state, masks, trials._replace(train=batch))
            logs.append(devices.on_host(log))
        return float(np.mean([log.train_nll for log in logs])), float(logs[-1].valid_nll[0])

    def epoch(self) -> Cost:
        def advance():
            self.state, log = self.advance(self.state, *self.rest)
            devices.on_host(log)

        cost = timed(advance)
        levels = len(self.problem.keys)
        return Cost(cost.wall / levels, cost.cpu / levels)


class Apart:
    """A side in a process of its own, so that thread pools do not disturb each other."""

    side: Any = None  # in that process

    def __init__(self, kind: type, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.process = ProcessPoolExecutor(1, context, _begin, (kind, *arguments))

    def __call__(self, method: str, *arguments: Any) -> Any:
        return self.process.submit(_call, method, *arguments).result()


def _begin(kind: type, *arguments: Any) -> None:
    Apart.side = kind(*arguments)


def _call(method: str, *arguments: Any) -> Any:
    return getattr(Apart.side, method)(*arguments)


def published_recipe(settings: Settings) -> None:
    """Check that the settings are those of the PyTorch program.

    Raises:
      InputError: a setting differs from the published recipe.
    """
    free = {"model": {"encoder_size", "decoder_size", "dropout"}}
    free["train"] = {"epochs", "batch_size", "learning_rate", "weight_decay", "checkpoint_every"}
    for group, default in {"model": ModelSettings(), "train": TrainSettings()}.items():
        given = getattr(settings, group)
        for name in type(default).model_fields.keys() - free[group]:
            if getattr(given, name) != getattr(default, name):
                raise InputError(
                    f"{group}.{name} is {getattr(given, name)}; the PyTorch program is the "
                    f"published recipe and has {getattr(default, name)}"
                )
    if settings.data.holdout_fraction or not settings.bandwidths:
        raise InputError("data.holdout_fraction must be 0 and bandwidths not empty, as published")


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """Costs of every round and the ratios.

    Raises:
      ArithmeticError: the two sides compute different losses.
    """
    cores = report.machine()["cores"]
    threads = {f"PyTorch, {n} thread{'s' * (n > 1)}": n for n in sorted({cores, 1}, reverse=True)}
    here = Apart(Package, settings)
    there = {name: Apart(PyTorch, settings, n) for name, n in threads.items()}

    checks = []
    for level in sorted({0, len(grid.models(settings, 1)) - 1}):
        weights = here("initial_weights", level)
        ours = here("losses", level, weights)
        for side in there.values():  # all of them, as this is also their warm-up
            theirs = side("losses", level, weights)
            checks.append({"level": level, "here": ours, "pytorch": theirs})
            difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            if not difference < TOLERANCE:
                raise ArithmeticError(f"losses of an epoch here {ours}, in PyTorch {theirs}")

    names = [*there, "here"]
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            costs[name].append((there | {"here": here})[name]("epoch"))

    median = {
        name: Cost(*(statistics.median(values) for values in zip(*each, strict=True)))
        for name, each in costs.items()
    }
    ratios = {
        name: {
            kind: [
                getattr(a, kind) / getattr(b, kind)
                for a, b in zip(costs[name], costs["here"], strict=True)
            ]
            for kind in Cost._fields
        }
        for name in there
    }
    return {
        "torch": metadata.version("torch"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "settings": settings.model_dump(mode="json"),
        "threads": threads | {"here": here("devices")},
        "losses_without_dropout": checks,
        "largest_loss_difference": max(
            abs(a - b) for c in checks for a, b in zip(c["here"], c["pytorch"], strict=True)
        ),
        "seconds_per_epoch_and_level": {
            name: {
                "median": median[name]._asdict(),
                "rounds": [c._asdict() for c in costs[name]],
            }
            for name in names
        },
        "ratio_to_here": {
            name: {kind: _spread(values) | {"rounds": values} for kind, values in each.items()}
            for name, each in ratios.items()
        },
        "fastest_pytorch": min(there, key=lambda name: median[name].wall),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "lower_quartile": float(low), "upper_quartile": float(high)}


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.against_pytorch")
    settings = recipes.load(given.config)
    published_recipe(settings)
    if given.rounds < 1:
        raise InputError(f"--rounds is {given.rounds}; give 1 or more")
    if importlib.util.find_spec("torch") is None:
        raise InputError("this compares with PyTorch, which is not installed: pip install torch")
    out = report.writable(given.out)
    found = measure(settings, given.rounds)
    path = report.write(out, "against_pytorch", found)

    rows = []
    for name, costs in found["seconds_per_epoch_and_level"].items():
        cells = [name, *(f"{costs['median'][kind]:.3f}" for kind in Cost._fields)]
        for kind in Cost._fields:
            ratio = found["ratio_to_here"].get(name, {}).get(kind)
            spread = ratio and f"{ratio['lower_quartile']:.1f} to {ratio['upper_quartile']:.1f}"
            cells.append(f"{ratio['median']:.1f} ({spread})" if ratio else "1")
        rows.append(cells)
    header = ["side", "wall s", "CPU s", "wall, times here (quartiles)", "CPU, times here"]
    print(f"An epoch of one level, medians of {given.rounds} interleaved rounds:\n")
    print(report.table(header, rows))
    print(f"\nhere: models on {found['threads']['here']} of {report.machine()['cores']} cores")
    print(f"losses without dropout differ by at most {found['largest_loss_difference']:.1e} nats")
    print(f"fastest of PyTorch: {found['fastest_pytorch']}\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
