"""A run without what only resuming needs: python -m sbtt_jax.ship RUN --out FOLDER"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from sbtt_jax import cli
from sbtt_jax.run.ship import ship


@dataclass
class Arguments:
    """Copy a run's settings, history, best weights and evaluation, a small part of its size.

    The copy can be evaluated, not resumed. Inferred rates are left out; evaluate.py makes them.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train.py wrote."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write, which must not exist yet."""


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m sbtt_jax.ship")
    ship(given.run, given.out)
    print(f"wrote {given.out}; it can be evaluated: python evaluate.py {given.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
