"""How long until all eight levels are better than published?

    python -m benchmarks.time_to_quality

Starts train.py, reads history.csv as it grows, and stops when the epoch that each model would keep,
chosen by its validation loss, has a larger R2 than the published model of its bandwidth. Seconds
count from before Python starts. True rates end the measurement, they choose no epoch; which recipe
is timed was chosen on other data.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from sbtt_jax import cli, recipes
from sbtt_jax.errors import InputError
from sbtt_jax.run import published
from sbtt_jax.run.files import Row
from sbtt_jax.run.folder import RunFolder

ROOT = Path(__file__).parent.parent


@dataclass
class Arguments:
    """Time training until all levels are better than published."""

    config: str = str(recipes.named("demo"))
    """Settings file of the models to train."""
    out: str = str(report.RESULTS)
    """Folder for time_to_quality.json."""


def kept(rows: Iterable[Row], ordinary: int) -> dict[int, Row]:
    """The epoch that each bandwidth's model would keep if training ended now.

    ordinary: epochs before marginal ones, the first of which begins to choose anew.
    """
    best: dict[int, Row] = {}
    for row in rows:
        old = best.get(row["bandwidth"])
        name = "valid_nll" if row["heldout_nll"] != row["heldout_nll"] else "heldout_nll"
        anew = old is not None and old["epoch"] < ordinary <= row["epoch"]
        if old is None or anew or row[name] < old[name]:
            best[row["bandwidth"]] = row
    return best


def measure(path: str, folder: Path) -> dict[str, Any]:
    ordinary = recipes.load(path).train.epochs
    command = [sys.executable, str(ROOT / "train.py"), "--config", path, "--out", str(folder)]
    own = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    began, run = time.time(), RunFolder(folder)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | own
    ) as process:
        watched = psutil.Process(process.pid)
        while True:
            ended = process.poll() is not None
            best = kept(run.read_history(), ordinary)
            r2 = {bandwidth: row["valid_r2"] for bandwidth, row in best.items()}
            if all(r2.get(level.bandwidth, -1) > level.r2 for level in published.LEVELS):
                break
            if ended:
                raise InputError(f"{path}: training ended below the published R2; {r2}")
            time.sleep(0.2)
        seconds = time.time() - began
        cpu_seconds = None if ended else sum(watched.cpu_times()[:2])
        process.terminate()
    epochs = 1 + max(row["epoch"] for row in run.read_history())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "epochs": epochs, "r2": r2}


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.time_to_quality")
    out = report.writable(given.out)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.config, Path(folder) / "run")
    path = report.write(out, "time_to_quality", found)
    rows = [
        [level.bandwidth, level.r2, f"{found['r2'][level.bandwidth]:.3f}"]
        for level in published.LEVELS
    ]
    print(f"{found['seconds']:.0f} s, {found['epochs']} epochs\n")
    print(report.table(["observed of 29", "published R²", "here"], rows))
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
