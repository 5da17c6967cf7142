"""`unspeckle make-corpus`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle import quantities
from unspeckle.cli import options as shared
from unspeckle.errors import InputError

HELP = "Make a folder of captioned images to train on."
NOUNS_HELP = (
    "What the images show: names with commas between them, such as frog,rabbit,pizza, or all for more than 600 emoji.  "
    "[default: a curated list of 128 nouns; with --sprites, all images in that folder]"
)
SPRITES_HELP = (
    "Folder of RGBA images named after what they show, such as frog.png, which are used instead of emoji.  "
    "[default: the color emoji font of this system]"
)


def emoji(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to make; it must be new or empty.", show_default=False)
    ],
    scenes: Annotated[str, typer.Option(metavar="N", help="Number of images, such as 5000 or 20k.")] = "10k",
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the scenes: the same seed and options give the same images.")
    ] = 0,
    nouns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=NOUNS_HELP),
    ] = None,
    size: Annotated[int, typer.Option(metavar="N", help="Width and height of the images in pixels.")] = 64,
    sprites: Annotated[Path | None, typer.Option(metavar="FOLDER", help=SPRITES_HELP)] = None,
    quiet: shared.Quiet = False,
) -> int:
    """Compose scenes of emoji on colored backgrounds, with captions.

    The scenes differ in the place, number and color of objects, in what these wear, and in subjects that mix two
    nouns. The folder also lists what each image shows, from which `score` measures how well a model follows prompts.
    """
    scene_count = quantities.parse_count(scenes, "--scenes")
    noun_list = None if nouns is None else [noun.strip() for noun in nouns.split(",") if noun.strip()]
    if noun_list == []:
        raise InputError(f"--nouns {nouns!r}: contains no name; write it like frog,rabbit,pizza")
    from unspeckle.cli.run_make_corpus import MakeCorpusOptions, run_make_corpus

    return run_make_corpus(
        MakeCorpusOptions(
            out=out, scenes=scene_count, seed=seed, nouns=noun_list, size=size, sprites=sprites, quiet=quiet
        )
    )
