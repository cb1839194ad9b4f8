"""Models of the published PyTorch program: python -m sbtt_jax.convert CKPT... --out RUN"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from sbtt_jax import cli
from sbtt_jax.run.convert import convert


@dataclass
class Arguments:
    """Make a run folder from checkpoints of the published PyTorch program, for evaluate.py."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CKPT...")]
    """Lightning checkpoints (.ckpt), one model each."""
    out: str
    """Run folder to write."""
    bandwidths: tuple[int, ...] = ()
    """Neurons observed by each model, in the order of the checkpoints, if these do not say."""


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog="python -m sbtt_jax.convert")
    convert(given.out, given.checkpoints, given.bandwidths)
    print(f"wrote {given.out}; now: python evaluate.py {given.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
