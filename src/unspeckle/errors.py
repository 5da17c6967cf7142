"""The one kind of error that the user can correct."""

import difflib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# Python arguments whose options on the command line have other names
_OPTION_NAMES = {
    "prompt": "PROMPT",
    "seconds": "--for",
    "from_model": "--from",
    "loras": "--lora",
    "embeddings": "--embedding",
    "autoencoder": "--vae",
}


class InputError(Exception):
    """Bad input: one line that names the file or the option and says what would be right. The command line exits with
    code 2.

    option: the name of a Python argument, such as "guidance_scale", that the line begins with; the command line shows
    it as its own option, "--guidance-scale". More arguments that the message names stand between backticks."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message if option is None else f"{option}{message}")
        self.option = option
        self.detail = message

    def for_command_line(self, options: Collection[str] | None = None) -> str:
        """The line with options as they are typed in a terminal. options: those of the command, such as "--seed"; names
        that it does not have stay as they are. None takes all names for options."""

        def typed(name: str, otherwise: str) -> str:
            option = option_name(name)
            return option if options is None or option in options else otherwise

        detail = re.sub(r"`(\w+)`", lambda found: typed(found[1], found[0]), self.detail) if options else self.detail
        return detail if self.option is None else f"{typed(self.option, self.option)}{detail}"


def option_name(argument: str) -> str:
    """The command line's name of a Python argument: "--guidance-scale" of "guidance_scale"."""
    return _OPTION_NAMES.get(argument, f"--{argument.replace('_', '-')}")


def nearest_name(name: str, names: Collection[str]) -> str:
    """The most similar of the names: one that contains it or that it contains, or nearest in spelling."""
    containing = [one for one in names if name in one or one in name]
    return max(containing or names, key=lambda one: difflib.SequenceMatcher(None, name, one).ratio())


@contextmanager
def prefix_with_option(option: str, path: object) -> Iterator[None]:
    """An InputError raised inside that begins with the path gets the option that named the path in front."""
    try:
        yield
    except InputError as error:
        if not str(error).startswith((f"{path}:", f"{path}{os.sep}")):
            raise
        raise InputError(f"{option} {error}") from error
