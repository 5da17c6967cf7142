"""The words and options of `check` and `make-corpus`."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle import quantities
from unspeckle.cli.options import Captions, Quiet
from unspeckle.errors import InputError


def check(
    folder: Annotated[Path, typer.Argument(help="Captioned pictures.", show_default=False)],
    captions: Captions = "auto",
    caption: Annotated[str | None, typer.Option(help="One caption for all pictures.")] = None,
    template: Annotated[str | None, typer.Option(help='Around the name of a folder: "a photo of a {name}".')] = None,
    size: Annotated[str, typer.Option(help="At which it will be trained: 64 or WxH pixels.")] = "64",
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> int:
    """Look through a folder of captioned pictures before training on it."""
    sides = quantities.parse_size(size)
    from unspeckle.commands.check import run_check

    return run_check(folder, captions, caption, template, sides, json)


def emoji(
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    scenes: Annotated[str, typer.Option(help="How many, such as 5000 or 20k.")] = "10k",
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
    nouns: Annotated[str | None, typer.Option(help="Only these, with commas between.  [default: all]")] = None,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 64,
    sprites: Annotated[
        Path | None, typer.Option(help="Named RGBA pictures to use.  [default: the system's colour-emoji font]")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Scenes of emoji on coloured grounds: places, counts, tints, stilts, hybrids, with what is true of each."""
    many = quantities.parse_count(scenes, "--scenes")
    chosen = None if nouns is None else [noun.strip() for noun in nouns.split(",") if noun.strip()]
    if chosen == []:
        raise InputError(f"--nouns {nouns!r}: names none; write it like frog,rabbit,pizza")
    from unspeckle.commands.make_corpus import run_make_corpus

    return run_make_corpus(out, many, seed, chosen, size, sprites, quiet)
