"""How fast is training on a GPU, where does the time go, and does it give a CPU's numbers?

    python -m benchmarks.gpu            # 200 epochs of each variant, extrapolated to 1,000
    python -m benchmarks.gpu --full     # all epochs of the first one

The published program takes about five hours for its eight models x 1,000 epochs. Variants, each in
a process of its own: the GRU in one kernel per direction or in XLA's loops, with fewer or more bins
per iteration; with XLA's command buffers around loops or without any; matrix products that are not
tried out while compiling, or in full float32 (by default a GPU rounds their factors to TF32); more
models; the recommended recipe; a larger recording. The likelihoods of the first epochs are compared
with those on a CPU, and one epoch is profiled. Writes results/gpu_DEVICE.json after every variant.
"""

import gzip
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import report
from sbtt_jax import cli, grid, recipes
from sbtt_jax.config import Settings
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError
from sbtt_jax.model import gru
from sbtt_jax.training import devices, population

COMPARED = 3  # epochs whose likelihoods are compared with those on a CPU
COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="
LARGE = {"neurons": 200, "bins": 250, "conditions": 50, "trials_per_condition": 40}


class Variant(NamedTuple):
    """One way to run a training."""

    kernel: bool = True  # the GRU in one kernel per direction, if the device can
    unroll: int | None = None  # bins per iteration of the GRU's loops; None: the default
    vmap: bool | None = None  # None: the default of training
    flags: str = ""  # for XLA
    precision: str | None = None  # of matrix products
    models: int | None = None  # None: as many as the settings say
    recipe: str | None = None  # the models of this recipe instead
    large: bool = False  # one model of a larger data set instead
    share: float = 1.0  # of the timed epochs


VARIANTS = {
    "kernel": Variant(),
    "loop": Variant(kernel=False),
    "loop_unroll_1": Variant(kernel=False, unroll=1),
    "loop_unroll_25": Variant(kernel=False, unroll=25, share=0.5),
    "float32": Variant(precision="highest"),
    "loop_float32": Variant(kernel=False, precision="highest", share=0.5),
    "models_64": Variant(models=64),
    "models_256": Variant(models=256, share=0.25),
    "recipe": Variant(recipe="lorenz", share=0.25),
    "recipe_loop": Variant(kernel=False, recipe="lorenz", share=0.25),
    "large": Variant(large=True, share=0.05),
    "large_loop": Variant(kernel=False, large=True, share=0.05),
    "loops_in_command_buffers": Variant(flags=COMMAND_BUFFERS + "+WHILE,+CONDITIONAL"),
    "no_autotuning": Variant(flags="--xla_gpu_autotune_level=0"),
    "no_command_buffers": Variant(flags=COMMAND_BUFFERS),
    "turns": Variant(vmap=False, share=0.25),
}


@dataclass
class Arguments:
    """Time training on a GPU, in several variants."""

    epochs: int = 200
    """Timed epochs of most variants; the costly ones take a part of them."""
    full: bool = False
    """Time all epochs of the settings with the first variant; the others as without this."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which variants to run."""
    config: str = str(recipes.named("reference"))
    """Settings file of the models to train."""
    out: str = str(report.RESULTS)
    """Folder for gpu_DEVICE.json."""
    allow_cpu: bool = False
    """Run on a CPU if there is no accelerator, to check that it works."""


