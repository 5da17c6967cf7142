"""What all commands have in common: help in groups, and errors that name options as they are typed."""

import sys
from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

from unspeckle.errors import InputError

# Stands for a hyphen while lines are wrapped, which would break words at hyphens
_NON_BREAKING_HYPHEN = "\N{NON-BREAKING HYPHEN}"

# Options of version 0.1 by the names that they have now
RENAMED_OPTIONS: Mapping[str, str] = {
    "--batch": "--batch-size",
    "--grid": "--timestep-spacing",
    "--guidance": "--guidance-method",
    "--guide": "--guide-model",
    "--hires": "--hires-size",
    "--interval": "--guidance-interval",
    "--licence": "--license",
    "--mirror": "--flip",
    "--negative": "--negative-prompt",
    "--no-mirror": "--no-flip",
    "--no-paste": "--no-paste-original",
    "--paste": "--paste-original",
    "--pictures": "--images",
    "--rescale": "--guidance-rescale",
    "--scale": "--guidance-scale",
    "--strip": "--film-strip",
    "--text-encoder": "--train-text-encoder",
    "--threshold": "--dynamic-threshold",
    "--tiles": "--tile-size",
    "--variation": "--variation-seed",
}

# Options of a command that have an effect only together with one of others
NEEDED_OPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "draw": {
        "--strength": ("--image", "--hires-size"),
        "--paste-original": ("--mask",),
        "--variation-strength": ("--variation-seed",),
        "--upscaler": ("--hires-size",),
    },
    "train": dict.fromkeys(
        ("--rank", "--train-text-encoder", "--layout", "--prediction", "--trust-pickle"), ("--lora",)
    ),
    "score": {"--captions": ("--corpus",), "--caption": ("--corpus",), "--template": ("--corpus",)},
}


class Command(TyperCommand):
    """A command that lists its options under the names of typer.Option(rich_help_panel=…), those without one first, and
    whose errors name its options as they are typed."""

    def get_help(self, ctx: Any) -> str:
        """The text of --help, without names such as --batch-size that are broken at a hyphen."""
        return super().get_help(ctx).replace(_NON_BREAKING_HYPHEN, "-")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is None:
                continue
            text = record[1].replace("-", _NON_BREAKING_HYPHEN)
            if is_argument(param):
                groups["Arguments"].append((argument_name(param), text))
            else:
                panel = getattr(param, "rich_help_panel", None) or "Options"
                groups.setdefault(panel, []).append((record[0], text))
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What stands behind the command's name in the line "Usage: …"."""
        arguments = [param for param in self.get_params(ctx) if is_argument(param)]
        names = [argument_name(param) if param.required else f"[{argument_name(param)}]" for param in arguments]
        return ["[OPTIONS]", *names]

    def invoke(self, ctx: Any) -> Any:
        """Run the command. InputError with a line for the command line, also where memory runs out."""
        options = option_names(self)
        refuse_options_without_effect(ctx)
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise InputError(error.for_command_line(options)) from error
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            batch = " or use a smaller --batch-size" if "--batch-size" in options else ""
            raise InputError(f"out of memory: choose fewer or smaller images{batch}") from error


def option_names(command: Any) -> frozenset[str]:
    """The long names of a command's options, and the names of its arguments in capitals: {"PROMPT", "--seed", …}."""
    names = {name for param in command.params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
    return frozenset(names | {param.name.upper() for param in command.params if is_argument(param)})


def is_argument(param: Any) -> bool:
    """Whether it is given by its place, not by a name."""
    return bool(param.param_type_name == "argument")


def argument_name(param: Any) -> str:
    """An argument's name in the help, such as "PROMPT..."."""
    return str(param.metavar or param.name.upper())


def refuse_options_without_effect(ctx: Any) -> None:
    """InputError naming the first option on the command line that has no effect without another one."""
    given = {
        name
        for param in ctx.command.params
        if ctx.get_parameter_source(param.name).name == "COMMANDLINE"
        for name in param.opts
    }
    for option, needed in NEEDED_OPTIONS.get(ctx.command.name, {}).items():
        if option in given and not given.intersection(needed):
            raise InputError(f"{option}: has an effect only with {' or '.join(needed)}; leave it out")


def usage_message(error: Any) -> str:
    """The line for what typer raises when it cannot make sense of the command line, such as an unknown option."""
    context = getattr(error, "ctx", None)
    old_name = getattr(error, "option_name", "")
    new_name = RENAMED_OPTIONS.get(old_name)
    if context is not None and new_name in option_names(context.command):
        return f"{old_name} is now {new_name}"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text}; see {getattr(context, 'command_path', 'unspeckle')} --help"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python found no memory; torch has several exceptions for it."""
    if "torch" in sys.modules:
        from unspeckle.training.memory import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)
