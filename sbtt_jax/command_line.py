"""What the command lines share: options from typed settings, and errors in one line."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from pydantic import ValidationError

from sbtt_jax import config
from sbtt_jax.errors import InputError

Arguments = TypeVar("Arguments")


def parse(kind: type[Arguments], argv: Sequence[str], **how: Any) -> Arguments:
    """The options in `argv` as an instance of `kind`, which says what options there are.

    Raises:
      InputError: an option is unknown or missing, or its value is of the wrong kind or range.
      SystemExit: --help was asked for and has been printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(argv), use_underscores=True, **how)
    except ValidationError as error:
        raise InputError(config.problems(error)) from None
    except SystemExit as stop:
        if not stop.code:
            raise
        if error := _cause(stop):
            raise InputError(config.problems(error)) from None
    raise InputError(_unboxed(said.getvalue()))


def _cause(error: BaseException | None) -> ValidationError | None:
    """The refused setting at the bottom of what tyro made of it, if that is what it was."""
    while error is not None and not isinstance(error, ValidationError):
        error = error.__cause__ or error.__context__
    return error


def _unboxed(text: str) -> str:
    """The first paragraph of a message that tyro has put into a box, in one line."""
    lines = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    until = next((i for i, line in enumerate(lines) if set(line) == {"─"}), len(lines))
    return re.sub(r"\s+", " ", " ".join(lines[:until])) + "; --help lists all options"


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a command line and exit with its status: 2, and one line on stderr, for wrong input."""
    try:
        status = main(sys.argv[1:])
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    sys.exit(status)
