"""How much faster than PyTorch is training, per epoch and level, on the same cores?

    python -m benchmarks.against_pytorch

A round is one epoch of one level in PyTorch (`pytorch_program.py`) with a thread a core, the same
with a single thread, and one epoch of all levels here, each in a process of its own that idles
meanwhile, so that whatever else the machine does meets all of them alike. Each ratio is within a
round; the median is over rounds. Work is the same: data, masks, model, batches, optimiser,
validation. What differs favours PyTorch: here, every epoch also computes R2 and keeps the best
weights. Before that, an epoch of both from the same weights, in the same order and without
dropout, must give the same losses.

A PyTorch with one thread leaves the other cores to others; the ratio of CPU times is what would
be left if those trained other levels meanwhile. On a busy machine PyTorch's threads lose much time
spinning for each other: OMP_WAIT_POLICY=passive in the environment lets them sleep instead.

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

from benchmarks import report, workload
from sbtt_jax import command_line, config, convert, devices, training
from sbtt_jax.config import ModelSettings, Settings, TrainSettings
from sbtt_jax.errors import InputError

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-4  # nats, between both sides' losses over an epoch without dropout


@dataclass
class Arguments:
    """Time epochs of training here and in PyTorch, in turn, and compare."""

    config: str = str(ROOT / "configs" / "reference.yaml")
    """Settings file of the models to train; all but sizes must be the published recipe."""
    rounds: int = 12
    """Epochs of each side."""
    out: str = str(report.RESULTS)
    """Folder for against_pytorch.json."""


class Cost(NamedTuple):
    """Seconds of an epoch and level: elapsed, and of all cores' time."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


class PyTorch:
    """The PyTorch side: a model for each level; an epoch is of one level, each in its turn."""

    def __init__(self, settings: Settings, threads: int):
        import torch

        from benchmarks import pytorch_program

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.program = pytorch_program
        self.problem = workload.prepare(settings)
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
        """Training and validation NLL of an epoch in file order, without dropout."""
        one = self._training(level, dropout=0.0)
        one.load(weights)
        return one.epoch(np.arange(len(self.problem.trials.train)))

    def epoch(self) -> Cost:
        cost = timed(self.levels[self.done % self.count].epoch)
        self.done += 1
        return cost


class Package:
    """This side: all levels at once, dealt to the cores as in training."""

    def __init__(self, settings: Settings):
        jax.config.update("jax_platforms", "cpu")
        devices.use_cores(len(settings.bandwidths) * len(settings.seeds))
        self.problem = workload.prepare(settings)
        self.ready = workload.place(self.problem)
        self.epoch()  # compiles

    def devices(self) -> int:
        return self.ready.mesh.size

    def initial_weights(self, level: int) -> dict[str, np.ndarray]:
        neurons, _, model, _ = self.problem.sizes
        seed = self.problem.keys[level].seed
        return convert.to_pytorch(training.build(neurons, model, seed))

    def losses(self, level: int, weights: dict[str, np.ndarray]) -> tuple[float, float]:
        """As PyTorch.losses. A batch is an epoch of its own here, which fixes the order."""
        trials, settings = self.problem.trials, self.problem.settings
        size = settings.train.batch_size
        fixed = settings.model_copy(
            update={
                "bandwidths": (self.problem.keys[level].bandwidth,),
                "seeds": (self.problem.keys[level].seed,),
                "model": settings.model.model_copy(update={"dropout": 0.0}),
            }
        )
        first = np.full(size, -1, np.int32)  # as many as a batch, which is what shapes go by
        problem = workload.prepare(fixed)._replace(trials=trials._replace(train=first))
        ready = workload.place(problem)
        start = nnx.state(convert.from_pytorch(weights))
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[None], start)
        state, logs = ready.state._replace(params=params), []
        state, _, _ = training.place(ready.mesh, state, problem.masks, problem.trials)
        order = np.asarray(training.batches(trials.train, size))
        for batch in order:  # a row of -1 is no trial
            state, log = ready.advance(state, ready.masks, ready.trials._replace(train=batch))
            logs.append(workload.on_host(log))
        return float(np.mean([log.train_nll for log in logs])), float(logs[-1].valid_nll[0])

    def epoch(self) -> Cost:
        def advance():
            state, log = self.ready.advance(*self.ready[1:4])
            self.ready = self.ready._replace(state=state)
            workload.on_host(log)

        cost = timed(advance)
        levels = len(self.problem.keys)
        return Cost(cost.wall / levels, cost.cpu / levels)


class Apart:
    """A side in a process of its own, so that thread pools don't get into each other's way."""

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
    """Check that the settings are those that the PyTorch program knows.

    Raises:
      InputError: a setting has no counterpart there.
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
      ArithmeticError: the two sides do not compute the same.
    """
    cores = report.machine()["cores"]
    threads = {f"PyTorch, {n} thread{'s' * (n > 1)}": n for n in sorted({cores, 1}, reverse=True)}
    here = Apart(Package, settings)
    there = {name: Apart(PyTorch, settings, n) for name, n in threads.items()}

    checks = []
    for level in sorted({0, len(settings.bandwidths) * len(settings.seeds) - 1}):
        weights = here("initial_weights", level)
        ours = here("losses", level, weights)
        for side in there.values():  # each, for it is also how it warms up
            theirs = side("losses", level, weights)
            checks.append({"level": level, "here": ours, "pytorch": theirs})
            off = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            if not off < TOLERANCE:
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
    given = command_line.parse(Arguments, argv, prog="python -m benchmarks.against_pytorch")
    settings = config.load(given.config)
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
    command_line.run(main)
