"""The README's result table, from the shipped runs: python -m benchmarks.results"""

import csv
from pathlib import Path

from sbtt_jax import published

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


def table(run: Path) -> str:
    """A Markdown table of a run's metrics.csv beside the published results."""
    with (run / "evaluation" / "metrics.csv").open(newline="") as file:
        rows = {int(row["bandwidth"]): row for row in csv.DictReader(file)}
    lines = [
        "| observed of 29 | missing | R², published | R², this recipe | R² at missing points "
        "| bits per spike at missing points |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for level in published.LEVELS:
        row = rows[level.bandwidth]
        cells = [
            str(level.bandwidth),
            f"{float(row['missing_fraction']):.1%}",
            f"{level.r2:.3f}",
            *(
                f"{float(row[name]):.3f}" if row[name] else "-"
                for name in ("r2", "r2_missing", "bits_per_spike_missing")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(CHECKPOINTS / "lorenz"))
