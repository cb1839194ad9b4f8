"""What does each ingredient of the recommended recipe contribute? Each is removed in turn.

    python -m benchmarks.ablation

Trains the recipe of configs/lorenz.yaml at three bandwidths, and again without each ingredient, in
one run folder each; existing runs are resumed. The table has bits per spike at held-out points, by
which the recipe was chosen, and R2 against true rates, which were never used to choose anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import report
from sbtt_jax import cli, config, recipes
from sbtt_jax.config import Settings
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.files import Row
from sbtt_jax.run.train import train
from sbtt_jax.training import devices

ROOT = Path(__file__).parent.parent

# What replaces each ingredient: the setting of the published recipe, or nothing.
WITHOUT = {
    "nothing": {},
    "input scaled by the observed fraction": {"model": {"input_scaling": False}},
    "mask beside the input": {"model": {"mask_input": False}},
    "inputs in standard deviations": {"model": {"standardize": False}},
    "few factors": {"model": {"latent_size": None}},
    "bounded initial conditions": {"model": {"bounded_ic": False}},
    "larger encoder": {"model": {"encoder_size": 50}},
    "larger decoder": {"model": {"decoder_size": 50}},
    "dropout": {"model": {"dropout": 0.0}},
    "coordinated dropout": {"train": {"coordinated_dropout": 0.0}},
    "loss at points left in the input": {"train": {"coordinated_dropout_pass": 0.0}},
    "trials left whole": {"train": {"coordinated_dropout_whole": 0.0}},
    "larger learning rate": {"train": {"learning_rate": 1e-3}},
    "warm-up and cosine": {"train": {"schedule": "constant", "warmup_epochs": 0.0}},
    "weights decayed themselves": {"train": {"optimizer": "adam", "weight_decay": 1e-4}},
    "faster second moment": {"train": {"adam_b2": 0.999}},
    "clipping": {"train": {"clip_norm": None}},
    "smaller batches": {"train": {"batch_size": 64}},
    "refinement": {"model": {"refinement_steps": 0}},
    "marginal epochs": {"train": {"marginal_epochs": 0}},
    "posterior": {"model": {"posterior": False}, "train": {"marginal_epochs": 0}},
}


@dataclass
class Arguments:
    """Train the recommended recipe, and again without each of its ingredients."""

    config: str = str(ROOT / "configs" / "lorenz.yaml")
    """Settings file of the recipe."""
    bandwidths: tuple[int, ...] = (29, 10, 2)
    """Neurons observed per bin, one model each."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds, one model each at every bandwidth; the table has their means."""
    epochs: int | None = None
    """Epochs of every run; those of the settings file if not given."""
    runs: str = str(ROOT / "runs" / "ablation")
    """Folder for the run folders."""
    out: str = str(report.RESULTS)
    """Folder for ablation.json."""


def compare(variants: Mapping[str, Settings], runs: Path) -> dict[str, list[Row]]:
    """Train each variant of a recipe in a run folder of its own; its rows of metrics.csv."""
    found = {}
    for name, settings in variants.items():
        print(f"\n{name}", flush=True)
        run = runs / report.slug(name)
        train(settings, run, resume=(run / "config.yaml").exists())
        found[name] = evaluate(run).models
    return found


def table(first: str, found: Mapping[str, Sequence[Row]], neurons: int) -> str:
    """A Markdown table, one row per variant: bits per spike at held-out points / R2, means over
    seeds."""
    bandwidths = list(dict.fromkeys(one["bandwidth"] for one in next(iter(found.values()))))

    def cell(models: Sequence[Row], bandwidth: int) -> str:
        here = [one for one in models if one["bandwidth"] == bandwidth]
        names = "bits_per_spike_heldout", "r2"
        return " / ".join(f"{np.mean([one[name] for one in here]):.3f}" for name in names)

    rows = [[name, *(cell(models, b) for b in bandwidths)] for name, models in found.items()]
    return report.table([first, *(f"{b} of {neurons}" for b in bandwidths)], rows)


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m benchmarks.ablation")
    recipe = recipes.load(given.config)
    length = {} if given.epochs is None else {"epochs": given.epochs}
    recipe = config.updated(recipe, bandwidths=given.bandwidths, seeds=given.seeds, train=length)
    out = report.writable(given.out)
    devices.cache_compiled()
    devices.use_cores(len(recipe.bandwidths) * len(recipe.seeds))

    variants = {
        name: changed
        for name, change in WITHOUT.items()
        # What changes nothing is not an ingredient of this recipe.
        if (changed := config.updated(recipe, **change)) != recipe or name == "nothing"
    }
    found = compare(variants, Path(given.runs))
    settings = recipe.model_dump(mode="json")
    path = report.write(out, "ablation", {"settings": settings, "without": found})
    seeds = ", ".join(map(str, recipe.seeds))
    print(
        f"\nbits per spike at held-out points / R², {recipe.train.epochs} epochs, seeds {seeds}\n"
    )
    print(table("without", found, recipe.data.neurons))
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
