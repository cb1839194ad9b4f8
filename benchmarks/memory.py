"""How much memory does training on a large recording take? python -m benchmarks.memory

Writes a recording of 2,000 trials x 250 bins x 200 neurons as float64 with NaN, the largest format,
trains one epoch at four bandwidths with configs/recording.yaml, evaluates, and prints the peak
resident memory of both processes. Needs 0.8 GB of disk in the given folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parent.parent
TRIALS, BINS, NEURONS = 2000, 250, 200
BANDWIDTHS = ("200", "100", "50", "20")


def write_recording(path: Path) -> None:
    """Poisson counts at 5 spikes/s in bins of 10 ms, a tenth of them missing."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        spikes = file.create_dataset("spikes", (TRIALS, BINS, NEURONS), np.float64)
        for start in range(0, TRIALS, 50):
            counts = rng.poisson(0.05, (50, BINS, NEURONS)).astype(np.float64)
            counts[rng.random(counts.shape) < 0.1] = np.nan
            spikes[start : start + 50] = counts


def peak(*command: str) -> float:
    """Peak resident memory of a command, in GiB."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return usage.ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to write the recording, removed afterwards")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        recording, run = f"{folder}/recording.h5", f"{folder}/run"
        write_recording(Path(recording))
        train = peak(
            *("train.py", "--config", "configs/recording.yaml", "--data", recording),
            *("--out", run, "--bandwidths", *BANDWIDTHS),
            *("--train.epochs", "1", "--train.warmup_epochs", "0"),
        )
        print(f"training, {len(BANDWIDTHS)} bandwidths: {train:.2f} GiB resident at most")
        print(f"evaluation: {peak('evaluate.py', run):.2f} GiB resident at most")


if __name__ == "__main__":
    main()
