"""The command line. The words and options of its commands lie beside, a file for each kind; what they do lies in
`commands/` and is imported when they run, so that help needs no torch."""

import errno
import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from unspeckle.cli import corpora, drawing, learning, scoring
from unspeckle.commands.grouped import Grouped
from unspeckle.errors import InputError

DONE, BAD_INPUT, STOPPED = 0, 2, 130

app = typer.Typer(
    name="unspeckle",
    help="Text-to-image diffusion that a person can own whole.",
    epilog='Begin with: unspeckle draw "a frog on stilts"',
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
make_corpus = typer.Typer(help="Make a corpus of captioned pictures.", rich_markup_mode=None)
app.add_typer(make_corpus, name="make-corpus")

for group, command, epilog in (
    (app, drawing.draw, 'Example: unspeckle draw "a blue frog wearing a top hat" --count 4 --seed 7 --out pictures'),
    (app, drawing.replay, "Exit code: 0 where no pixel differs, 1 where one does."),
    (app, drawing.convert, "Exit code: 0 where what was written computes the same, 1 where it does not."),
    (make_corpus, corpora.emoji, "Example: unspeckle make-corpus emoji scenes --scenes 20k --nouns frog,rabbit,pizza"),
    (app, learning.train, "Example: unspeckle train photographs --out photographs-run --for 30m"),
    (app, learning.distil, "Example: unspeckle distil photographs-run --for 30m"),
    (app, corpora.check, "Exit code: 0 where nothing is amiss, 1 where something is."),
    (app, scoring.score, "Example: unspeckle score my-run --corpus photographs --out my-run.html"),
):
    group.command(cls=Grouped if command in (drawing.draw, learning.train) else None, epilog=epilog)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from unspeckle.version import installed_version

        print(f"unspeckle {installed_version()}")
        raise typer.Exit()


@app.callback()
def _app(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Text-to-image diffusion that a person can own whole."""


@make_corpus.callback()
def _corpora() -> None:
    """Make a corpus of captioned pictures."""


def entry() -> int:
    """`main` as a process of its own. At its end the system takes all memory back anyway: to look for cycles among
    torch's objects before that costs a third of a second."""
    code = main()
    gc.freeze()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Bad input is one line on standard error and 2, Ctrl-C is 130."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be Unicode, terminals not UTF-8
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
    try:
        result: Any = app(given or ["--help"], prog_name="unspeckle", standalone_mode=False)
        sys.stdout.flush()
        return result if type(result) is int else DONE
    except InputError as e:
        return _refuse(str(e))
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as e:
        if e.filename is None and e.strerror is None:
            raise
        mend = "; free some, and give the same command again" if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return _refuse(f"{e.filename or 'the results or the cache'}: {e.strerror}{mend}")
    except Exception as e:
        if _ran_out(e):
            return _refuse("memory does not suffice; ask for fewer or smaller pictures, or a smaller --batch")
        if not hasattr(e, "format_message"):  # what typer raises for a usage it does not know
            raise
        context = getattr(e, "ctx", None)
        return _refuse(f"{e.format_message().rstrip('.')}; see {getattr(context, 'command_path', 'unspeckle')} --help")


def _ran_out(error: Exception) -> bool:
    if "torch" in sys.modules:  # which has words of its own for it
        from unspeckle.training.memory import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)


def _refuse(message: str) -> int:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"unspeckle: {line}", file=sys.stderr)
    return BAD_INPUT
