"""How do the time of a training step and its memory grow with the size of the problem?

    python -m benchmarks.scaling --quick     # a few points per axis, for a CPU
    python -m benchmarks.scaling             # the whole grid, for a GPU

Changes one size at a time from the published ones: models, neurons, bins, trials in a batch. Each
point is a process of its own, which trains on random counts with half the points missing. Peak
memory is that of the whole process, interpreter and compiler included; beside it are the arrays of
the program itself (arguments, results and temporaries, by XLA's count) and, on an accelerator, the
peak on the device. The time of a step is that of the fastest epoch, the least disturbed one, beside
the CPU time of all cores. The exponent of an axis is the slope of log cost against log size over
the upper half of its points: 1 is linear.
"""

import functools
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from tqdm import tqdm

from benchmarks import report
from sbtt_jax import cli, config, grid, recipes
from sbtt_jax.config import Settings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import Problem
from sbtt_jax.errors import InputError
from sbtt_jax.run import plots
from sbtt_jax.training import devices, population

ROOT = Path(__file__).parent.parent
AXES = {"models": "Models", "neurons": "Neurons", "bins": "Bins", "batch": "Trials in a batch"}
FULL = {
    "models": (1, 2, 4, 8, 16, 32, 64),
    "neurons": (29, 60, 125, 250, 500, 1000),
    "bins": (50, 100, 200, 400, 700, 1000),
    "batch": (16, 32, 64, 128, 256, 512),
}
QUICK = {
    "models": (1, 2, 8, 32),
    "neurons": (29, 125, 400),
    "bins": (50, 150, 400),
    "batch": (16, 64, 256),
}
STEPS, EPOCHS = 4, 3  # steps per epoch, and timed epochs
COSTS = ("step_seconds", "step_cpu_seconds", "process_mib", "program_mib", "device_mib")
MIB = 2**20


@dataclass
class Arguments:
    """Measure time and memory of a training step against models, neurons, bins and batch."""

    quick: bool = False
    """A few points per axis, for a CPU."""
    sizes: tuple[int, ...] = ()
    """Sizes for every axis instead of its own, in the order in which they are measured."""
    axes: tuple[str, ...] = tuple(AXES)
    """Which axes to measure."""
    models: int = 2
    """Models at the points of the other axes."""
    config: str = str(ROOT / "configs" / "reference.yaml")
    """Settings file with model and training."""
    out: str = str(report.RESULTS)
    """Folder for scaling_DEVICE.json and scaling_DEVICE.png."""


class Size(NamedTuple):
    """A point of the grid."""

    models: int
    neurons: int
    bins: int
    batch: int


def random_problem(size: Size, settings: Settings) -> Problem:
    """Random counts, half of them missing, for STEPS steps per epoch; nothing to validate."""
    rng = np.random.default_rng(0)
    trials = STEPS * size.batch
    counts = rng.poisson(0.25, (trials, size.bins, size.neurons)).astype(np.uint8)
    observed = rng.random(counts.shape) < 0.5
    observed[:, -1, 0] = True  # so that no trial ends early
    data = Dataset(counts, observed, np.arange(trials), np.arange(0), 0.02)
    settings = config.updated(
        settings,
        bandwidths=(size.neurons,),
        seeds=range(size.models),
        data={"holdout_fraction": 0.0},
        train={"batch_size": size.batch},
    )
    return Problem(settings, data, tuple(grid.models(settings, size.neurons)))


