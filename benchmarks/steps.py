"""How do rates improve with the number of optimizer steps?

    python -m benchmarks.steps

Trains the recipe of configs/lorenz.yaml for several numbers of epochs, in one run folder each (the
schedule depends on the number of epochs, so a short run is not the beginning of a long one). The
table has bits per spike at held-out points, and R2 against true rates, by steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ablation, report
from sbtt_jax import cli, config, recipes
from sbtt_jax.data.problem import prepare
from sbtt_jax.training import devices

ROOT = Path(__file__).parent.parent


@dataclass
class Arguments:
    """Train the recommended recipe for several numbers of epochs."""

    config: str = str(ROOT / "configs" / "lorenz.yaml")
    """Settings file of the recipe."""
    bandwidths: tuple[int, ...] = (29, 10, 5, 2)
    """Neurons observed per bin, one model each."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, one model each at every bandwidth; the table has their means."""
    epochs: tuple[int, ...] = (15, 30, 60, 120, 300)
    """Epochs of each run."""
    runs: str = str(ROOT / "runs" / "steps")
    """Folder for the run folders."""
    out: str = str(report.RESULTS)
    """Folder for steps.json."""


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.steps")
    recipe = recipes.load(given.config)
    recipe = config.updated(recipe, bandwidths=given.bandwidths, seeds=given.seeds)
    out = report.writable(given.out)
    devices.cache_compiled()
    devices.use_cores(len(recipe.bandwidths) * len(recipe.seeds))

    per_epoch = prepare(recipe).steps
    variants = {
        f"{per_epoch * epochs:,} ({epochs} epochs)": config.updated(
            recipe, train={"epochs": epochs}
        )
        for epochs in given.epochs
    }
    found = ablation.compare(variants, Path(given.runs))
    settings = recipe.model_dump(mode="json")
    path = report.write(out, "steps", {"settings": settings, "steps": found})
    seeds = ", ".join(map(str, recipe.seeds))
    print(f"\nbits per spike at held-out points / R², seeds {seeds}\n")
    print(ablation.table("optimizer steps", found, recipe.data.neurons))
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
