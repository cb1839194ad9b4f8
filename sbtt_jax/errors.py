"""The one error that is the user's to mend; the command lines turn it into exit status 2."""


class InputError(ValueError):
    """A setting, a file or an array handed in is wrong; the message says what would be right."""
