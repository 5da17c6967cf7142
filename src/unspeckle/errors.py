"""What the user can mend."""


class InputError(Exception):
    """Bad input: one line that names the file or the option and the mend. The command line prints it and exits with 2."""
