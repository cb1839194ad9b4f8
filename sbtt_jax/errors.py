"""Errors the user can fix. The commands turn each into one line and an exit status."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A setting, file or array is wrong; the message says what would be right."""


class SaveError(Exception):
    """A file could not be written: the disk is full or read-only."""


def did_you_mean(word: str, names: Iterable[str], alike: float = 0.6) -> str:
    """Words for an error that name what is called almost as `word` is; none if nothing is.

    alike: similarity of the names, of at most 1.
    """
    near = difflib.get_close_matches(word, list(names), 1, alike)
    return f" (did you mean {near[0]}?)" if near else ""
