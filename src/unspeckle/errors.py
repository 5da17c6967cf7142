"""What the user can mend."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Bad input: one line that names the file or the option and the mend; the command line exits with 2."""


@contextmanager
def prefix_with_option(option: str, path: object) -> Iterator[None]:
    """What is refused inside and begins with the path begins with the option that named it."""
    try:
        yield
    except InputError as e:
        if not str(e).startswith((f"{path}:", f"{path}{os.sep}")):
            raise
        raise InputError(f"{option} {e}") from e
