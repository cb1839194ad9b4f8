"""How long does training take to start, the first time and the second?

    python -m benchmarks.startup

Runs train.py for two epochs with an empty compilation cache (a temporary folder), then again with
the cache that the first run filled, and reads from its output when it reached each stage. Times
count from before Python starts; the CPU time of all cores, in brackets, depends less on how busy
the machine is. The output does not say when the first step is done: that is the end of the first
epoch, minus the time of the other steps of an epoch, as measured in the second.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import report
from sbtt_jax import cli, recipes
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError

ROOT = Path(__file__).parent.parent
# What train.py prints when it reaches each stage.
SIGNS = {"begun": "\ntraining ", "first epoch": "| 1/2 ", "second epoch": "| 2/2 "}
STAGES = {
    "begun": "until data, masks and weights are ready",
    "first step": "until the first step is done",
    "second epoch": "until two epochs are done",
}


@dataclass
class Arguments:
    """Time a first and a second start of training."""

    config: str = str(ROOT / "configs" / "reference.yaml")
    """Settings file of the models to train."""
    repeats: int = 3
    """Pairs of starts; the table has their medians."""
    out: str = str(report.RESULTS)
    """Folder for startup.json."""


def start(config: str, steps: int, cache: Path, out: Path) -> dict[str, list[float]]:
    """Wall-clock and CPU seconds (of all cores) that train.py takes to reach each stage."""
    options = ["--config", config, "--train.epochs", "2", "--out", str(out), "--overwrite"]
    own = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    began = time.time()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | own,
    ) as process:
        watched = psutil.Process(process.pid)
        printed, reached = "\n", {}
        while chunk := os.read(process.stdout.fileno(), 2**16):
            printed += chunk.decode(errors="replace")
            for stage, sign in SIGNS.items():
                if sign in printed and stage not in reached:
                    now = time.time() - began, sum(watched.cpu_times()[:2])
                    reached[stage] = np.array(now)
    if process.returncode or len(reached) < len(SIGNS):
        raise InputError(f"train.py did not finish; its last line: {printed.splitlines()[-1]}")
    epoch = reached["second epoch"] - reached["first epoch"]
    reached["first step"] = reached.pop("first epoch") - epoch * (1 - 1 / steps)
    return {stage: reached[stage].tolist() for stage in STAGES}


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.startup")
    if given.repeats < 1:
        raise InputError(f"--repeats is {given.repeats}; give 1 or more")
    settings = recipes.load(given.config)
    out = report.writable(given.out)
    steps = prepare(settings).steps
    starts: dict[str, list[dict[str, Any]]] = {"first": [], "second": []}
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for all_of_kind in starts.values():
                one = start(given.config, steps, Path(folder, "cache"), Path(folder, "run"))
                all_of_kind.append(one)
    medians = {
        kind: {stage: np.median([one[stage] for one in all_], axis=0).tolist() for stage in STAGES}
        for kind, all_ in starts.items()
    }
    found = {
        "settings": settings.model_dump(mode="json"),
        "wall_and_cpu_seconds": medians,
        "all": starts,
    }
    path = report.write(out, "startup", found)
    rows = [
        [name, *("{:.1f} ({:.1f})".format(*medians[kind][stage]) for kind in medians)]
        for stage, name in STAGES.items()
    ]
    print(report.table(["seconds (of all cores)", "first start", "second start"], rows))
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
