"""The program `unspeckle`: its commands, its exit codes, and what it prints when something is wrong."""

import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from unspeckle.cli import check, convert, distil, draw, make_corpus, replay, score, train
from unspeckle.cli.command import Command, usage_message
from unspeckle.errors import InputError

EXIT_DONE, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 2, 130

HELP = """Draw images from text, and train the models that do it, on your own machine.

To begin, draw an image with the model that is inside the package:

\b
    unspeckle draw "a frog on stilts"

To train a model of your own on a folder of captioned images:

\b
    unspeckle check photographs
    unspeckle train photographs --out my-run --for 1h
    unspeckle draw "a frog on stilts" --model my-run
"""

EPILOG = """For the options of a command, see `unspeckle COMMAND --help`.

Exit codes:

\b
  0    done
  1    replay or convert found a difference, check found problems, or training
       failed
  2    bad input; one line on standard error says what would be right
  130  stopped by Ctrl-C
"""

app = typer.Typer(
    name="unspeckle",
    help=HELP,
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
corpus_app = typer.Typer(help=make_corpus.HELP, rich_markup_mode=None)
EPILOGS: dict[Callable[..., int], str] = {
    draw.draw: draw.EPILOG,
    replay.replay: replay.EPILOG,
    convert.convert: convert.EPILOG,
    train.train: "Example: unspeckle train photographs --out my-run --for 30m",
    distil.distil: "Example: unspeckle distil my-run --for 30m",
    check.check: "Exit code: 0 if there are no problems, 1 if there are some.",
    score.score: "Example: unspeckle score my-run --corpus photographs --out my-run.html",
}
for function, epilog in EPILOGS.items():
    app.command(cls=Command, epilog=epilog)(function)
corpus_app.command(cls=Command, epilog="Example: unspeckle make-corpus emoji scenes --nouns frog,rabbit,pizza")(
    make_corpus.emoji
)
app.add_typer(corpus_app, name="make-corpus")


def _print_version(wanted: bool) -> None:
    if wanted:
        from unspeckle.version import installed_version

        print(f"unspeckle {installed_version()}")
        raise typer.Exit()


@app.callback(help=HELP)
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@corpus_app.callback(help=make_corpus.HELP)
def _corpus_app() -> None: ...


def entry() -> int:
    """`main` as a process of its own. The system takes back all memory when it ends, so the search for cycles among
    torch's objects is skipped, which saves a third of a second."""
    code = main()
    gc.freeze()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 a check found something, 2 bad input (one line on standard
    error), 130 stopped by Ctrl-C. arguments: without the program's name; None takes those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _accept_any_file_name()
    try:
        result: Any = app(words or ["--help"], prog_name="unspeckle", standalone_mode=False)
        sys.stdout.flush()
        return result if type(result) is int else EXIT_DONE
    except InputError as error:
        return _print_bad_input(error.for_command_line())
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:
        # The program that reads the output, such as `head`, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        advice = "; free some space and repeat the command" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return _print_bad_input(f"{error.filename or 'the results or the cache'}: {error.strerror}{advice}")
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _print_bad_input(usage_message(error))


def _accept_any_file_name() -> None:
    """File names need not be Unicode, and terminals need not be UTF-8."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _print_bad_input(message: str) -> int:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"unspeckle: {line}", file=sys.stderr)
    return EXIT_BAD_INPUT
