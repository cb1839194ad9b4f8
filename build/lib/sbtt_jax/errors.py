"""Errors the user can fix. The commands turn each into one line and an exit status."""


class InputError(ValueError):
    """A setting, file or array is wrong; the message says what would be right."""


class SaveError(Exception):
    """A file could not be written: the disk is full or read-only."""
