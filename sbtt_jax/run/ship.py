"""A run without what only resuming needs, to hand on: python -m sbtt_jax.ship RUN --out FOLDER"""

import shutil
from pathlib import Path

from sbtt_jax.errors import InputError
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import export, restore


def ship(run: str | Path, out: str | Path) -> None:
    """Copy a run's settings, history, best weights and evaluation, a small part of its size.

    The copy can be evaluated, not resumed. Inferred rates are left out; evaluate.py makes them.

    Raises InputError if there is no run or no intact checkpoint, or `out` exists; SaveError if it
    cannot be written to.
    """
    source, target = RunFolder(run), RunFolder(out)
    trained = restore(run)
    if target.path.exists():
        raise InputError(f"{out}: exists already; give a new folder")
    history, record = source.read_history(), source.provenance()
    export(out, source.settings(), trained, history=history, provenance=record)
    if source.evaluation.is_dir():
        ignore = shutil.ignore_patterns("rates.h5", ".*")
        shutil.copytree(source.evaluation, target.evaluation, ignore=ignore)
