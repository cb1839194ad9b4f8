"""A run without what only resuming needs, to hand on: python -m sbtt_jax.ship RUN --out FOLDER"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sbtt_jax import checkpoints, command_line
from sbtt_jax.errors import InputError
from sbtt_jax.run_folder import RunFolder


@dataclass
class Arguments:
    """Copy a run's settings, history, best weights and evaluation, a small part of its size.

    The copy can be evaluated, not resumed. Inferred rates stay behind; evaluate.py makes them.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train.py wrote."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write, which must not be there yet."""


def ship(run: str | Path, out: str | Path) -> None:
    """Copy what evaluation needs of a run, with sums of its own.

    Raises:
      InputError: there is no run or no whole checkpoint, or `out` exists.
      SaveError: `out` cannot be written to.
    """
    source, target = RunFolder(run), RunFolder(out)
    source.settings()
    if target.path.exists():
        raise InputError(f"{out}: is there already; give a folder that is not")
    checkpoints.copy_best(source.checkpoints, target.checkpoints)
    for file in (source.config, source.history, source.history_figure):
        if file.exists():
            shutil.copy(file, target.path / file.name)
    if source.evaluation.is_dir():
        shutil.copytree(
            source.evaluation,
            target.evaluation,
            ignore=shutil.ignore_patterns("rates.h5", ".*"),
        )


def main(argv: Sequence[str]) -> int:
    given = command_line.parse(Arguments, argv, prog="python -m sbtt_jax.ship")
    ship(given.run, given.out)
    print(f"wrote {given.out}; it can be evaluated: python evaluate.py {given.out}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
