"""The README's result table, from the shipped runs: python -m benchmarks.results"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from sbtt_jax.run import published

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"

Rows = list[dict[str, str]]


def read(run: Path, name: str) -> Rows:
    """The rows of a table of a run's evaluation."""
    with (run / "evaluation" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: Rows, bandwidth: int, name: str) -> list[float]:
    """The numbers of a bandwidth's rows; NaN where a cell is empty."""
    return [float(row[name] or "nan") for row in rows if int(row["bandwidth"]) == bandwidth]


def cell(values: Sequence[float]) -> str:
    """The mean and, for several seeds, the standard deviation; "-" where there are no values."""
    if np.isnan(values).any():
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def table(recommended: Path, reference: Path) -> str:
    """A Markdown table of two runs on the same data, beside the published results."""
    ours, ensemble = read(recommended, "metrics"), read(recommended, "ensemble")
    theirs = read(reference, "metrics")
    known: dict[str, Rows] = {}
    for row in read(recommended, "ideal_observers"):
        known.setdefault(row["knows"], []).append(row)
    header = [
        "observed of 29", "missing", "published, its own data", "published recipe",
        "**recommended recipe**", "mean of its seeds' rates", "at missing points",
        *(f"ideal: {what}" for what in known), "bits per spike, missing points",
    ]  # fmt: skip
    rows = []
    for level in published.LEVELS:
        b = level.bandwidth
        (missing, *_) = column(ours, b, "missing_fraction")
        rows.append([
            b,
            f"{missing:.1%}",
            f"{level.r2:.3f}",
            cell(column(theirs, b, "r2")),
            f"**{cell(column(ours, b, 'r2'))}**",
            cell(column(ensemble, b, "r2")),
            cell(column(ours, b, "r2_missing")),
            *(cell(column(own, b, "r2")) for own in known.values()),
            cell(column(ours, b, "bits_per_spike_missing")),
        ])  # fmt: skip
    return report.table(header, rows)


if __name__ == "__main__":
    print(table(CHECKPOINTS / "lorenz", CHECKPOINTS / "reference"))
