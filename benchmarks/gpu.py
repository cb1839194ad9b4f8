"""How fast are eight models x 1,000 epochs on a GPU, and which way of running them is fastest?

    python -m benchmarks.gpu            # 50 epochs of each variant, extrapolated to 1,000
    python -m benchmarks.gpu --full     # all epochs of the settings

The published program takes about five hours. Variants, each in a process of its own: all models
together under vmap (as training does on an accelerator), one after another, with XLA's command
buffers around loops or without any, with fewer or more bins per iteration of the GRU's loops, with
matrix products in full float32 (by default a GPU rounds their factors to TF32), and with 64 models.
The likelihoods of the first epochs are compared with those on a CPU. Writes
results/gpu_DEVICE.json.
"""

import multiprocessing
import os
import statistics
import time
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
from sbtt_jax import cli, config, grid
from sbtt_jax.config import Settings
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError
from sbtt_jax.model import gru
from sbtt_jax.training import devices, population

ROOT = Path(__file__).parent.parent
COMPARED = 3  # epochs whose likelihoods are compared with those on a CPU
COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="


class Variant(NamedTuple):
    """One way to run the same training."""

    vmap: bool | None = None  # None: the default of training
    flags: str = ""  # for XLA
    unroll: int | None = None  # bins per iteration of the GRU's loops; None: the default
    precision: str | None = None  # of matrix products
    models: int | None = None  # None: as many as the settings say


VARIANTS = {
    "vmap": Variant(vmap=True),
    "turns": Variant(vmap=False),
    "loops_in_command_buffers": Variant(True, COMMAND_BUFFERS + "+WHILE,+CONDITIONAL"),
    "no_command_buffers": Variant(True, COMMAND_BUFFERS),
    "unroll_1": Variant(True, unroll=1),
    "unroll_25": Variant(True, unroll=25),
    "float32": Variant(True, precision="highest"),
    "models_64": Variant(True, models=64),
}


@dataclass
class Arguments:
    """Time training on a GPU, in several variants."""

    epochs: int = 50
    """Timed epochs of each variant."""
    full: bool = False
    """Time all epochs of the settings with the first variant; the others as without this."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which variants to run."""
    config: str = str(ROOT / "configs" / "reference.yaml")
    """Settings file of the models to train."""
    out: str = str(report.RESULTS)
    """Folder for gpu_DEVICE.json."""
    allow_cpu: bool = False
    """Run on a CPU if there is no accelerator, to check that it works."""


def run(settings: Settings, variant: Variant, epochs: int, platform: str | None) -> dict[str, Any]:
    """Train with one variant; runs in a process of its own."""
    # Read when JAX first looks for devices, which is below.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {variant.flags}".strip()
    if platform:
        jax.config.update("jax_platforms", platform)
    jax.config.update("jax_default_matmul_precision", variant.precision)
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured here
    gru.UNROLL = variant.unroll or gru.UNROLL
    if variant.models:
        seeds = -(-variant.models // len(settings.bandwidths))
        settings = settings.model_copy(update={"seeds": tuple(range(seeds))})
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
    return {
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


def measure(settings: Settings, names: Sequence[str], epochs: int, full: bool) -> dict[str, Any]:
    """All variants, and how far their likelihoods are from those on a CPU."""
    found: dict[str, Any] = {}
    for name in tqdm(names, unit="variant"):
        count = settings.train.epochs - 1 if full and name == names[0] else epochs
        try:
            found[name] = apart(run, settings, VARIANTS[name], count, None)
        except (jax.errors.JaxRuntimeError, BrokenProcessPool) as error:
            # Out of memory, or a flag that this version of XLA lacks.
            found[name] = {"failed": str(error).splitlines()[0]}
    on_cpu = apart(run, settings, Variant(), COMPARED - 1, "cpu")
    for name, one in found.items():
        if "failed" not in one and not VARIANTS[name].models:
            one["difference_from_cpu"] = difference_from(on_cpu, one)
    return {"settings": settings.model_dump(mode="json"), "cpu": on_cpu, "variants": found}


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.gpu")
    if given.epochs < 1:
        raise InputError(f"--epochs is {given.epochs}; give 1 or more")
    unknown = set(given.variants) - VARIANTS.keys()
    if unknown or not given.variants:
        raise InputError(f"--variants {' '.join(given.variants)}: name some of {list(VARIANTS)}")
    settings = config.load(given.config)
    out = report.writable(given.out)
    platform, kind = apart(accelerator)
    if platform == "cpu" and not given.allow_cpu:
        raise InputError("JAX finds no GPU or TPU here; --allow_cpu runs on the CPU anyway")
    found = measure(settings, given.variants, given.epochs, given.full)
    path = report.write(out, f"gpu_{report.slug(kind)}", {"device": kind, **found})

    rows = []
    for name, one in found["variants"].items():
        if "failed" in one:
            rows.append([name, one["failed"], *[""] * 6])
            continue
        off, memory = one.get("difference_from_cpu"), one["peak_device_mib"]
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
            ]
        )
    header = ["variant", "models", "compile s", "epoch ms", "timed s (epochs)"]
    header += ["s per 1,000 epochs", "NLL, largest difference from CPU", "device MiB"]
    print(f"{len(grid.models(settings, 1))} models on {kind}\n")
    print(report.table(header, rows))
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