def settings_of(variant: Variant, path: str) -> Settings:
    """What a variant trains, unless it says otherwise the models of the settings file."""
    settings = recipes.load(recipes.named(variant.recipe) if variant.recipe else path)
    changes: dict[str, Any] = {}
    if variant.models:
        changes["seeds"] = tuple(range(-(-variant.models // len(settings.bandwidths))))
    if variant.large:
        changes["bandwidths"] = (LARGE["neurons"] // 2,)
        changes["data"] = settings.data.model_copy(update=LARGE)
    return settings.model_copy(update=changes)


def run(
    variant: Variant, settings: Settings, epochs: int, platform: str | None, profiled: bool
) -> dict[str, Any]:
    """Train with one variant; runs in a process of its own."""
    # Read when JAX first looks for devices, which is below.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {variant.flags}".strip()
    if platform:
        jax.config.update("jax_platforms", platform)
    jax.config.update("jax_default_matmul_precision", variant.precision)
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured here
    gru.UNROLL = variant.unroll or gru.UNROLL
    if not variant.kernel:
        gru._in_kernel = lambda: False
    devices.use_cores(len(grid.models(settings, 1)))

    problem = prepare(settings)
    mesh = devices.model_mesh(len(problem.keys))
    state = population.begin(problem)
    state, *rest = population.place(mesh, state, problem.masks, problem.trials)
    start = time.perf_counter()
    advance = population.compile_epoch(mesh, problem, variant.vmap).lower(state, *rest).compile()
    compile_seconds = time.perf_counter() - start
    seconds, logs = [], []
    for _ in range(1 + epochs):
        start = time.perf_counter()
        state, log = advance(state, *rest)
        logs.append(devices.on_host(log))
        seconds.append(time.perf_counter() - start)
    on_device = jax.devices()[0].memory_stats() or {}
    found = {
        "devices": devices.describe(),
        "models": len(problem.keys),
        "epochs": epochs,
        "compile_seconds": compile_seconds,
        "first_epoch_seconds": seconds[0],
        "epochs_seconds": sum(seconds[1:]),
        "epoch_seconds_median": statistics.median(seconds[1:]),
        "seconds_for_1000_epochs": 1000 * sum(seconds[1:]) / epochs,
        "peak_device_mib": on_device["peak_bytes_in_use"] / 2**20 if on_device else None,
        "valid_nll_last": logs[-1].valid_nll.tolist(),
        "first_epochs_nll": [
            [log.train_nll.tolist(), log.valid_nll.tolist()] for log in logs[:COMPARED]
        ],
    }
    if profiled:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready(advance(state, *rest))
            found["profile"] = profile(Path(folder))
    return found


def profile(folder: Path) -> dict[str, Any] | None:
    """What the device did in a traced epoch; None if the trace says nothing of a device."""
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    lines = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"
    }
    kernels = [
        e
        for e in events
        if e.get("ph") == "X"
        and "GPU" in names.get(e["pid"], "")
        and lines.get((e["pid"], e["tid"]), "").startswith("Stream")
    ]
    if not kernels:
        return None
    busy, span_end = 0.0, 0.0
    for e in sorted(kernels, key=lambda e: e["ts"]):  # streams overlap
        begin, end = e["ts"], e["ts"] + e["dur"]
        busy += max(0.0, end - max(begin, span_end))
        span_end = max(span_end, end)
    by_name: Counter[str] = Counter()
    for e in kernels:
        by_name[e["name"]] += e["dur"]
    recurrent = sum(t for name, t in by_name.items() if name.startswith("gru_"))
    return {
        "kernels": len(kernels),
        "span_ms": (span_end - min(e["ts"] for e in kernels)) / 1e3,
        "busy_ms": busy / 1e3,
        "sum_ms": sum(by_name.values()) / 1e3,
        "recurrence_kernels_ms": recurrent / 1e3,
        "longest": [
            {
                "name": name,
                "ms": ms / 1e3,
                "times": sum(e["name"] == name for e in kernels),
            }
            for name, ms in by_name.most_common(25)
        ],
    }


def accelerator() -> tuple[str, str]:
    """Platform and kind of the first device; runs in a process of its own, as it takes memory."""
    device = jax.devices()[0]
    return device.platform, device.device_kind


def apart(work: Any, *arguments: Any) -> Any:
    """The result of `work` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def difference_from(reference: dict[str, Any], found: dict[str, Any]) -> float:
    """Largest difference (nats) between the models' likelihoods in the first epochs."""
    a, b = (np.array(each["first_epochs_nll"]) for each in (found, reference))
    epochs = min(len(a), len(b))
    return float(np.abs(a[:epochs] - b[:epochs]).max())


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.gpu")
    if given.epochs < 1:
        raise InputError(f"--epochs is {given.epochs}; give 1 or more")
    unknown = set(given.variants) - VARIANTS.keys()
    if unknown or not given.variants:
        raise InputError(f"--variants {' '.join(given.variants)}: name some of {list(VARIANTS)}")
    out = report.writable(given.out)
    platform, kind = apart(accelerator)
    if platform == "cpu" and not given.allow_cpu:
        raise InputError("JAX finds no GPU or TPU here; --allow_cpu runs on the CPU anyway")
    settings = recipes.load(given.config)
    found: dict[str, Any] = {"device": kind, "settings": settings.model_dump(mode="json")}
    found["cpu"] = apart(run, Variant(), settings, COMPARED - 1, "cpu", False)
    found["variants"] = {}
    for place, name in enumerate(tqdm(given.variants, unit="variant")):
        variant = VARIANTS[name]
        own = settings_of(variant, given.config)
        epochs = max(1, round(variant.share * given.epochs))
        if given.full and place == 0:
            epochs = own.train.epochs - 1
        try:
            one = apart(run, variant, own, epochs, None, True)
            if own == settings:
                one["difference_from_cpu"] = difference_from(found["cpu"], one)
        except (jax.errors.JaxRuntimeError, BrokenProcessPool) as error:
            # Out of memory, or a flag that this version of XLA lacks.
            one = {"failed": str(error).splitlines()[0]}
        found["variants"][name] = one
        path = report.write(out, f"gpu_{report.slug(kind)}", found)  # all that there is so far
    print(table(found["variants"]))
    print(f"\nwrote {path}")
    return 0


def table(variants: dict[str, Any]) -> str:
    rows = []
    for name, one in variants.items():
        if "failed" in one:
            rows.append([name, one["failed"], *[""] * 8])
            continue
        off, memory, traced = (
            one.get(key) for key in ("difference_from_cpu", "peak_device_mib", "profile")
        )
        rows.append(
            [
                name,
                one["models"],
                f"{one['compile_seconds']:.1f}",
                f"{1e3 * one['epoch_seconds_median']:.1f}",
                f"{one['epochs_seconds']:.1f} ({one['epochs']})",
                f"{one['seconds_for_1000_epochs']:.1f}",
                "-" if off is None else f"{off:.1e}",
                "-" if memory is None else f"{memory:.0f}",
                "-" if traced is None else traced["kernels"],
                "-" if traced is None else f"{traced['busy_ms']:.1f} of {traced['span_ms']:.1f}",
            ]
        )
    header = ["variant", "models", "compile s", "epoch ms", "timed s (epochs)"]
    header += ["s per 1,000 epochs", "NLL, largest difference from CPU", "device MiB"]
    return report.table([*header, "kernels per epoch", "ms busy"], rows)


if __name__ == "__main__":
    cli.run(main)
