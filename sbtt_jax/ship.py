"""A run without what only resuming needs: python -m sbtt_jax.ship RUN --out FOLDER"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sbtt_jax import cli, config
from sbtt_jax.errors import InputError
from sbtt_jax.output import messages, program
from sbtt_jax.run.exports import EXPORTS
from sbtt_jax.run.files import atomic_write
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import export, restore


@dataclass
class Arguments:
    """Copy a run's settings, history, best weights, evaluation and what inference needs: a small
    part of its size.

    The copy can be evaluated, not resumed. Inferred rates and what was exported are left out;
    evaluate.py makes them.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train.py wrote."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write, which must not exist yet."""


def ship(run: str | Path, out: str | Path) -> None:
    """Copy a run as `Arguments` says.

    Raises InputError if there is no run or no intact checkpoint, or `out` exists; SaveError if it
    cannot be written to.
    """
    source, trained = RunFolder(run), restore(run)
    if Path(out).exists():
        raise InputError(f"{out}: exists already; give a new folder")
    settings, history = source.settings(), source.read_history()
    if settings.tune:  # the models that are used, and how they came about
        latents = max(one.settings.model.latent_size or 0 for one in trained.values()) or None
        settings = config.updated(settings, tune=0, model={"latent_size": latents})
        history = [row for rows in source.history_of(trained).values() for row in rows]
    origin = {"history": history, "provenance": source.provenance(), "prior": source.read_prior()}
    try:
        target = export(out, settings, trained, **origin)
        if source.evaluation.is_dir():
            made = (f"*{export.ending}" for export in EXPORTS.values())
            ignore = shutil.ignore_patterns("rates.h5", ".*", *made)
            copied = {"ignore": ignore, "copy_function": _copy}
            shutil.copytree(source.evaluation, target.evaluation, **copied)
    except BaseException:  # half of it could be taken for a run
        shutil.rmtree(out, ignore_errors=True)
        raise


def _copy(source: str, target: str) -> None:
    with atomic_write(Path(target)) as part:
        shutil.copyfile(source, part)


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog=program("ship"))
    ship(given.run, given.out)
    messages.info(f"wrote {given.out}; it can be evaluated: {program('evaluate', str(given.out))}")
    return 0


if __name__ == "__main__":
    cli.run(main)