def point(size: Size, settings: Settings) -> dict[str, Any]:
    """Seconds and MiB of one size; runs in a process of its own."""
    devices.use_cores(size.models)
    start = time.perf_counter()
    problem = random_problem(size, settings)
    mesh = devices.model_mesh(size.models)
    state = population.begin(problem)
    state, *rest = population.place(mesh, state, problem.masks, problem.trials)
    compiled = population.compile_epoch(mesh, problem).lower(state, *rest).compile()
    began = time.perf_counter() - start
    seconds, of_processor = [], []
    for _ in range(1 + EPOCHS):
        start, start_processor = time.perf_counter(), time.process_time()
        state, log = compiled(state, *rest)
        devices.on_host(log)
        seconds.append((time.perf_counter() - start) / STEPS)
        of_processor.append((time.process_time() - start_processor) / STEPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asked = compiled.memory_analysis()
    device = mesh.devices.flat[0]
    on_device = device.memory_stats() or {}
    return {
        "devices": devices.describe(),
        "device_kind": device.device_kind,
        "begin_seconds": began,
        "step_seconds": min(seconds[1:]),
        "step_cpu_seconds": min(of_processor[1:]),
        "process_mib": peak / (MIB if sys.platform == "darwin" else 1024),
        "program_mib": asked
        and mesh.size  # XLA counts those of one device
        * (asked.argument_size_in_bytes + asked.temp_size_in_bytes + asked.output_size_in_bytes)
        / MIB,
        "device_mib": on_device["peak_bytes_in_use"] / MIB if on_device else None,
    }


def measure(grid: dict[str, Sequence[int]], models: int, settings: Settings) -> dict[str, Any]:
    """All points of the grid, by axis, and the exponents."""
    base = Size(models, settings.data.neurons, settings.data.bins, settings.train.batch_size)
    context = multiprocessing.get_context("spawn")

    @functools.cache  # the base is a point of every axis
    def at(size: Size) -> dict[str, Any]:
        with ProcessPoolExecutor(1, context) as process:
            try:
                return process.submit(point, size, settings).result()
            except (jax.errors.JaxRuntimeError, BrokenProcessPool) as error:
                return {"failed": str(error).splitlines()[0]}  # mostly out of memory

    axes: dict[str, Any] = {}
    with tqdm(total=sum(map(len, grid.values())), unit="point") as bar:
        for axis, sizes in grid.items():
            points = []
            for size in sizes:
                bar.set_postfix_str(f"{size} {axis}")
                points.append({axis: size} | at(base._replace(**{axis: size})))
                bar.update()
            axes[axis] = {"points": points, "exponents": exponents(axis, points)}
    return {"base": base._asdict(), "settings": settings.model_dump(mode="json"), "axes": axes}


def exponents(axis: str, points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Slope of log cost against log size over the upper half of the points, for each cost."""
    slopes = {}
    for cost in COSTS:
        known = [(p[axis], p[cost]) for p in points if p.get(cost)]
        upper = np.log(known[-max(2, (len(known) + 1) // 2) :])
        if len(upper) >= 2:
            slopes[cost] = float(np.polyfit(upper[:, 0], upper[:, 1], 1)[0])
    return slopes


def draw(found: dict[str, Any], title: str) -> Figure:
    """For each axis a panel of the time of a step and, below, one of memory."""
    axes = found["axes"]
    figure = Figure(figsize=(3.3 * len(axes) + 0.6, 6.2), layout="constrained")
    panels = figure.subplots(2, len(axes), sharex="col", sharey="row", squeeze=False)
    memory = {
        "process_mib": ("whole process", plots.BLUE, "o-"),
        "program_mib": ("the program's arrays", plots.ORANGE, "s--"),
        "device_mib": ("peak on the device", plots.GREEN, "^-."),
    }
    for (above, below), (axis, one) in zip(panels.T, axes.items(), strict=True):
        points = [p for p in one["points"] if "failed" not in p]
        x = [p[axis] for p in points]
        y = [1e3 * p["step_seconds"] for p in points]
        cpu = [1e3 * p["step_cpu_seconds"] for p in points]
        above.plot(x, y, "o-", color=plots.BLUE, label="elapsed")
        above.plot(x, cpu, "s--", color=plots.ORANGE, label="CPU time of all cores")
        if points:  # a line of slope 1 through the last point
            above.plot(x, [cpu[-1] * v / x[-1] for v in x], ":", color=plots.GREY, label="linear")
        slopes = [one["exponents"].get(name) for name in COSTS[:2]]
        if None not in slopes:
            above.set_title("exponents {:.2f}, {:.2f}".format(*slopes), fontsize=10)
        for name, (label, colour, style) in memory.items():
            if any(p[name] for p in points):
                below.plot(x, [p[name] for p in points], style, color=colour, label=label)
        base = found["base"] | {axis: None}
        rest = ", ".join(f"{v} {k}" for k, v in base.items() if v is not None)
        below.set_xlabel(f"{AXES[axis]}\n({rest.replace(' batch', ' trials')})")
        for panel in (above, below):
            panel.set(xscale="log", yscale="log")
            panel.set_xticks(x, [str(v) for v in x])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.yaxis.set_major_formatter(ScalarFormatter())
    panels[0, 0].set_ylabel("Training step (ms)")
    panels[1, 0].set_ylabel("Peak memory (MiB)")
    for panel in panels[:, 0]:
        panel.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.scaling")
    unknown = set(given.axes) - AXES.keys()
    if unknown or not given.axes:
        raise InputError(f"--axes {' '.join(given.axes)}: name some of {', '.join(AXES)}")
    if min(given.models, *given.sizes, 1) < 1:
        raise InputError("--models and --sizes must be 1 or more")
    settings = recipes.load(given.config)
    out = report.writable(given.out)
    sizes = QUICK if given.quick else FULL
    grid = {axis: given.sizes or sizes[axis] for axis in given.axes}
    found = measure(grid, given.models, settings)

    rows, kind, where = [], "nothing", "nothing measured"
    for axis, one in found["axes"].items():
        for p in one["points"]:
            if "failed" in p:
                rows.append([AXES[axis], p[axis], p["failed"], *[""] * len(COSTS)])
                continue
            kind, where = p["device_kind"], p["devices"]
            times = (f"{1e3 * p[name]:.1f}" for name in COSTS[:2])
            memory = (f"{p[name]:.0f}" if p[name] else "-" for name in COSTS[2:])
            rows.append([AXES[axis], p[axis], *times, *memory, f"{p['begin_seconds']:.1f}"])
        slope = {k: f"{v:.2f}" for k, v in one["exponents"].items()}
        rows.append([AXES[axis], "exponent", *(slope.get(c, "-") for c in COSTS), ""])
    path = report.write(out, f"scaling_{report.slug(kind)}", found)
    plots.save(draw(found, f"Growth of cost on {where}"), path.with_suffix(".png"))
    header = ["axis", "size", "step ms", "step CPU ms"]
    header += ["process MiB", "program MiB", "device MiB", "begin s"]
    print(report.table(header, rows))
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    cli.run(main)
