"""How long until training is under way, the first time and the second?

    python -m benchmarks.startup

Starts the training of configs/reference.yaml twice, each in a new process: with an empty
compilation cache (a temporary folder), then with what the first start left there. Times are from
before Python starts, with those of all cores together in brackets, which a busy machine changes
less; the first step is over when the compiled epoch has done a share of its work.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report, workload
from sbtt_jax import command_line, config, devices
from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError

ROOT = Path(__file__).parent.parent
STAGES = {
    "python": "Python and imports",
    "data": "data and masks",
    "states": "initial weights, placed",
    "compile": "compiling the epoch",
    "epoch": "first epoch",
}


@dataclass
class Arguments:
    """Time a first and a second start of training."""

    config: str = str(ROOT / "configs" / "reference.yaml")
    """Settings file of the models to train."""
    repeats: int = 1
    """Pairs of starts; the fastest of each kind is kept."""
    out: str = str(report.RESULTS)
    """Folder for startup.json."""


def start(settings: Settings, began: float) -> dict[str, Any]:
    """Seconds of each stage up to the end of the first epoch; to be run in a new process."""
    ends = {}

    def done(stage: str) -> None:
        ends[stage] = time.time() - began, time.process_time()

    done("python")
    devices.cache_compiled()
    devices.use_cores(len(settings.bandwidths) * len(settings.seeds))
    problem = workload.prepare(settings)
    done("data")
    ready = workload.place(problem)
    state, *rest = ready[1:4]
    done("states")
    advance = ready.advance.lower(state, *rest).compile()
    done("compile")
    workload.on_host(advance(state, *rest)[1])
    done("epoch")
    seconds = np.diff(np.array(list(ends.values())), axis=0, prepend=0)  # stage, wall and CPU
    to_first_step = seconds.sum(0) - seconds[-1] * (1 - 1 / problem.steps)
    return {
        "devices": devices.describe(),
        "wall_and_cpu_seconds": dict(zip(ends, seconds.tolist(), strict=True)),
        "first_step_seconds": to_first_step.tolist(),
    }


def pair(settings: Settings) -> dict[str, dict[str, Any]]:
    """A start without and one with compiled programs at hand."""
    context = multiprocessing.get_context("spawn")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # for the processes
        for name in ("first", "second"):
            with ProcessPoolExecutor(1, context) as process:
                found[name] = process.submit(start, settings, time.time()).result()
    return found


def main(argv: Sequence[str]) -> int:
    given = command_line.parse(Arguments, argv, prog="python -m benchmarks.startup")
    if given.repeats < 1:
        raise InputError(f"--repeats is {given.repeats}; give 1 or more")
    settings = config.load(given.config)
    out = report.writable(given.out)
    pairs = [pair(settings) for _ in range(given.repeats)]
    best = {
        name: min((p[name] for p in pairs), key=lambda one: one["first_step_seconds"])
        for name in ("first", "second")
    }
    found = {"settings": settings.model_dump(mode="json"), "fastest": best, "all": pairs}
    path = report.write(out, "startup", found)

    def cells(costs):
        return (f"{wall:.1f} ({cpu:.1f})" for wall, cpu in costs)

    rows = [
        [name, *cells(one["wall_and_cpu_seconds"][stage] for one in best.values())]
        for stage, name in STAGES.items()
    ]
    rows.append(["until the first step", *cells(o["first_step_seconds"] for o in best.values())])
    print(report.table(["seconds (of all cores)", "first start", "second start"], rows))
    print(f"\non {best['first']['devices']}\nwrote {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
