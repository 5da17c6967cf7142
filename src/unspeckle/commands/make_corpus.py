"""`unspeckle make-corpus emoji`: a captioned corpus whose every object is known."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus.emoji.make_corpus import make_emoji_corpus


def run_make_corpus(
    output_folder: Path,
    scene_count: int,
    seed: int,
    nouns: Sequence[str] | None,
    image_size: int,
    sprite_folder: Path | None,
    quiet: bool,
) -> int:
    """Draw the scenes with progress on standard error; the corpus's path on standard output."""
    console = Console(stderr=True, quiet=quiet)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing scenes", total=scene_count)
        summary = make_emoji_corpus(
            output_folder,
            scene_count=scene_count,
            seed=seed,
            nouns=nouns,
            image_size=image_size,
            sprite_folder=sprite_folder,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for name, value in summary.items():
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    print(output_folder.absolute())
    sys.stdout.flush()
    return 0
