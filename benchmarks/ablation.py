"""What does each ingredient of the recommended recipe bring? Every one is taken out in turn.

    python -m benchmarks.ablation

Trains the recipe of configs/lorenz.yaml at three bandwidths, and the same without each ingredient,
a run folder each; a run that is there already is gone on with. The table has bits per spike at
held-out points, by which the recipe was chosen, and R2 against true rates, which chose nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from sbtt_jax import command_line, config, devices, evaluation, experiment
from sbtt_jax.config import Settings

ROOT = Path(__file__).parent.parent

# What takes its place without each ingredient: the published recipe's setting, or none.
WITHOUT = {
    "nothing": {},
    "input scaled by the observed share": {"model": {"input_scaling": False}},
    "mask beside the input": {"model": {"mask_input": False}},
    "larger encoder": {"model": {"encoder_size": 50}},
    "larger decoder": {"model": {"decoder_size": 50}},
    "dropout": {"model": {"dropout": 0.0}},
    "coordinated dropout": {"train": {"coordinated_dropout": 0.0}},
    "loss at points left in the input": {"train": {"coordinated_dropout_pass": 0.0}},
    "trials left whole": {"train": {"coordinated_dropout_whole": 0.0}},
    "larger learning rate": {"train": {"learning_rate": 1e-3}},
    "warm-up and cosine": {"train": {"schedule": "constant", "warmup_epochs": 0.0}},
    "faster second moment": {"train": {"adam_b2": 0.999}},
    "clipping": {"train": {"clip_norm": None}},
    "smaller batches": {"train": {"batch_size": 64}},
    "refinement": {"model": {"refinement_steps": 0}},
}


@dataclass
class Arguments:
    """Train the recommended recipe without each of its ingredients in turn."""

    config: str = str(ROOT / "configs" / "lorenz.yaml")
    """Settings file of the recipe."""
    bandwidths: tuple[int, ...] = (29, 10, 2)
    """Neurons observed per bin, a model each."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds, a model each at every bandwidth; the table has their means."""
    epochs: int | None = None
    """Epochs of every run; the settings file's own if not given."""
    runs: str = str(ROOT / "runs" / "ablation")
    """Folder for the run folders."""
    out: str = str(report.RESULTS)
    """Folder for ablation.json."""


def changed(settings: Settings, change: dict[str, dict]) -> Settings:
    """The same settings but for those that `change` names, by group."""
    values = settings.model_dump()
    return config.check(values | {group: values[group] | new for group, new in change.items()})


def scores(settings: Settings, run: Path) -> list[evaluation.Score]:
    """How good the models of a run are, which is trained first as far as it is not yet."""
    experiment.train(settings, run, resume=(run / "config.yaml").exists())
    return evaluation.evaluate(run)[0]


def compare(variants: Mapping[str, Settings], runs: Path) -> dict[str, list[dict[str, Any]]]:
    """Train each variant of a recipe, a run folder each, and score its models."""
    found = {}
    for name, settings in variants.items():
        print(f"\n{name}", flush=True)
        found[name] = [one._asdict() for one in scores(settings, runs / report.slug(name))]
    return found


def table(first: str, found: Mapping[str, Sequence[Mapping[str, Any]]], neurons: int) -> str:
    """A Markdown row a variant: bits per spike at held-out points / R2, means over seeds."""
    bandwidths = list(dict.fromkeys(one["bandwidth"] for one in next(iter(found.values()))))

    def cell(models: Sequence[Mapping[str, Any]], bandwidth: int) -> str:
        here = [one for one in models if one["bandwidth"] == bandwidth]
        names = "bits_per_spike_heldout", "r2"
        return " / ".join(f"{np.mean([one[name] for one in here]):.3f}" for name in names)

    rows = [[name, *(cell(models, b) for b in bandwidths)] for name, models in found.items()]
    return report.table([first, *(f"{b} of {neurons}" for b in bandwidths)], rows)


def main(argv: Sequence[str]) -> int:
    given = command_line.parse(Arguments, argv, prog="python -m benchmarks.ablation")
    recipe = config.check(
        config.load(given.config).model_dump()
        | {"bandwidths": given.bandwidths, "seeds": given.seeds}
    )
    if given.epochs is not None:
        recipe = changed(recipe, {"train": {"epochs": given.epochs}})
    out = report.writable(given.out)
    devices.cache_compiled()
    devices.use_cores(len(recipe.bandwidths) * len(recipe.seeds))

    variants = {
        name: changed(recipe, change)
        for name, change in WITHOUT.items()
        if name == "nothing" or changed(recipe, change) != recipe  # else it is no ingredient
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
    command_line.run(main)
