"""The errors that are the user's to mend; the command lines turn them into a line and a status."""


class InputError(ValueError):
    """A setting, a file or an array handed in is wrong; the message says what would be right."""


class SaveError(Exception):
    """A file could not be written: the disk is full, or may not be written to."""
