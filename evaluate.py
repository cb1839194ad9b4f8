"""Evaluate the trained models of a run folder: python evaluate.py --help"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from sbtt_jax import command_line, devices, evaluation
from sbtt_jax.run_folder import RunFolder


@dataclass
class Arguments:
    """Infer the rates of every trial with each model of a run; print a table, write figures.

    R2 is against true rates, where they are known, over all validation trials. Missing points are
    those that the model had no sample of.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train.py wrote, such as checkpoints/lorenz."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Recording to infer instead of the one trained on (HDF5 or NPZ)."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder to write to; RUN/evaluation where none is given."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="EPOCHS")] = None
    """Read the checkpoint after so many epochs, such as the one before a damaged one, instead of
    the newest."""


def main(argv: Sequence[str]) -> int:
    given = command_line.parse(Arguments, argv)
    devices.cache_compiled()
    devices.use_cores()
    scores, ensembles = evaluation.evaluate(
        given.run, data=given.data, out=given.out, checkpoint=given.checkpoint
    )
    print(evaluation.table(scores, ensembles))
    print(f"wrote {given.out or RunFolder(given.run).evaluation}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
