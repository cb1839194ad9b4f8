"""What the command lines share: options from typed settings, and errors in one line."""

import contextlib
import gc
import io
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from pydantic import ValidationError

from sbtt_jax import config, processes
from sbtt_jax.errors import InputError, SaveError

# Exit statuses, beside 0 and those of signals (130, 143). Any other is a bug.
WRONG_INPUT, MODELS_FAILED, NOT_SAVED = 2, 3, 4

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
    text = re.sub(r"\s+", " ", " ".join(lines[:until]))
    # What each of several types had to say of a value would be many lines.
    return text.split(". Got errors:")[0] + "; --help lists all options"


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a command line and exit with its status.

    What the user has to mend ends it with one line on stderr: wrong input, files that cannot be
    written or read, an interrupt before there was anything to save.
    """
    # What has been imported is there to stay. A look through all of it for garbage, which tracing a
    # model for JAX brings about again and again, takes longer than a look through the rest.
    gc.freeze()
    # Tasks of Orbax's that failed complain once more of what has been raised already.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        status = main(sys.argv[1:])
    except InputError as error:
        status = _ended(WRONG_INPUT, f"error: {error}")
    except SaveError as error:
        status = _ended(NOT_SAVED, f"not saved: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _ended(NOT_SAVED, f"error: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        status = _ended(128 + signal.SIGINT, "stopped at once; what was saved before is whole")
    sys.exit(status)


def _ended(status: int, line: str) -> int:
    if processes.first():
        print(" ".join(line.split()), file=sys.stderr)
    return status
