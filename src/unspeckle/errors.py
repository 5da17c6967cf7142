"""The one kind of error that its reader can mend."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Bad input: one line that names the file or the option and says what would be right. The command line exits with 2.

    option: the name of a Python argument, such as "guidance_scale", that the line begins with; the command line shows it
    as its own option, "--guidance-scale"."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message if option is None else f"{option}{message}")
        self.option = option
        self.detail = message

    def for_command_line(self) -> str:
        """The line with the option as it is typed in a terminal."""
        if self.option is None:
            return str(self)
        name = "PROMPT" if self.option == "prompt" else f"--{self.option.replace('_', '-')}"
        return f"{name}{self.detail}"


@contextmanager
def prefix_with_option(option: str, path: object) -> Iterator[None]:
    """An InputError raised inside that begins with the path gets the option that named the path in front."""
    try:
        yield
    except InputError as e:
        if not str(e).startswith((f"{path}:", f"{path}{os.sep}")):
            raise
        raise InputError(f"{option} {e}") from e
