"""The README's result table, from the shipped runs: python -m benchmarks.results"""

import csv
from pathlib import Path

from benchmarks import report
from sbtt_jax import config, evaluation, experiment, published

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """A run's metrics.csv by bandwidth; NaN where a cell is empty."""
    with (run / "evaluation" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["bandwidth"]): {
            name: float(cell or "nan") for name, cell in row.items() if name != "status"
        }
        for row in rows
    }


def table(recommended: Path, reference: Path) -> str:
    """A Markdown table of two runs on the same data, the published results beside them."""
    ours, theirs = metrics(recommended), metrics(reference)
    settings = config.load(recommended / "config.yaml")
    ceiling = evaluation.ceiling(settings, experiment.load_data(settings))
    header = [
        "observed of 29", "missing", "published, its own data", "published recipe",
        "**recommended recipe**", "at missing points", "ceiling", "bits per spike, missing points",
    ]  # fmt: skip
    rows = []
    for level in published.LEVELS:
        b, run = level.bandwidth, ours[level.bandwidth]
        numbers = [theirs[b]["r2"], run["r2"], run["r2_missing"], ceiling[b]]
        cells = [f"{x:.3f}" if x == x else "-" for x in (*numbers, run["bits_per_spike_missing"])]
        cells[1] = f"**{cells[1]}**"
        rows.append([b, f"{run['missing_fraction']:.1%}", f"{level.r2:.3f}", *cells])
    return report.table(header, rows)


if __name__ == "__main__":
    print(table(CHECKPOINTS / "lorenz", CHECKPOINTS / "reference"))
