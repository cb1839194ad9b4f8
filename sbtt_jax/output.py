"""What users are told, by the logger "sbtt_jax", and streams that no failure to write can stop.

A full disk behind a log, a reader that has gone, or an encoding without a letter of a path are no
reason to end hours of training.
"""

import contextlib
import logging
import os
import shlex
import sys
from typing import Any

from tqdm import tqdm

messages = logging.getLogger("sbtt_jax")


def to_terminal() -> None:
    """Print messages: information to standard output, warnings to standard error."""
    if not messages.handlers:
        messages.addHandler(_Printing())
        messages.setLevel(logging.INFO)
        messages.propagate = False  # other packages' handlers would say it again


class _Printing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        file = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(record.getMessage(), file=file)  # above a progress bar, if there is one
            file.flush()


def protect() -> None:
    """Let nothing that is written to standard output or error from now on raise."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would get its number, and its output
            os.open(os.devnull, os.O_RDWR)
        if number:
            setattr(sys, name, Unfailing(getattr(sys, name)))


class Unfailing:
    """A text stream whose writes never raise; once one has failed, the rest goes nowhere."""

    def __init__(self, stream: Any | None):
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115, as long as the process
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._lose()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        # The file behind it is replaced, or what is still buffered would fail again at exit.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def program(command: str, *arguments: str) -> str:
    """How the user calls a command, such as "python train.py" or "sbtt train", with arguments as a
    shell takes them."""
    called = os.path.basename(sys.argv[0]).removesuffix(".exe")
    if called == "sbtt":
        words = ["sbtt", command]
    elif called == "__main__.py":
        words = ["python", "-m", "sbtt_jax", command]
    elif command in ("train", "evaluate"):
        words = ["python", f"{command}.py"]
    else:
        words = ["python", "-m", f"sbtt_jax.{command}"]
    return shlex.join([*words, *arguments])
