"""What the user can mend."""


class InputError(Exception):
    """Bad input: one line that names the file or the option and the mend; the command line exits with 2."""
